"""Checks a kernel against the reference, under the interpreter that finds races.

The one comparison used by the tests, by `rpa-tune verify` and by a sweep before it promotes a
config. A kernel may err at most twice as much as a plain implementation that rounds scores and
probabilities to bfloat16: in the mean square over the batch and, up to one more rounding of the
output, in its worst element. The KV cache must equal the
reference's bit for bit, written tokens and all others.
"""

import contextlib
import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.pallas import tpu as pltpu

from rpa_kernels import inputs, layout, reference, useful
from rpa_kernels.batch import Batch, BatchArrays
from rpa_kernels.family import KernelFamily
from rpa_kernels.problem import Problem
from rpa_kernels.target import Target

# Added to the tolerance of the worst element, relative to the largest output: a rounding of the
# output itself. One element of few is a noisy measure; the mean square needs no such allowance.
ONE_ROUNDING = 2.0**-9
MAX_RMS_RATIO = 2.0
FLOAT32_RELATIVE = 2.0**-12

DMA_MODES = ("on_wait", "eager")


@dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    """What one check found.

    Attributes:
      max_error: Largest absolute difference from the float32 reference.
      baseline_error: The same of the plain low-precision implementation.
      tolerance: What `max_error` may be.
      rms_ratio: Root mean square error, as a share of that of the plain implementation.
      cache_bytes_changed: Bytes of the KV cache that differ from the reference's.
      other_rows_changed: Output rows of other families' sequences or of none that were changed.
      has_race: Whether the interpreter saw a data race.
    """

    max_error: float
    baseline_error: float
    tolerance: float
    rms_ratio: float
    cache_bytes_changed: int
    other_rows_changed: int
    has_race: bool

    @property
    def ok(self) -> bool:
        """Whether the kernel is right."""
        return not self.problems

    @property
    def problems(self) -> tuple[str, ...]:
        """Everything that is wrong, one line each."""
        found = []
        if not self.max_error <= self.tolerance:
            found.append(f"error {self.max_error:.3g} exceeds tolerance {self.tolerance:.3g}")
        if not self.rms_ratio <= MAX_RMS_RATIO:
            found.append(f"mean error is {self.rms_ratio:.3g} times that of plain bfloat16")
        if self.cache_bytes_changed:
            found.append(f"{self.cache_bytes_changed} bytes of the KV cache are wrong")
        if self.other_rows_changed:
            found.append(f"{self.other_rows_changed} output rows of others were changed")
        if self.has_race:
            found.append("data race")
        return tuple(found)


@dataclass(frozen=True, kw_only=True, slots=True)
class Operands:
    """Random operands of one attention call."""

    queries: jax.Array
    keys: jax.Array
    values: jax.Array
    kv_cache: jax.Array
    sinks: jax.Array | None
    arrays: BatchArrays


def draw_operands(problem: Problem, batch: Batch, *, seed: int = 0) -> Operands:
    """Draws operands; every cache element that no sequence may read is poison.

    That is NaN, 127 for int8, and infinity for float8_e5m2, whose many NaNs a copy on the CPU may
    turn into one another.
    """
    rng = np.random.default_rng(seed)
    # Quantised values should fill their grid, as a calibrated model's do.
    spread = 40.0 if problem.kv_dtype == "int8" else 1.0

    def normal(*shape: int, scale: float = 1.0) -> jax.Array:
        return jnp.asarray(rng.standard_normal(shape) * scale, jnp.float32)

    def stored(x: jax.Array) -> jax.Array:
        if problem.kv_dtype == "int8":
            x = jnp.clip(jnp.round(x), -127, 127)
        return x.astype(problem.kv_dtype)

    tokens, heads, dim = problem.max_num_tokens, problem.num_kv_heads, problem.head_dim
    shape = problem.kv_cache_shape
    unread = {"int8": 127.0, "float8_e5m2": np.inf}.get(problem.kv_dtype, np.nan)
    cache = np.full(shape, unread, np.float32)
    lengths = zip(batch.pages(problem), batch.q_lens, batch.kv_lens, strict=True)
    for pages, q_len, kv_len in lengths:
        first = useful.window_start(kv_len - q_len, problem) // shape[1]
        for i, page in enumerate(pages[: layout.cdiv(kv_len, shape[1])]):
            if i < first:
                continue  # behind the window of every query: never fetched
            rows = min(shape[1], kv_len - i * shape[1])
            cache[page, :rows] = rng.standard_normal((rows, *shape[2:])) * spread
    return Operands(
        queries=normal(tokens, problem.num_q_heads, dim).astype(problem.q_dtype),
        keys=stored(normal(tokens, heads, dim, scale=spread)),
        values=stored(normal(tokens, heads, dim, scale=spread)),
        kv_cache=stored(jnp.asarray(cache)),
        sinks=normal(problem.num_q_heads) if problem.has_sinks else None,
        arrays=batch.arrays(problem),
    )


