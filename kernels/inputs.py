"""From the public arrays to what the kernels read, and back.

Tokens stay the major dimension, so a block of query tokens is one contiguous copy, and for
head_dim 128 and an even number of query heads a KV head `prepare` only renames dimensions.
"""

from typing import Any

import jax
import jax.numpy as jnp

from rpa_kernels.problem import Problem
from rpa_kernels.settings import under_defaults


def _pad_to(x: jax.Array, axis: int, size: int) -> jax.Array:
    """Zero-pads one axis at its end."""
    if x.shape[axis] == size:
        return x
    pads = [(0, 0)] * x.ndim
    pads[axis] = (0, size - x.shape[axis])
    return jnp.pad(x, pads)


@under_defaults
def prepare_q(queries: jax.Array, problem: Problem) -> jax.Array:
    """Groups query heads by KV head and packs them into 32-bit rows.

    Args:
      queries: [max_num_tokens, num_q_heads, head_dim] in `q_dtype`; rope rows behind are left out.
      problem: Static shapes.

    Returns:
      `problem.q_shape`.
    """
    if problem.is_latent:
        queries = queries[..., : problem.head_dim]
    group = problem.q_heads_per_kv_head
    _, heads, words, pack, lanes = problem.q_shape
    q = queries.reshape(-1, heads, group, problem.head_dim)
    q = _pad_to(_pad_to(q, 2, words * pack), 3, lanes)
    return q.reshape(problem.q_shape)


@under_defaults
def prepare_kv(keys: jax.Array, values: jax.Array, problem: Problem) -> jax.Array:
    """Lays new keys and values out as rows of the KV cache.

    Args:
      keys: [max_num_tokens, num_kv_heads, head_dim] in `kv_dtype`; latents without the heads.
      values: The same shape and dtype; rope rows, [max_num_tokens, rope_dim].
      problem: Static shapes.

    Returns:
      `problem.kv_new_shape`: per token k0, v0, k1, v1, ...; k|v side by side for head_dim 64.
    """
    if problem.is_latent:
        return prepare_latent_rows(keys, values, problem)
    if problem.is_seq_along_lane:
        return _along_lanes(keys, values, problem)
    tokens, words, pack, lanes = problem.kv_new_shape
    if problem.fuses_kv:
        rows = jnp.concatenate([keys, values], axis=-1)
    else:
        rows = jnp.stack([keys, values], axis=2).reshape(tokens, -1, problem.head_dim)
    rows = _pad_to(_pad_to(rows, 1, words * pack), 2, lanes)
    return rows.reshape(problem.kv_new_shape)


def _along_lanes(keys: jax.Array, values: jax.Array, problem: Problem) -> jax.Array:
    """Lays new keys and values out as pages of 128 tokens, in the order of the batch."""
    tiles, heads, words, pack, size = problem.kv_new_shape
    rows = jnp.stack([keys, values], axis=2).reshape(-1, heads, problem.head_dim)
    rows = _pad_to(_pad_to(rows, 0, tiles * size), 2, words * pack)
    return rows.reshape(tiles, size, heads, words, pack).transpose(0, 2, 3, 4, 1)


@under_defaults
def prepare_latent(
    ql_nope: jax.Array,
    q_pe: jax.Array,
    new_kv_c: jax.Array,
    new_k_pe: jax.Array,
    problem: Problem,
) -> tuple[tuple[jax.Array, jax.Array], jax.Array]:
    """Operands of a launch of latent attention.

    Args:
      ql_nope: [num_q_heads, max_num_tokens, head_dim] in `q_dtype`.
      q_pe: [max_num_tokens, num_q_heads, rope_dim] in `q_dtype`.
      new_kv_c: [max_num_tokens, head_dim] in `kv_dtype`.
      new_k_pe: [max_num_tokens, rope_dim] in `kv_dtype`.
      problem: Static shapes.

    Returns:
      ((`problem.q_shape`, `problem.q_rope_shape`), `problem.kv_new_shape`).
    """
    parts = []
    for q, shape in ((ql_nope.swapaxes(0, 1), problem.q_shape), (q_pe, problem.q_rope_shape)):
        _, _, words, pack, lanes = shape
        parts.append(_pad_to(_pad_to(q, 1, words * pack), 2, lanes).reshape(shape))
    return (parts[0], parts[1]), prepare_latent_rows(new_kv_c, new_k_pe, problem)


