"""What a launch is traced under, whatever its caller set in jax.

jax's settings decide what a traced function becomes: with 64-bit types on, a Python integer in a
kernel is an int64, which the compiler refuses; with jit off, another schedule comes out. They may
come from the shell (`JAX_ENABLE_X64=1`) or from a context around the call, in a caller's own jit or
outside. A config was tuned for one program, so every launch is traced under jax's defaults.

The precision of products is not among them: each product names its own (`online_softmax.py`),
because it is read again when the kernel is lowered, after the launch has returned.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import ParamSpec, TypeVar

import jax

P = ParamSpec("P")
R = TypeVar("R")


@contextlib.contextmanager
def default_settings() -> Iterator[None]:
    """Where traced code becomes what it is under jax's defaults."""
    with (
        jax.enable_x64(False),
        jax.disable_jit(False),
        jax.numpy_dtype_promotion("standard"),
        jax.numpy_rank_promotion("allow"),
    ):
        yield


def under_defaults(function: Callable[P, R]) -> Callable[P, R]:
    """The function, traced under `default_settings`."""

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        with default_settings():
            return function(*args, **kwargs)

    return call