def run_interpreted(
    family: KernelFamily,
    problem: Problem,
    config: Any,
    target: Target,
    operands: Operands,
    *,
    interpret: Any,
) -> tuple[jax.Array, jax.Array]:
    """Runs one family: (output rows [tokens, q heads, head_dim], KV cache)."""
    q, kv_new = inputs.prepare(operands.queries, operands.keys, operands.values, problem)
    arrays = operands.arrays
    out, cache = family.launch(
        q,
        kv_new,
        operands.kv_cache,
        jnp.asarray(arrays.kv_lens),
        jnp.asarray(arrays.page_indices),
        jnp.asarray(arrays.cu_q_lens),
        jnp.asarray(arrays.distribution),
        problem=problem,
        config=config,
        target=target,
        interpret=interpret,
        sinks=operands.sinks,
    )
    return out, cache


def verify(
    family: KernelFamily,
    problem: Problem,
    config: Any,
    batch: Batch,
    *,
    target: Target,
    seed: int = 0,
    dma_mode: str = "on_wait",
) -> Report:
    """Runs one family on one batch and compares it with the reference.

    Args:
      family: The family to check; sequences of other families are left alone.
      problem: Static shapes and features; small ones, the interpreter is slow.
      config: A config that passes `check`.
      batch: Lengths and pages.
      target: The chip whose code paths are taken.
      seed: Seed of the operands.
      dma_mode: `on_wait` runs each copy as late as it may be, `eager` as early.

    Raises:
      ValueError: The config cannot exist for this problem and target.
    """
    if bad := config.check(problem, target):
        raise ValueError(f"{family.name} {config}: {bad}")
    operands = draw_operands(problem, batch, seed=seed)
    interpret = interpreter(dma_mode, target.num_cores)
    try:
        with empty_ranges_overlap_nothing():
            out, cache = run_interpreted(
                family, problem, config, target, operands, interpret=interpret
            )
            out.block_until_ready()
        has_race = found_race()
    finally:
        pltpu.reset_tpu_interpret_mode_state()
    return compare(family, problem, batch, operands, out, cache, has_race=has_race)


def interpreter(dma_mode: str, num_cores: int = 1) -> pltpu.InterpretParams:
    """The TPU interpreter with race detection and NaN in all memory that nobody wrote.

    Args:
      dma_mode: `"eager"` (copies happen when started) or `"on_wait"` (when waited for).
      num_cores: Cores that run side by side; see `Target`.
    """
    fields = {field.name for field in dataclasses.fields(pltpu.InterpretParams)}
    # jax 0.10 always sets a flag and goes on; 0.12 raises unless told to.
    options: dict[str, Any] = {"on_race": "warn"} if "on_race" in fields else {}
    options |= {"dma_execution_mode": dma_mode, "uninitialized_memory": "nan"}
    return pltpu.InterpretParams(detect_races=True, num_cores_or_threads=num_cores, **options)


@contextlib.contextmanager
def empty_ranges_overlap_nothing() -> Iterator[None]:
    """Mends jax's race detector, which takes a copy of no tokens for a read of its first one.

    The kernels start such copies on purpose: a branch around each would cost more than the copy.
    Source: `_slices_overlap` of jax 0.10.2 and 0.12.0, which asks "Do we need to handle
    zero-length slices?".
    """
    from jax._src.pallas.mosaic.interpret import race_detection_state

    overlap = race_detection_state._ranges_overlap

    def is_empty(ranges: tuple[slice | int, ...]) -> bool:
        return any(
            isinstance(r, slice) and r.stop is not None and r.stop <= r.start for r in ranges
        )

    def mended(a: tuple[slice | int, ...], b: tuple[slice | int, ...]) -> bool:
        return not is_empty(a) and not is_empty(b) and overlap(a, b)

    with mock.patch.object(race_detection_state, "_ranges_overlap", mended):
        yield


