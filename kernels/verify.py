"""Checks a kernel against the reference, under the interpreter that `watch.py` makes strict.

The one comparison used by the tests, by `rpa-tune verify` and by a sweep before it promotes a
config. A kernel may err at most twice as much as a plain implementation that rounds scores and
probabilities to bfloat16: in the mean square over the batch and, up to one more rounding of the
output, in its worst element. So may a log-sum-exp. The KV cache must equal the
reference's bit for bit, written tokens and all others.

Errors are those of the kernel's own roundings on a chip whose exponential is right to one rounding:
the interpreter rounds where the chip's code does, and products are summed in float32 in some order.
"""

import functools
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rpa_kernels import inputs, reference, tree
from rpa_kernels.batch import Batch, BatchArrays
from rpa_kernels.family import KernelFamily
from rpa_kernels.ints import cdiv
from rpa_kernels.problem import Problem
from rpa_kernels.target import Target
from rpa_kernels.watch import Faults, compiled_quickly, interpreter, watched
from rpa_kernels.window import window_start

# Added to the tolerance of the worst element, relative to the largest output: a rounding of the
# output itself. One element of few is a noisy measure; the mean square needs no such allowance.
ONE_ROUNDING = 2.0**-9
MAX_RMS_RATIO = 2.0
FLOAT32_RELATIVE = 2.0**-12
# Added to the tolerance of a log-sum-exp, in natural-log units: sums and logarithms in float32.
LSE_ROUNDING = 2.0**-12
# What rows of a log-sum-exp hold before a launch that leaves them alone; no launch gives it.
UNTOUCHED = 1234.5


@dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    """What one check found.

    Attributes:
      max_error: Largest absolute difference from the float32 reference.
      baseline_error: The same of the plain low-precision implementation.
      tolerance: What `max_error` may be.
      rms_ratio: Root mean square error, as a share of that of the plain implementation.
      lse_error: Largest absolute difference of a log-sum-exp; 0 without.
      lse_tolerance: What `lse_error` may be.
      cache_bytes_changed: Bytes of the KV cache that differ from the reference's.
      other_rows_changed: Output rows of other families' sequences or of none that were changed.
      has_race: Whether the interpreter saw a data race.
      unwaited_semaphores: DMA semaphores on which not all bytes were waited for.
    """

    max_error: float
    baseline_error: float
    tolerance: float
    rms_ratio: float
    cache_bytes_changed: int
    other_rows_changed: int
    has_race: bool
    unwaited_semaphores: int
    lse_error: float = 0.0
    lse_tolerance: float = 0.0

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
        if not self.lse_error <= self.lse_tolerance:
            found.append(
                f"log-sum-exp error {self.lse_error:.3g} exceeds tolerance {self.lse_tolerance:.3g}"
            )
        if self.cache_bytes_changed:
            found.append(f"{self.cache_bytes_changed} bytes of the KV cache are wrong")
        if self.other_rows_changed:
            found.append(f"{self.other_rows_changed} output rows of others were changed")
        if self.has_race:
            found.append("data race")
        if self.unwaited_semaphores:
            found.append(
                f"not all bytes copied were waited for on {self.unwaited_semaphores} DMA semaphores"
            )
        return tuple(found)


@dataclass(frozen=True, kw_only=True, slots=True)
class Operands:
    """Random operands of one attention call, as `reference.ragged_paged_attention` has them."""

    queries: jax.Array
    keys: jax.Array
    values: jax.Array
    kv_cache: jax.Array
    sinks: jax.Array | None
    arrays: BatchArrays
    tree_mask: jax.Array | None = None


def operand_shapes(problem: Problem) -> tuple[tuple[int, ...], ...]:
    """Shapes of queries, keys and values; see `reference.ragged_paged_attention`."""
    tokens, heads, dim = problem.max_num_tokens, problem.num_q_heads, problem.head_dim
    if problem.rope_dim is not None:
        return (tokens, heads, dim + problem.rope_dim), (tokens, dim), (tokens, problem.rope_dim)
    new = (tokens, problem.num_kv_heads, dim)
    return (tokens, heads, dim), new, new


