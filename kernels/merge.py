"""Joins attention over parts of a context into attention over all of it.

Each part is a call with `return_lse`: its output is a mean of values, weighted by exponentials of
scores, and its log-sum-exp says what all the weights were. The whole is the mean of the parts'
outputs, weighted likewise. A part that saw nothing has minus infinity, and no weight.

An attention sink counts once: give minus infinity for it to all parts but one.
"""

from collections.abc import Hashable

import jax
import jax.numpy as jnp

from rpa_kernels.settings import under_defaults


@under_defaults
def merge_attention(outputs: jax.Array, lse: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Attention over all parts of a context, from that over each.

    Args:
      outputs: [parts, tokens, num_q_heads, head_dim].
      lse: float32[parts, tokens, num_q_heads].

    Returns:
      (output [tokens, num_q_heads, head_dim] in the dtype of `outputs`, zero where no part saw
      anything; log-sum-exp float32[tokens, num_q_heads]).
    """
    most = jnp.max(lse, axis=0)
    weights = _weights(lse, most)
    total = jnp.sum(weights, axis=0)
    merged = jnp.sum(_weighted(outputs, weights), axis=0)
    return _divided(merged, total, outputs.dtype), _joined(most, total)


@under_defaults
def merge_over_axis(
    output: jax.Array, lse: jax.Array, axis_name: Hashable
) -> tuple[jax.Array, jax.Array]:
    """The same within `shard_map`: each device along a mesh axis has one part, and gets the whole.

    Two all-reduces: of the maxima, and of the weighted outputs with their weights.

    Args:
      output: [tokens, num_q_heads, head_dim], this device's part.
      lse: float32[tokens, num_q_heads].
      axis_name: Axis of the mesh, or several.
    """
    most = jax.lax.pmax(lse, axis_name)
    weights = _weights(lse, most)
    merged, total = jax.lax.psum((_weighted(output, weights), weights), axis_name)
    return _divided(merged, total, output.dtype), _joined(most, total)


def _weights(lse: jax.Array, most: jax.Array) -> jax.Array:
    """What each part weighs, relative to the one that weighs most; 0 where none weighs anything."""
    return jnp.where(lse == -jnp.inf, 0.0, jnp.exp(lse - most))


def _weighted(outputs: jax.Array, weights: jax.Array) -> jax.Array:
    return outputs.astype(jnp.float32) * weights[..., None]


def _divided(merged: jax.Array, total: jax.Array, dtype: jnp.dtype) -> jax.Array:
    return jnp.where(total > 0, 1 / total, 0.0)[..., None] * merged


def _joined(most: jax.Array, total: jax.Array) -> jax.Array:
    return most + jnp.log(total)


__all__ = ["merge_attention", "merge_over_axis"]
