"""Traces a user's function for a chip that is not there, and chooses one of its Pallas calls."""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any
from unittest import mock

import jax
from jax.sharding import AbstractDevice, AbstractMesh

from rpa_tune.compile import target
from rpa_tune.hw.chip import Chip
from rpa_tune.user_kernel.find import (
    FoundCall,
    Known,
    Unknown,
    Value,
    find_calls,
    mark_calls,
    numbered,
)
from rpa_tune.user_kernel.load import brief, parameter_names
from rpa_tune.user_kernel.refused import RefusedError

# What code asks to find out which device it is on; while it is traced the answer is the chip.
_ASKED = ("devices", "local_devices")


@dataclass(frozen=True, kw_only=True, slots=True)
class Traced:
    """A function's program.

    Attributes:
      program: Of all arrays, in order, its Pallas calls marked.
      arguments: Their shapes and dtypes.
      calls: Its Pallas calls, with names that tell them apart.
    """

    program: Any
    arguments: tuple[Any, ...]
    calls: tuple[FoundCall, ...]

    def choose(self, name: str) -> FoundCall:
        """The call of a name, or the only one for an empty name.

        Raises:
          RefusedError: There is none, or there are several.
        """
        names = [call.name for call in self.calls]
        if not names:
            raise RefusedError(
                "the function makes no Pallas call on this chip",
                hint="with interpret=True, or on another backend, it makes none",
            )
        if not name and len(names) > 1:
            raise RefusedError(
                f"the function makes {len(names)} Pallas calls: {', '.join(names)}",
                hint=f"choose one: --call {names[0]}",
            )
        if name and name not in names:
            raise RefusedError(
                f"no Pallas call is called {name!r}", where="--call",
                hint=f"the function makes {', '.join(names)}",
            )  # fmt: skip
        return self.calls[names.index(name)] if name else self.calls[0]


@contextlib.contextmanager
def pretend(chip: Chip) -> Iterator[None]:
    """Where code that asks for the device is told the chip."""
    device = target.device_free_device(chip)
    abstract = AbstractDevice(
        device_kind=chip.device_kinds[0], num_cores=chip.num_cores_per_device, platform="tpu"
    )
    mesh = AbstractMesh((), (), abstract_device=abstract)
    with contextlib.ExitStack() as stack:
        stack.enter_context(jax.sharding.use_abstract_mesh(mesh))
        for name in _ASKED:
            stack.enter_context(mock.patch.object(jax, name, return_value=[device]))
        stack.enter_context(mock.patch.object(jax, "default_backend", return_value="tpu"))
        yield


def trace(
    function: Callable[..., Any],
    positional: tuple[Any, ...],
    keywords: dict[str, Any],
    chip: Chip,
) -> Traced:
    """Traces a function; arrays in its arguments are arrays, all else is as it is.

    Raises:
      RefusedError: The function raises.
    """
    leaves, tree = jax.tree_util.tree_flatten_with_path((positional, keywords))
    is_array = [_is_array(leaf) for _, leaf in leaves]
    arrays = [leaf for (_, leaf), flag in zip(leaves, is_array, strict=True) if flag]
    abstract = tuple(
        jax.ShapeDtypeStruct(a.shape, jax.dtypes.canonicalize_dtype(a.dtype)) for a in arrays
    )

    def flat(*given: Any) -> Any:
        rest = iter(given)
        values = [
            next(rest) if flag else leaf for (_, leaf), flag in zip(leaves, is_array, strict=True)
        ]
        args, kwargs = jax.tree_util.tree_unflatten(tree, values)
        return function(*args, **kwargs)

    with pretend(chip):
        try:
            closed = jax.make_jaxpr(flat)(*abstract)
        except Exception as error:  # the user's own code, whatever it does
            raise RefusedError(
                f"the function raises {brief(error)}", where=place_of(error),
                hint="it is traced with the shapes, dtypes and Python values that are given",
            ) from error  # fmt: skip
    program = mark_calls(closed)
    names = _labels(
        function, [path for (path, _), flag in zip(leaves, is_array, strict=True) if flag]
    )
    known: list[Value] = [
        Unknown(sources=(name,)) if isinstance(array, jax.ShapeDtypeStruct) else Known(value=array)
        for name, array in zip(names, arrays, strict=True)
    ]
    calls = tuple(numbered(find_calls(program, known)))
    return Traced(program=program, arguments=abstract, calls=calls)


def _is_array(leaf: Any) -> bool:
    return hasattr(leaf, "shape") and hasattr(leaf, "dtype")


def _labels(function: Callable[..., Any], paths: list[Any]) -> list[str]:
    """What the arrays are called: `kv_lens`, or `weights['up']`."""
    names = parameter_names(function)
    found = []
    for path in paths:
        kind, first, *rest = path
        if kind.idx == 0:
            name = names[first.idx] if first.idx < len(names) else f"argument {first.idx}"
        else:
            name = str(first.key)
        found.append(name + jax.tree_util.keystr(tuple(rest)))
    return found


def place_of(error: BaseException) -> str:
    """File and line of the frame that raised, outside of jax where there is one."""
    trace = error.__traceback__
    place = ""
    while trace is not None:
        file = trace.tb_frame.f_code.co_filename
        if "/jax/_src/" not in file and "/rpa_tune/user_kernel/" not in file and file[0] != "<":
            place = f"{file}:{trace.tb_lineno}"
        trace = trace.tb_next
    return place