def draw_operands(problem: Problem, batch: Batch, *, seed: int = 0) -> Operands:
    """Draws operands; every cache element that no sequence may read is poison.

    That is NaN, 127 for int8, and infinity for float8_e5m2, whose many NaNs a copy on the CPU may
    turn into one another.
    """
    rng = np.random.default_rng(seed)
    # Quantised values should fill their grid, as a calibrated model's do.
    spread, size = 40.0 if problem.kv_dtype == "int8" else 1.0, problem.page_size

    def normal(*shape: int, scale: float = 1.0) -> jax.Array:
        return jnp.asarray(rng.standard_normal(shape) * scale, jnp.float32)

    def stored(x: jax.Array) -> jax.Array:
        if problem.kv_dtype == "int8":
            x = jnp.clip(jnp.round(x), -127, 127)
        return x.astype(problem.kv_dtype)

    q_shape, *new_shapes = operand_shapes(problem)
    unread = {"int8": 127.0, "float8_e5m2": np.inf}.get(problem.kv_dtype, np.nan)
    cache = np.full(problem.kv_cache_shape, unread, np.float32)
    # Token by token: a view where tokens are the last dimension.
    by_token = np.moveaxis(cache, -1, 1) if problem.is_seq_along_lane else cache
    if problem.is_latent:
        by_token = cache.reshape(-1, size, problem.k_lanes)
    lengths = zip(batch.pages(problem), batch.q_lens, batch.kv_lens, strict=True)
    for pages, q_len, kv_len in lengths:
        first = window_start(kv_len - q_len, problem) // size
        for i, page in enumerate(pages[: cdiv(kv_len, size)]):
            if i < first:
                continue  # behind the window of every query: never fetched
            rows = min(size, kv_len - i * size)
            drawn = rng.standard_normal((rows, *by_token.shape[2:]))
            by_token[page, :rows] = drawn * spread
    return Operands(
        queries=normal(*q_shape).astype(problem.q_dtype),
        keys=stored(normal(*new_shapes[0], scale=spread)),
        values=stored(normal(*new_shapes[1], scale=spread)),
        kv_cache=stored(jnp.asarray(cache)),
        sinks=normal(problem.num_q_heads) if problem.has_sinks else None,
        arrays=batch.arrays(problem),
        tree_mask=tree.draw(problem, rng),
    )


def untouched_lse(problem: Problem) -> jax.Array | None:
    """What a launch that is compared is given to write its log-sum-exp to; None for none."""
    return jnp.full(problem.lse_shape, UNTOUCHED, jnp.float32) if problem.return_lse else None


