"""The TPU interpreter of Pallas as kernels are checked in: jax's, with its gaps closed.

As it comes (jax 0.10.2 to 0.12.0.1) it lets several faults pass. `watched` closes these gaps, and
this is the one file that knows where in jax's private modules they are:

- All copies share one entry of the vector clocks, so that waiting for one is taken for waiting for
  all. Here each has its own (`VECTOR_CLOCK_SIZE`).
- A copy of nothing is taken for a read of its first element.
- Bytes that nobody waited for are at most printed, and a copy that nobody waited for is not run.
- A wait for bytes that no copy brings never ends.
- An index of -1 is the last element, in every memory, as in Python.
- exp2 of bfloat16 is XLA's for the CPU: wrong by up to 48.7 units in the last place.
- A kernel that raises leaves its error to kernels that are run after it: to the next one in jax
  0.12.0.1, to all in 0.10.2 and 0.11.2 (`findings/jax_failed_callback_fails_the_next.sh`).

One more is left to whoever compiles the call: `reference.EXACT_ROUNDING`.
"""

import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
from jax.experimental.pallas import tpu as pltpu

DMA_MODES = ("on_wait", "eager")

# Entries of a vector clock: one a core, and for copies the rest in turn. Two copies can hide one
# another's races only if a thousand others are started between them, and a wait is nowhere near so
# far behind its copy. Each event costs four bytes an entry.
VECTOR_CLOCK_SIZE = 1024

_Range = tuple[slice | int, ...]


def interpreter(dma_mode: str, num_cores: int = 1) -> pltpu.InterpretParams:
    """The TPU interpreter with race detection and NaN in all memory that nobody wrote.

    Args:
      dma_mode: `"eager"` (copies happen when started) or `"on_wait"` (when waited for).
      num_cores: Cores that run side by side; see `Target`.
    """
    fields = {field.name for field in dataclasses.fields(pltpu.InterpretParams)}
    # jax 0.10 always sets a flag and goes on; 0.12 raises unless told to.
    options: dict[str, Any] = {"on_race": "warn"} if "on_race" in fields else {}
    return pltpu.InterpretParams(
        detect_races=True,
        uninitialized_memory="nan",
        num_cores_or_threads=num_cores,
        vector_clock_size=VECTOR_CLOCK_SIZE,
        **{**options, "dma_execution_mode": dma_mode},
    )


class Faults:
    """What `watched` saw of all kernels that were run within; ask when they are done."""

    def __init__(self) -> None:
        """Nothing seen yet."""
        self._races: list[Any] = []
        self._memories: list[Any] = []

    @property
    def has_race(self) -> bool:
        """Whether two accesses raced."""
        return any(races.races_found for races in self._races)

    @property
    def unwaited_semaphores(self) -> int:
        """DMA semaphores on which a kernel, at its end, has not waited for all bytes copied."""
        return sum(
            _has_more(semaphore, 0, core)
            for memory in self._memories
            for semaphore in memory.sem.values()
            for core in range(memory.num_cores)
        )


@contextlib.contextmanager
def compiled_quickly() -> Iterator[None]:
    """XLA optimises little: compiling takes longer than running.

    An option of a `jit` would not do: the interpreter compiles the program of each core of a chip
    with two by itself, in threads of its own.
    """
    before = jax.config.values["jax_disable_most_optimizations"]
    jax.config.update("jax_disable_most_optimizations", True)
    try:
        yield
    finally:
        jax.config.update("jax_disable_most_optimizations", before)


@contextlib.contextmanager
def watched() -> Iterator[Faults]:
    """Within, interpreted kernels are watched for faults; see the head of this file.

    A kernel must be traced within, and be done (`block_until_ready`) before the end. An index out
    of bounds and a wait that cannot end raise. Whatever fails, the interpreter can be used again.
    """
    from jax._src import dispatch
    from jax._src.lax import lax
    from jax._src.pallas.mosaic.interpret import interpret_pallas_call as interpret
    from jax._src.pallas.mosaic.interpret import race_detection_state as races
    from jax._src.pallas.mosaic.interpret import shared_memory, utils

    faults = Faults()
    with contextlib.ExitStack() as stack:
        for module, name, closed in (
            (interpret, "RaceDetectionState", _kept(races.RaceDetectionState, faults._races)),
            (shared_memory, "SharedMemory", _memory(shared_memory.SharedMemory, faults._memories)),
            (shared_memory, "Semaphore", _semaphore(shared_memory.Semaphore)),
            (races, "_ranges_overlap", _overlap(races._ranges_overlap)),
            (utils, "to_range", _checked(utils.to_range)),
        ):
            stack.enter_context(mock.patch.object(module, name, closed))
        stack.enter_context(mock.patch.dict(interpret._interpret_impls, {lax.exp2_p: exp2}))
        stack.callback(pltpu.reset_tpu_interpret_mode_state)
        try:
            yield faults
        except jax.errors.JaxRuntimeError:
            # The order of callbacks is kept by a token, which holds a failed one's error for good.
            dispatch.runtime_tokens.clear()
            raise


