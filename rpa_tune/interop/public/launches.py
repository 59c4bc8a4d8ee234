"""What a public function launches for a batch: its Pallas calls and the scalars each one reads.

The function's own code runs on the CPU with a recorder in place of every `pallas_call`. A launch
whose arrays are all known makes metadata for a later one, so its kernel is run under Pallas's plain
interpreter; an attention kernel never runs.
"""

import concurrent.futures
import contextlib
import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from rpa_kernels.batch import Batch
from rpa_kernels.problem import Problem
from rpa_tune.interop.public.operands import PallasCall

_NUM_SCALARS = 4  # int32 arrays, behind the leading ones
_REFUSED = -1  # in every word of the metadata that failed the kernel's own check


class ScheduleTooLongError(ValueError):
    """The function's schedule of a batch is longer than what it keeps of SMEM."""


class Recorder:
    """Records the launches of one bound function; compiles each metadata program once."""

    def __init__(
        self,
        function: Callable[..., Any],
        arguments: tuple[jax.ShapeDtypeStruct, ...],
        pretend: Callable[[], contextlib.AbstractContextManager[None]],
        num_leading: int = 4,
    ) -> None:
        """Takes what is to be recorded.

        Args:
          function: Takes q, k, v, cache, four int32 arrays, and sinks if there are any.
          arguments: Abstract arrays for it.
          pretend: Where it may be traced.
          num_leading: Arrays before the int32 ones.
        """
        self._function = function
        self._arguments = arguments
        self._pretend = pretend
        self._num_leading = num_leading
        self._metadata: dict[str, Callable[..., Any]] = {}

    def calls(self, problem: Problem, batch: Batch) -> tuple[PallasCall, ...]:
        """The launches for a batch, empty ones included.

        Raises:
          ScheduleTooLongError: The function would drop work.
          Exception: What the function raises.
        """
        calls: list[PallasCall] = []
        arrays, leading = batch.arrays(problem), self._num_leading
        scalars = [
            jnp.asarray(a)
            for a in (arrays.kv_lens, arrays.page_indices, arrays.cu_q_lens, arrays.distribution)
        ]

        def call(*arrays: Any) -> None:
            with jax.ensure_compile_time_eval():
                self._function(*arrays[:leading], *scalars, *arrays[leading:])

        with (
            self._pretend(),
            jax.disable_jit(),
            mock.patch.object(pl, "pallas_call", self._stand_in(calls, pl.pallas_call)),
            mock.patch.object(pltpu, "with_memory_space_constraint", lambda x, _: x),
        ):
            rest = self._arguments[leading + _NUM_SCALARS :]
            jax.eval_shape(call, *self._arguments[:leading], *rest)
        return tuple(calls)

    def _stand_in(self, calls: list[PallasCall], real: Any) -> Callable[..., Any]:
        """What is called instead of `pl.pallas_call`; appends to `calls`."""

        def record(kernel: Any, *args: Any, **options: Any) -> Any:
            def run(*arrays: Any) -> Any:
                leaves = jax.tree.leaves(arrays)
                if not any(isinstance(array, jax.core.Tracer) for array in leaves):
                    launch = partial(real, partial(_run_whole, kernel), *args, **options)
                    mesh = jax.sharding.get_abstract_mesh()
                    # A thread has jax's tracing state as at the start: jit is on again. What
                    # `pretend` has patched is patched there too; twice would be too much.
                    with concurrent.futures.ThreadPoolExecutor(1) as thread:
                        return thread.submit(self._make_metadata, launch, arrays, mesh).result()
                calls.append(_recorded(leaves, options))
                # Results derived from a traced array stay abstract: nothing of their size is made.
                seed = next(x for x in leaves if isinstance(x, jax.core.Tracer)).reshape(-1)[0]
                return jax.tree.map(
                    lambda s: jnp.broadcast_to(seed.astype(s.dtype), s.shape),
                    options["out_shape"],
                )

            return run

        return record

    def _make_metadata(
        self, launch: Callable[..., Any], arrays: tuple[Any, ...], mesh: jax.sharding.AbstractMesh
    ) -> Any:
        """Runs a metadata launch; a program that was met before is not compiled again."""
        with jax.sharding.use_abstract_mesh(mesh):
            program = str(jax.make_jaxpr(launch())(*arrays))
            if program not in self._metadata:
                self._metadata[program] = jax.jit(launch(interpret=True))
            made = self._metadata[program](*arrays)
        if all(bool((leaf == _REFUSED).all()) for leaf in jax.tree.leaves(made)):
            raise ScheduleTooLongError("its schedule of this batch is longer than its SMEM holds")
        return made


def _recorded(leaves: list[Any], options: dict[str, Any]) -> PallasCall:
    # A grid size that is an array becomes an operand, before the others.
    grid = options["grid_spec"].grid if "grid_spec" in options else ()
    sizes = [jnp.asarray(size)[None] for size in grid if not isinstance(size, int)]
    found = {
        i: np.asarray(array)
        for i, array in enumerate([*sizes, *leaves])
        if not isinstance(array, jax.core.Tracer) and array.dtype == jnp.int32
    }
    return PallasCall(name=options["name"], operands=found)


def _run_whole(kernel: Callable[..., None], *refs: Any) -> None:
    """A metadata kernel's body, for an interpreter that knows no ranges of dynamic size.

    Metadata is copied out whole: what lies behind the range that the kernel copies is not read. The
    plain interpreter keeps a store within its array, wherever it was to go; so where the kernel's
    own check says that it does not fit, every word is `_REFUSED`.
    """
    checks: list[Any] = []

    def copy(source: Any, destination: Any, semaphore: Any) -> Any:
        if _is_dynamic(source) or _is_dynamic(destination):
            source, destination = source.ref, destination.ref
        elif not checks:
            return real(source, destination, semaphore)
        return _Copy(source=source, destination=destination, checks=checks)

    real = pltpu.make_async_copy
    with (
        mock.patch.object(pltpu, "make_async_copy", copy),
        mock.patch.object(pl, "debug_check", lambda good, _: checks.append(good)),
    ):
        kernel(*refs)


def _is_dynamic(ref: Any) -> bool:
    """Whether a reference is to a range whose size is known only when it runs."""
    return any(
        not isinstance(getattr(index, "size", 1), int)
        for transform in getattr(ref, "transforms", ())
        for index in getattr(transform, "indices", ())
    )


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class _Copy:
    """Copies an array when it is started.

    Attributes:
      source: Reference to it.
      destination: The same, of its shape.
      checks: What must hold for its content to mean anything.
    """

    source: Any
    destination: Any
    checks: list[Any]

    def start(self) -> None:
        good = jnp.all(jnp.asarray(self.checks)) if self.checks else True
        self.destination[...] = jnp.where(good, self.source[...], _REFUSED)

    def wait(self) -> None:
        """It is there already."""