def run_interpreted(
    family: KernelFamily,
    problem: Problem,
    config: Any,
    target: Target,
    operands: Operands,
    *,
    interpret: Any,
) -> tuple[jax.Array, ...]:
    """Runs one family: (output rows [tokens, q heads, head_dim], KV cache), and a log-sum-exp.

    The third is there with `problem.return_lse`, and `UNTOUCHED` where the family has no queries.

    Args:
      family: The family to run.
      problem: Static shapes and features.
      config: A config that passes `check`.
      target: The chip whose code paths are taken.
      operands: What is attended to.
      interpret: What `pallas_call` takes.
    """
    q, kv_new = inputs.prepare(operands.queries, operands.keys, operands.values, problem)
    arrays = operands.arrays
    launch = functools.partial(
        family.launch, problem=problem, config=config, target=target, interpret=interpret
    )
    found: tuple[jax.Array, ...] = jax.jit(launch, compiler_options=reference.EXACT_ROUNDING)(
        q,
        kv_new,
        operands.kv_cache,
        arrays.kv_lens,
        arrays.page_indices,
        arrays.cu_q_lens,
        arrays.distribution,
        sinks=operands.sinks,
        lse=untouched_lse(problem),
        tree_mask=operands.tree_mask,
    )
    return found


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
      Exception: What jax raises for an index out of bounds, or a wait that never ends.
    """
    if bad := family.check(problem, config, target):
        raise ValueError(f"{family.name} {config}: {bad}")
    operands = draw_operands(problem, batch, seed=seed)
    operands = replace(operands, arrays=spoil_unused(operands.arrays, problem))
    interpret = interpreter(dma_mode, target.num_cores)
    with compiled_quickly():
        with watched() as faults:
            found = jax.block_until_ready(
                run_interpreted(family, problem, config, target, operands, interpret=interpret)
            )
        return compare(family, problem, batch, operands, found, faults=faults)


def spoil_unused(arrays: BatchArrays, problem: Problem) -> BatchArrays:
    """The same batch, with what no index may be in all entries that no kernel may use.

    In turn -1, one past the end, and the largest and the least int32: for pages behind a sequence's
    last or before the first that any of its queries sees, and for contexts of no sequence.
    """
    num_seqs = int(arrays.distribution[2])
    q_lens, kv_lens = np.diff(arrays.cu_q_lens), arrays.kv_lens
    used = np.zeros((problem.max_num_seqs, problem.pages_per_seq), bool)
    for i in range(num_seqs):
        first = window_start(int(kv_lens[i] - q_lens[i]), problem) // problem.page_size
        used[i, first : cdiv(int(kv_lens[i]), problem.page_size)] = True

    def spoiled(entries: Any, unused: Any, end: int) -> Any:
        hostile = np.resize(np.asarray((-1, end, 2**31 - 1, -(2**31)), np.int32), entries.size)
        return np.where(unused.reshape(-1), hostile, entries)

    seqs = np.arange(problem.max_num_seqs)
    return replace(
        arrays,
        page_indices=spoiled(arrays.page_indices, ~used, problem.num_pages),
        kv_lens=spoiled(kv_lens, seqs >= num_seqs, problem.max_context_tokens + 1),
    )


def compare(
    family: KernelFamily,
    problem: Problem,
    batch: Batch,
    operands: Operands,
    found: tuple[jax.Array, ...],
    *,
    faults: Faults | None = None,
) -> Report:
    """Compares a family's output and cache with the reference's.

    Args:
      family: The family that ran.
      problem: Static shapes and features.
      batch: Lengths and pages.
      operands: What it was given.
      found: What it returned: output [tokens, KV heads, q words, q packing, padded head_dim], KV
        cache, and with `problem.return_lse` a log-sum-exp, `UNTOUCHED` in other rows.
      faults: What was seen of it, if it was interpreted.
    """
    out, cache, *lse = found
    own = _rows_of(family.name, batch)
    others = np.setdiff1d(np.arange(problem.max_num_tokens), own)
    expected, expected_cache, *wanted = _reference(problem, family.name, batch, operands, "float32")
    baseline, _, *plain = _reference(problem, family.name, batch, operands, "bfloat16")
    if problem.resolved_out_dtype.startswith("float8"):
        baseline = np.asarray(reference.quantize(baseline, problem.resolved_out_dtype))
    finished = np.asarray(inputs.finish(out, problem).astype(jnp.float32))
    error = _largest(finished[own] - expected[own])
    baseline_error = _largest(baseline[own] - expected[own])
    before = np.asarray(inputs.prepare_q(operands.queries, problem)).view(np.uint8)
    after = np.asarray(out).view(np.uint8)
    changed = (before != after).reshape(len(before), -1).any(axis=1)
    lse_error = lse_tolerance = 0.0
    if lse:
        given = np.asarray(inputs.finish_lse(lse[0], problem))
        changed |= (np.asarray(lse[0]) != UNTOUCHED).reshape(len(before), -1).any(axis=1)
        lse_error = _largest(_distance(given[own], wanted[0][own]))
        plain_error = _largest(_distance(plain[0][own], wanted[0][own]))
        lse_tolerance = 2 * plain_error + LSE_ROUNDING
    wrong = np.asarray(cache).view(np.uint8) != np.asarray(expected_cache).view(np.uint8)
    return Report(
        max_error=error,
        baseline_error=baseline_error,
        tolerance=tolerance_of(problem, baseline_error, _largest(expected[own])),
        rms_ratio=_rms_ratio(finished[own] - expected[own], baseline[own] - expected[own]),
        cache_bytes_changed=int(wrong.sum()),
        other_rows_changed=int(changed[others].sum()),
        lse_error=lse_error,
        lse_tolerance=lse_tolerance,
        has_race=faults is not None and faults.has_race,
        unwaited_semaphores=0 if faults is None else faults.unwaited_semaphores,
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


def _distance(a: np.ndarray[Any, Any], b: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Absolute differences; none of two infinities that are equal."""
    with np.errstate(invalid="ignore"):
        return np.where(a == b, 0.0, np.abs(a - b))


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
) -> tuple[Any, ...]:
    """The reference's output for the family's sequences, the cache they update, and what more."""
    out, cache, *lse = reference.ragged_paged_attention(
        operands.queries,
        operands.keys,
        operands.values,
        operands.kv_cache,
        operands.arrays,
        problem,
        sinks=operands.sinks,
        compute_dtype=compute_dtype,
        seqs=batch.family_seqs(family),
        tree_mask=operands.tree_mask,
    )
    return np.asarray(out), cache, *map(np.asarray, lse)
