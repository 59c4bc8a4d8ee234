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
    kv_new = inputs.prepare_kv(keys, values, problem)
    out = jnp.zeros(queries.shape, jnp.float32)
    page_table = np.asarray(arrays.page_indices).reshape(-1, problem.pages_per_seq)
    for seq in range(int(arrays.distribution[2])) if seqs is None else seqs:
        q_start, q_end = int(arrays.cu_q_lens[seq]), int(arrays.cu_q_lens[seq + 1])
        q_len, kv_len = q_end - q_start, int(arrays.kv_lens[seq])
        pages = page_table[seq, : layout.cdiv(kv_len, problem.page_size)]
        rows = kv_cache[pages].reshape(-1, *problem.kv_cache_shape[2:])
        if problem.update_kv_cache:
            rows = rows.at[kv_len - q_len : kv_len].set(kv_new[q_start:q_end])
            kv_cache = kv_cache.at[pages].set(rows.reshape(-1, *problem.kv_cache_shape[1:]))
        k, v = split_kv(rows[:kv_len], problem)
        seq_out = attention(
            queries[q_start:q_end], k, v, problem, sinks=sinks, compute_dtype=compute_dtype
        )
        out = out.at[q_start:q_end].set(seq_out)
    return out, kv_cache


def split_kv(rows: jax.Array, problem: Problem) -> tuple[jax.Array, jax.Array]:
    """Takes K and V, each [tokens, num_kv_heads, head_dim], out of cache rows."""
    heads, dim = problem.num_kv_heads, problem.head_dim
    rows = rows.reshape(rows.shape[0], -1, problem.padded_head_dim)
    if problem.fuses_kv:
        return rows[:, :heads, :dim], rows[:, :heads, dim:]
    pairs = rows[:, : 2 * heads].reshape(-1, heads, 2, problem.padded_head_dim)[..., :dim]
    return pairs[:, :, 0], pairs[:, :, 1]


@functools.partial(jax.jit, static_argnames=("problem", "compute_dtype"))
def attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    problem: Problem,
    *,
    sinks: jax.Array | None,
    compute_dtype: str,
) -> jax.Array:
    """Attention of one sequence whose last query is its last key.

    Args:
      q: [q_len, num_q_heads, head_dim].
      k: [kv_len, num_kv_heads, head_dim], as stored.
      v: The same shape.
      problem: Features and scales.
      sinks: float32[num_q_heads] or None.
      compute_dtype: Dtype that scores and probabilities are rounded to.

    Returns:
      float32[q_len, num_q_heads, head_dim].
    """
    group = problem.q_heads_per_kv_head
    scale = problem.sm_scale * (problem.k_scale or 1.0)
    q = q.astype(jnp.float32)
    if problem.q_scale is not None:
        q = quantize(q / problem.q_scale, problem.kv_dtype)
        scale *= problem.q_scale
    k = jnp.repeat(k.astype(jnp.float32), group, axis=1)
    v = jnp.repeat(v.astype(jnp.float32), group, axis=1)
    scores = jnp.einsum("qhd,khd->hqk", q, k, precision="highest").astype(compute_dtype)
    scores = scores * jnp.asarray(scale, scores.dtype)
    if problem.soft_cap is not None:
        scores = problem.soft_cap * jnp.tanh(scores / problem.soft_cap)
    q_pos = k.shape[0] - q.shape[0] + jnp.arange(q.shape[0])[:, None]
    k_pos = jnp.arange(k.shape[0])[None]
    if problem.causal:
        scores = jnp.where(k_pos <= q_pos, scores, -jnp.inf)
    if problem.sliding_window is not None:
        scores = jnp.where(q_pos < k_pos + problem.sliding_window, scores, -jnp.inf)
    if sinks is not None:
        column = jnp.broadcast_to(sinks[:, None, None], (*scores.shape[:2], 1))
        scores = jnp.concatenate([scores, column.astype(scores.dtype)], axis=-1)
    p = jax.nn.softmax(scores, axis=-1)[..., : k.shape[0]].astype(compute_dtype)
    out = jnp.einsum("hqk,khd->qhd", p.astype(jnp.float32), v, precision="highest")
    out = out.astype(compute_dtype).astype(jnp.float32)
    return out * (problem.v_scale or 1.0)


def quantize(x: jax.Array, dtype: str) -> jax.Array:
    """Clips and rounds float32 values to `dtype`'s grid, returned as float32."""
    if dtype == "int8":
        return jnp.clip(jnp.round(x), -128, 127)
    info = jnp.finfo(dtype)
    return jnp.clip(x, float(info.min), float(info.max)).astype(dtype).astype(jnp.float32)