@under_defaults
def prepare_latent_rows(new_kv_c: jax.Array, new_k_pe: jax.Array, problem: Problem) -> jax.Array:
    """New latents and rope rows, see `prepare_latent`, as rows of the cache."""
    rows, tokens, lanes = problem.kv_new_shape
    latents = _pad_to(new_kv_c, 1, problem.padded_head_dim)
    new = jnp.concatenate([latents, _pad_to(new_k_pe, 1, problem.rope_lanes)], axis=1)
    return _pad_to(new, 0, rows * tokens).reshape(rows, tokens, lanes)


@under_defaults
def finish_latent(out: jax.Array, problem: Problem) -> jax.Array:
    """Undoes what `prepare_latent` did to `ql_nope`, on the kernels' output."""
    tokens, _, words, pack, lanes = problem.q_shape
    out = out.reshape(tokens, words * pack, lanes)
    return out[:, : problem.num_q_heads, : problem.head_dim].swapaxes(0, 1)


def prepare(
    queries: jax.Array, keys: jax.Array, values: jax.Array, problem: Problem
) -> tuple[Any, jax.Array]:
    """Both operands of a kernel launch: (`problem.q_shape`, `problem.kv_new_shape`).

    With latents queries have their rope rows behind them, and the first is two arrays; see
    `prepare_latent`, which takes them as the public function does.
    """
    if problem.is_latent:
        nope, rope = jnp.split(queries, [problem.head_dim], axis=2)
        return prepare_latent(nope.swapaxes(0, 1), rope, keys, values, problem)
    return prepare_q(queries, problem), prepare_kv(keys, values, problem)


@under_defaults
def finish(out: jax.Array, problem: Problem) -> jax.Array:
    """Undoes `prepare_q` on the kernels' output.

    Returns:
      [max_num_tokens, num_q_heads, head_dim] in `problem.resolved_out_dtype`.
    """
    if problem.is_latent:
        return finish_latent(out, problem).swapaxes(0, 1)
    tokens, heads, words, pack, lanes = problem.q_shape
    out = out.reshape(tokens, heads, words * pack, lanes)
    # With K|V in one row the product p @ row has p @ V in the upper half of the lanes.
    first = problem.head_dim if problem.fuses_kv else 0
    out = out[:, :, : problem.q_heads_per_kv_head, first : first + problem.head_dim]
    out = out.reshape(tokens, problem.num_q_heads, problem.head_dim)
    return out.astype(problem.resolved_out_dtype)


@under_defaults
def prepare_lse(lse: jax.Array, problem: Problem) -> jax.Array:
    """Lays a log-sum-exp out as kernels write it.

    Args:
      lse: float32[max_num_tokens, num_q_heads].
      problem: Static shapes.

    Returns:
      `problem.lse_shape`; what is padding there is minus infinity.
    """
    _, heads, words, pack, _ = problem.q_shape
    *_, lanes = problem.lse_shape

    def padded(x: jax.Array, size: int) -> jax.Array:
        return jnp.pad(x, ((0, 0), (0, 0), (0, size - x.shape[2])), constant_values=-jnp.inf)

    by_head = padded(lse.reshape(-1, heads, problem.q_heads_per_kv_head), words * pack)
    by_part = by_head.reshape(-1, heads * words, pack).swapaxes(1, 2)
    return padded(by_part, lanes).reshape(problem.lse_shape)


@under_defaults
def finish_lse(lse: jax.Array, problem: Problem) -> jax.Array:
    """Undoes `prepare_lse` on the kernels' output: float32[max_num_tokens, num_q_heads]."""
    tokens, heads, words, pack, _ = problem.q_shape
    rows = lse[:, :, 0, : heads * words].swapaxes(1, 2).reshape(tokens, heads, words * pack)
    return rows[:, :, : problem.q_heads_per_kv_head].reshape(tokens, problem.num_q_heads)


def no_lse(problem: Problem) -> jax.Array:
    """The log-sum-exp of queries that have seen nothing, for the first launch to write to."""
    return jnp.full(problem.lse_shape, -jnp.inf, jnp.float32)


__all__ = [
    "finish",
    "finish_latent",
    "finish_lse",
    "no_lse",
    "prepare",
    "prepare_kv",
    "prepare_latent",
    "prepare_latent_rows",
    "prepare_lse",
    "prepare_q",
]
