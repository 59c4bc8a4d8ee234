"""The meaning of ragged paged attention: plain jax.numpy in float32, one sequence at a time.

Written to be read, not to be fast. The kernels are right when they agree with this file within
the tolerance of `verify.py`, and when they change the same bytes of the KV cache.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rpa_kernels import inputs, tree
from rpa_kernels.batch import BatchArrays
from rpa_kernels.ints import cdiv
from rpa_kernels.problem import Problem

# Compiler options under which XLA rounds where the program says so, as the chip's code does. By
# default (jax 0.10.2 to 0.12.0.1, CPU) products, sums and exponentials of bfloat16 values are
# computed in float32 and not rounded if they are widened again.
EXACT_ROUNDING = {"xla_allow_excess_precision": False}


def ragged_paged_attention(
    queries: jax.Array,
    keys: jax.Array,
    values: jax.Array,
    kv_cache: jax.Array,
    arrays: BatchArrays,
    problem: Problem,
    *,
    sinks: jax.Array | None = None,
    compute_dtype: str = "float32",
    seqs: range | None = None,
    tree_mask: jax.Array | None = None,
) -> tuple[jax.Array, ...]:
    """Attends every sequence of a batch to its own pages and writes new K and V to the cache.

    Args:
      queries: [max_num_tokens, num_q_heads, head_dim]; with latents rope rows beside them, head_dim
        + rope_dim.
      keys: New keys, [max_num_tokens, num_kv_heads, head_dim]; new latents, [max_num_tokens,
        head_dim].
      values: New values, as keys; new rope rows, [max_num_tokens, rope_dim].
      kv_cache: `problem.kv_cache_shape`.
      arrays: Lengths and pages.
      problem: Static shapes and features.
      sinks: float32[num_q_heads], logits that join the softmax denominator only.
      compute_dtype: float32, or bfloat16 for the plain low-precision implementation that
        tolerances are measured by.
      seqs: Sequences to attend, or None for all.
      tree_mask: int32[max_num_tokens] with `problem.has_tree_mask`; bit j of a token of a decode
        sequence says that it sees new token j of its sequence.

    Returns:
      (float32[max_num_tokens, num_q_heads, head_dim] with zeros in all other rows,
      the updated KV cache), and with `problem.return_lse` float32[max_num_tokens, num_q_heads],
      the natural logarithm of each query's softmax denominator, minus infinity in all other rows.
    """
    chosen = list(range(int(arrays.distribution[2])) if seqs is None else seqs)
    kv_new = inputs.prepare_kv(keys, values, problem)
    out = (
        jnp.zeros((*queries.shape[:2], problem.head_dim), jnp.float32),
        jnp.full(queries.shape[:2], -jnp.inf, jnp.float32),
    )
    for seq in sequences(chosen, arrays, problem, tree_mask):
        if problem.update_kv_cache:
            kv_cache = write_new(kv_cache, kv_new, seq, problem=problem)
        # Compiler options belong to the outermost jit: within a caller's it decides.
        is_traced = any(isinstance(x, jax.core.Tracer) for x in (queries, kv_cache))
        attend = attend_sequence if is_traced else _attend_exactly
        out = attend(
            out, queries, kv_cache, seq, sinks, problem=problem, compute_dtype=compute_dtype
        )
    attended, lse = out
    return (attended, kv_cache, lse) if problem.return_lse else (attended, kv_cache)


class PaddedSequence(NamedTuple):
    """One sequence, padded as the longest of its batch, so that one compiled function serves all.

    Attributes:
      rows: int32[longest q], its rows in the packed batch; past the end where there is no token.
      positions: int32[longest q], positions of those tokens in its context.
      pages: int32[most pages], physical pages; any past its own.
      kv_len: int32, tokens of context.
      sees_new: bool[longest q, longest q], whether each new token sees each; None without trees.
    """

    rows: np.ndarray[Any, Any]
    positions: np.ndarray[Any, Any]
    pages: np.ndarray[Any, Any]
    kv_len: np.int32
    sees_new: np.ndarray[Any, Any] | None = None


def sequences(
    chosen: list[int], arrays: BatchArrays, problem: Problem, tree_mask: Any = None
) -> list[PaddedSequence]:
    """The chosen sequences of a batch."""
    starts, kv_lens = np.asarray(arrays.cu_q_lens), np.asarray(arrays.kv_lens)
    page_table = np.asarray(arrays.page_indices).reshape(-1, problem.pages_per_seq)
    q_lens = np.diff(starts)
    index = np.arange(max((q_lens[i] for i in chosen), default=1), dtype=np.int32)
    longest = max((int(kv_lens[i]) for i in chosen), default=0)
    most_pages = cdiv(max(1, longest), problem.page_size)
    return [
        PaddedSequence(
            rows=np.where(index < q_lens[i], starts[i] + index, problem.max_num_tokens),
            positions=kv_lens[i] - q_lens[i] + index,
            pages=page_table[i, :most_pages],
            kv_len=kv_lens[i],
            sees_new=tree.sees_new(i, index, arrays, tree_mask) if problem.has_tree_mask else None,
        )
        for i in chosen
    ]


@functools.partial(jax.jit, static_argnames=("problem",))
def write_new(
    kv_cache: jax.Array, kv_new: jax.Array, seq: PaddedSequence, *, problem: Problem
) -> jax.Array:
    """The cache with one sequence's new tokens at their positions."""
    page = seq.pages[seq.positions // problem.page_size]
    page = jnp.where(seq.rows < problem.max_num_tokens, page, problem.num_pages)
    place = seq.positions % problem.page_size
    if problem.is_latent:
        new = kv_new.reshape(-1, problem.k_lanes).at[seq.rows].get(mode="clip")
        row, place = place // problem.row_tokens, place % problem.row_tokens
        return kv_cache.at[page, row, place].set(new, mode="drop")
    if problem.is_seq_along_lane:
        by_token = jnp.moveaxis(kv_new, -1, 1).reshape(-1, *kv_new.shape[1:-1])
        new = by_token.at[seq.rows].get(mode="clip")
        return kv_cache.at[page, ..., place].set(new, mode="drop")
    new = kv_new.at[seq.rows].get(mode="clip")
    return kv_cache.at[page, place].set(new, mode="drop")


def attend_sequence(
    out: tuple[jax.Array, jax.Array],
    queries: jax.Array,
    kv_cache: jax.Array,
    seq: PaddedSequence,
    sinks: jax.Array | None,
    *,
    problem: Problem,
    compute_dtype: str,
) -> tuple[jax.Array, jax.Array]:
    """Output and log-sum-exp with the rows of one sequence filled in.

    Its last query is its last key.
    """
    q = queries.at[seq.rows].get(mode="clip").astype(jnp.float32)
    pages = kv_cache[seq.pages]
    if problem.is_seq_along_lane:
        pages = jnp.moveaxis(pages, -1, 1)
    if problem.is_latent:
        pages = pages.reshape(-1, problem.page_size, problem.k_lanes)
    k, v = split_kv(pages.reshape(-1, *pages.shape[2:]), problem)
    q_pos, k_pos = seq.positions[:, None], jnp.arange(k.shape[0])[None]
    exists = k_pos < seq.kv_len
    seen = exists
    if seq.sees_new is not None:
        place = k_pos[0] - seq.positions[0]
        sees_new = jnp.asarray(seq.sees_new)
        seen &= (place < 0) | sees_new[:, jnp.clip(place, 0, len(seq.positions) - 1)]
    elif problem.causal:
        seen &= k_pos <= q_pos
    if problem.sliding_window is not None:
        seen &= q_pos < k_pos + problem.sliding_window
    if problem.attention_chunk_size is not None:
        size = problem.attention_chunk_size
        seen &= q_pos // size == k_pos // size
    # What no query sees may be anything, NaN included.
    k, v = (jnp.where(seen.any(axis=0)[:, None, None], x, 0) for x in (k, v))
    new = attention(q, k, v, seen, problem, sinks, jnp.dtype(compute_dtype))
    return tuple(  # type: ignore[return-value]
        x.at[seq.rows].set(own, mode="drop") for x, own in zip(out, new, strict=True)
    )


_attend_exactly = jax.jit(
    attend_sequence, static_argnames=("problem", "compute_dtype"), compiler_options=EXACT_ROUNDING
)


def split_kv(rows: jax.Array, problem: Problem) -> tuple[jax.Array, jax.Array]:
    """Takes K and V, each float32[tokens, num_kv_heads, head_dim], out of cache rows.

    With latents they are V, and K is each with its rope row behind it.
    """
    heads, dim = problem.num_kv_heads, problem.head_dim
    if problem.rope_dim is not None:
        rows = rows.astype(jnp.float32)
        rope = rows[:, problem.padded_head_dim :][:, : problem.rope_dim]
        v = rows[:, :dim]
        return jnp.concatenate([v, rope], axis=1)[:, None], v[:, None]
    if problem.is_seq_along_lane:
        pairs = rows.reshape(rows.shape[0], heads, 2, -1).astype(jnp.float32)[..., :dim]
        return pairs[:, :, 0], pairs[:, :, 1]
    rows = rows.reshape(rows.shape[0], -1, problem.padded_head_dim).astype(jnp.float32)
    if problem.fuses_kv:
        return rows[:, :heads, :dim], rows[:, :heads, dim:]
    pairs = rows[:, : 2 * heads].reshape(-1, heads, 2, problem.padded_head_dim)[..., :dim]
    return pairs[:, :, 0], pairs[:, :, 1]


def attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    seen: jax.Array,
    problem: Problem,
    sinks: jax.Array | None,
    compute_dtype: jnp.dtype,
) -> tuple[jax.Array, jax.Array]:
    """Attention of one sequence.

    Args:
      q: float32[queries, num_q_heads, head_dim]; with latents rope_dim more.
      k: float32[keys, num_kv_heads, head_dim], as stored; with latents rope_dim more.
      v: float32[keys, num_kv_heads, head_dim], as stored.
      seen: bool[queries, keys], which key each query sees.
      problem: Features and scales.
      sinks: float32[num_q_heads] or None.
      compute_dtype: Dtype that scores and probabilities are rounded to.

    Returns:
      (float32[queries, num_q_heads, head_dim], zero for a query that sees nothing;
      float32[queries, num_q_heads], the log-sum-exp of its scores and the sink).
    """
    scale = problem.sm_scale * (problem.k_scale or 1.0)
    if problem.quantizes_q:
        # As the public function: rounded to q's own dtype before the grid of the cache.
        info = jnp.finfo(problem.q_dtype)
        q = jax.lax.reduce_precision(q / (problem.q_scale or 1.0), info.nexp, info.nmant)
        q = quantize(q, problem.kv_dtype)
    scale *= problem.q_scale or 1.0
    k, v = (jnp.repeat(x, problem.q_heads_per_kv_head, axis=1) for x in (k, v))
    scores = jnp.einsum("qhd,khd->hqk", q, k, precision="highest").astype(compute_dtype)
    scores = scores * jnp.asarray(scale, scores.dtype)
    if problem.soft_cap is not None:
        scores = problem.soft_cap * jnp.tanh(scores / problem.soft_cap)
    scores = jnp.where(seen, scores, -jnp.inf)
    if sinks is not None:
        column = jnp.broadcast_to(sinks[:, None, None], (*scores.shape[:2], 1))
        scores = jnp.concatenate([scores, column.astype(scores.dtype)], axis=-1)
    p = jax.nn.softmax(scores, axis=-1)[..., : k.shape[0]].astype(compute_dtype)
    p = jnp.where(seen.any(axis=1)[:, None], p, 0)  # no key and no sink is 0 / 0
    lse = jax.nn.logsumexp(scores.astype(jnp.float32), axis=-1)
    out = jnp.einsum("hqk,khd->qhd", p.astype(jnp.float32), v, precision="highest")
    return out.astype(compute_dtype).astype(jnp.float32) * (problem.v_scale or 1.0), lse.T


def quantize(x: jax.Array, dtype: str) -> jax.Array:
    """Clips and rounds float32 values to `dtype`'s grid, returned as float32."""
    if dtype == "int8":
        return jnp.clip(jnp.round(x), -128, 127)
    info = jnp.finfo(dtype)
    return jnp.clip(x, float(info.min), float(info.max)).astype(dtype).astype(jnp.float32)