def found_race() -> bool:
    """Whether the last interpreted kernel raced.

    The flag lives in a private module of jax, and this is the one place that knows where.
    """
    from jax._src.pallas.mosaic.interpret import interpret_pallas_call

    races = interpret_pallas_call.races
    return races is not None and bool(races.races_found)


def compare(
    family: KernelFamily,
    problem: Problem,
    batch: Batch,
    operands: Operands,
    out: jax.Array,
    cache: jax.Array,
    *,
    has_race: bool,
) -> Report:
    """Compares a family's output and cache with the reference's."""
    own = _rows_of(family.name, batch)
    expected, expected_cache = _reference(problem, family.name, batch, operands, "float32")
    baseline, _ = _reference(problem, family.name, batch, operands, "bfloat16")
    finished = np.asarray(inputs.finish(out, problem).astype(jnp.float32))
    error = _largest(finished[own] - expected[own])
    baseline_error = _largest(baseline[own] - expected[own])
    before = np.asarray(inputs.prepare_q(operands.queries, problem)).view(np.uint8)
    after = np.asarray(out).view(np.uint8)
    changed = (before != after).reshape(len(before), -1).any(axis=1)
    wrong = np.asarray(cache).view(np.uint8) != np.asarray(expected_cache).view(np.uint8)
    return Report(
        max_error=error,
        baseline_error=baseline_error,
        tolerance=tolerance_of(problem, baseline_error, _largest(expected[own])),
        rms_ratio=_rms_ratio(finished[own] - expected[own], baseline[own] - expected[own]),
        cache_bytes_changed=int(wrong.sum()),
        other_rows_changed=int(changed[np.setdiff1d(np.arange(len(before)), own)].sum()),
        has_race=has_race,
    )


def tolerance_of(problem: Problem, baseline_error: float, largest: float) -> float:
    """What the worst element may err: twice what the plain low-precision implementation does.

    With queries and cache in float32 that would be far too much, so there it is a fixed share of
    the largest output: what reordering the sums of a few thousand float32 products may change.

    Args:
      problem: Static shapes.
      baseline_error: Largest error of that implementation.
      largest: Largest output.
    """
    if "float32" == problem.q_dtype == problem.kv_dtype:
        return FLOAT32_RELATIVE * largest
    return 2 * baseline_error + ONE_ROUNDING * largest


def _rms_ratio(errors: np.ndarray[Any, Any], baseline: np.ndarray[Any, Any]) -> float:
    """Root mean square of one over the other; 0 where the baseline is exact."""
    if not baseline.any():
        return 0.0
    return float(np.sqrt(np.mean(np.square(errors)) / np.mean(np.square(baseline))))


def _rows_of(family: str, batch: Batch) -> np.ndarray[Any, Any]:
    """Rows of `queries` that a family serves."""
    starts = np.concatenate([[0], np.cumsum(batch.q_lens)]).astype(int)
    rows = [np.arange(starts[i], starts[i + 1]) for i in batch.family_seqs(family)]
    return np.concatenate(rows) if rows else np.zeros(0, int)


def _largest(x: np.ndarray[Any, Any]) -> float:
    """Largest magnitude, NaN included; 0 for no elements."""
    return float(np.max(np.abs(x))) if x.size else 0.0


def _reference(
    problem: Problem, family: str, batch: Batch, operands: Operands, compute_dtype: str
) -> tuple[np.ndarray[Any, Any], jax.Array]:
    """The reference's output for the family's sequences, and the cache they update."""
    out, cache = reference.ragged_paged_attention(
        operands.queries,
        operands.keys,
        operands.values,
        operands.kv_cache,
        operands.arrays,
        problem,
        sinks=operands.sinks,
        compute_dtype=compute_dtype,
        seqs=batch.family_seqs(family),
    )
    return np.asarray(out), cache
