"""The meaning of ragged paged attention: plain jax.numpy in float32, one sequence at a time.

Written to be read, not to be fast. The kernels are right when they agree with this file within
the tolerance of `verify.py`, and when they change the same bytes of the KV cache.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from rpa_kernels import inputs, layout
from rpa_kernels.batch import BatchArrays
from rpa_kernels.problem import Problem


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
) -> tuple[jax.Array, jax.Array]:
    """Attends every sequence of a batch to its own pages and writes new K and V to the cache.

    Args:
      queries: [max_num_tokens, num_q_heads, head_dim].
      keys: New keys, [max_num_tokens, num_kv_heads, head_dim].
      values: New values, the same shape.
      kv_cache: `problem.kv_cache_shape`.
      arrays: Lengths and pages.
      problem: Static shapes and features.
      sinks: float32[num_q_heads], logits that join the softmax denominator only.
      compute_dtype: float32, or bfloat16 for the plain low-precision implementation that
        tolerances are measured by.
      seqs: Sequences to attend, or None for all.

    Returns:
      (float32[max_num_tokens, num_q_heads, head_dim] with zeros in all other rows,
      the updated KV cache).
    """
    chosen = list(range(int(arrays.distribution[2])) if seqs is None else seqs)
    starts = np.asarray(arrays.cu_q_lens)
    kv_lens = np.asarray(arrays.kv_lens)
    page_table = np.asarray(arrays.page_indices).reshape(-1, problem.pages_per_seq)
    # Every sequence is padded to the longest, so that one compiled function serves all.
    most_q = max((int(starts[i + 1] - starts[i]) for i in chosen), default=1)
    most_pages = max((layout.cdiv(int(kv_lens[i]), problem.page_size) for i in chosen), default=1)
    kv_new = inputs.prepare_kv(keys, values, problem)
    out = jnp.zeros(queries.shape, jnp.float32)
    for i in chosen:
        lens = (starts[i], starts[i + 1] - starts[i], kv_lens[i])
        pages = page_table[i, :most_pages]
        if problem.update_kv_cache:
            kv_cache = write_new(kv_cache, kv_new, pages, *lens, problem=problem, most_q=most_q)
        out = attend_sequence(
            out, queries, kv_cache, pages, *lens, sinks, problem=problem, most_q=most_q,
            compute_dtype=compute_dtype,
        )  # fmt: skip
    return out, kv_cache


def token_rows(
    q_start: jax.Array, q_len: jax.Array, most_q: int, num_tokens: int
) -> tuple[jax.Array, jax.Array]:
    """Rows of a sequence's query tokens and their number in it; padding gets a row past the end."""
    index = jnp.arange(most_q)
    return jnp.where(index < q_len, q_start + index, num_tokens), index


@functools.partial(jax.jit, static_argnames=("problem", "most_q"))
def write_new(
    kv_cache: jax.Array,
    kv_new: jax.Array,
    pages: jax.Array,
    q_start: jax.Array,
    q_len: jax.Array,
    kv_len: jax.Array,
    *,
    problem: Problem,
    most_q: int,
) -> jax.Array:
    """The cache with one sequence's new tokens at positions [kv_len - q_len, kv_len)."""
    rows, index = token_rows(q_start, q_len, most_q, kv_new.shape[0])
    position = kv_len - q_len + index
    page = jnp.where(index < q_len, pages[position // problem.page_size], problem.num_pages)
    new = kv_new.at[rows].get(mode="clip")
    return kv_cache.at[page, position % problem.page_size].set(new, mode="drop")


@functools.partial(jax.jit, static_argnames=("problem", "most_q", "compute_dtype"))
def attend_sequence(
    out: jax.Array,
    queries: jax.Array,
    kv_cache: jax.Array,
    pages: jax.Array,
    q_start: jax.Array,
    q_len: jax.Array,
    kv_len: jax.Array,
    sinks: jax.Array | None,
    *,
    problem: Problem,
    most_q: int,
    compute_dtype: str,
) -> jax.Array:
    """`out` with the rows of one sequence, whose last query is its last key, filled in."""
    rows, index = token_rows(q_start, q_len, most_q, queries.shape[0])
    q = queries.at[rows].get(mode="clip").astype(jnp.float32)
    k, v = split_kv(kv_cache[pages].reshape(-1, *problem.kv_cache_shape[2:]), problem)
    q_pos, k_pos = (kv_len - q_len + index)[:, None], jnp.arange(k.shape[0])[None]
    seen = k_pos < kv_len
    if problem.causal:
        seen &= k_pos <= q_pos
    if problem.sliding_window is not None:
        seen &= q_pos < k_pos + problem.sliding_window
    # What lies behind the context may be anything, NaN included.
    k, v = (jnp.where((k_pos < kv_len)[0, :, None, None], x, 0) for x in (k, v))
    new = attention(q, k, v, seen, problem, sinks, jnp.dtype(compute_dtype))
    return out.at[rows].set(new, mode="drop")


def split_kv(rows: jax.Array, problem: Problem) -> tuple[jax.Array, jax.Array]:
    """Takes K and V, each float32[tokens, num_kv_heads, head_dim], out of cache rows."""
    heads, dim = problem.num_kv_heads, problem.head_dim
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
) -> jax.Array:
    """Attention of one sequence.

    Args:
      q: float32[queries, num_q_heads, head_dim].
      k: float32[keys, num_kv_heads, head_dim], as stored.
      v: The same shape.
      seen: bool[queries, keys], which key each query sees.
      problem: Features and scales.
      sinks: float32[num_q_heads] or None.
      compute_dtype: Dtype that scores and probabilities are rounded to.

    Returns:
      float32[queries, num_q_heads, head_dim].
    """
    scale = problem.sm_scale * (problem.k_scale or 1.0)
    if problem.q_scale is not None:
        q = quantize(q / problem.q_scale, problem.kv_dtype)
        scale *= problem.q_scale
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
    out = jnp.einsum("hqk,khd->qhd", p.astype(jnp.float32), v, precision="highest")
    return out.astype(compute_dtype).astype(jnp.float32) * (problem.v_scale or 1.0)


def quantize(x: jax.Array, dtype: str) -> jax.Array:
    """Clips and rounds float32 values to `dtype`'s grid, returned as float32."""
    if dtype == "int8":
        return jnp.clip(jnp.round(x), -128, 127)
    info = jnp.finfo(dtype)
    return jnp.clip(x, float(info.min), float(info.max)).astype(dtype).astype(jnp.float32)