def _kept(base: Any, instances: list[Any]) -> Any:
    """A class like `base` whose instances are kept, which jax forgets at a kernel's end."""

    class Kept(base):  # type: ignore[misc]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            instances.append(self)

    return Kept


def _memory(base: Any, instances: list[Any]) -> Any:
    """Jax's shared memory, with an entry of the vector clocks for each copy in turn."""

    class Memory(_kept(base, instances)):  # type: ignore[misc]
        num_copies = 0

        def get_random_virtual_device_id(self) -> int:
            # jax draws from numpy's global generator: entries that repeat sooner, and that differ
            # from run to run.
            with self.lock:
                self.num_copies += 1
            return int(self.num_cores + self.num_copies % (self.vector_clock_size - self.num_cores))

    return Memory


def _semaphore(base: Any) -> Any:
    """Jax's semaphore, where a wait for DMAs must end, and means the copies that it must mean."""

    class Semaphore(base):  # type: ignore[misc]
        def wait(self, value: Any, global_core_id: Any, **kwargs: Any) -> None:
            if kwargs.get("has_tasks"):
                core = int(global_core_id)
                _run_copies(self, int(value), core)
                with self.cv:
                    if _has_more(self, int(value), core):
                        # Some bytes have arrived, and nobody knows whose: jax's semaphore would
                        # take all copies that are done for waited for.
                        self.count_by_core[core] -= value
                        return
            super().wait(value, global_core_id, **kwargs)

    return Semaphore


def _overlap(overlap: Callable[[_Range, _Range], bool]) -> Callable[[_Range, _Range], bool]:
    """Jax's `_ranges_overlap`, where a range of nothing overlaps nothing.

    The kernels start such copies on purpose: a branch around each would cost more than the copy.
    Source: `_slices_overlap` of jax 0.10.2 and 0.12.0.1, which asks "Do we need to handle
    zero-length slices?".
    """
    return lambda a, b: not _is_empty(a) and not _is_empty(b) and overlap(a, b)


def _checked(to_range: Callable[[Any], _Range]) -> Callable[[Any], _Range]:
    """Jax's `to_range`, which every access to every memory goes through, without negative indices.

    Those of copies of nothing count, too: what an address that does not exist does on the chip is
    said nowhere.
    """

    def checked(transforms: Any) -> _Range:
        found = to_range(transforms)
        if any((r.start if isinstance(r, slice) else r) < 0 for r in found):
            raise IndexError(f"an index is before the start of its buffer: {found}")
        return found

    return checked


def exp2(x: jax.Array, *, accuracy: Any = None) -> jax.Array:
    """2**x, right to about one rounding of the result's dtype; subnormal results are zero.

    XLA's for the CPU (jax 0.10.2) is exp(x * ln 2) in x's own dtype, whose rounded argument costs
    bfloat16 up to 48.7 units in the last place. The chip has an instruction.

    Args:
      x: bfloat16 or float32, any shape.
      accuracy: As `jax.lax.exp2` passes it; without effect.
    """
    del accuracy
    wide = x.astype(jnp.float32)
    whole = jnp.clip(jnp.round(wide), -127, 127)
    # The whole part is exact in the exponent; the rest is at most a half, or overflows.
    exponent = (whole.astype(jnp.int32) + 127) << 23
    of_whole = jax.lax.bitcast_convert_type(exponent, jnp.float32)
    return (of_whole * jnp.exp((wide - whole) * math.log(2))).astype(x.dtype)


def _run_copies(semaphore: Any, num_bytes: int, core: int) -> None:
    """Runs started copies, the last first, until a semaphore counts as many bytes.

    Raises:
      RuntimeError: They bring fewer. Only the core's own copies count on its DMA semaphores.
    """
    while True:
        with semaphore.cv:
            count = int(semaphore.count_by_core[core])
            if count >= num_bytes:
                return
            if not semaphore.tasks[core]:
                raise RuntimeError(
                    f"a wait that never ends: for {num_bytes} bytes on DMA semaphore "
                    f"{semaphore.id} of core {core}, to which copies bring {count}"
                )
            task = semaphore.tasks[core].pop()
        task()


def _has_more(semaphore: Any, num_bytes: int, core: int) -> bool:
    """Whether a core's semaphore counts more than `num_bytes`, or copies to it were not run yet."""
    from jax._src.pallas.mosaic.interpret import utils

    copies = (task.__self__ for task in semaphore.tasks[core])
    return bool(semaphore.count_by_core[core] > num_bytes) or any(
        not _is_empty(utils.to_range(copy.src_transforms)) for copy in copies
    )


def _is_empty(ranges: _Range) -> bool:
    """Whether a range of a buffer holds no element."""
    return any(isinstance(r, slice) and r.stop is not None and r.stop <= r.start for r in ranges)
