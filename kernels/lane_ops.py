"""Sums and maxima over the lanes of a vector register; on values, no references.

Reducing the 128 lanes of a register to one value moves data between lanes, which is slow. Partial
results are therefore kept by lane, as long as they can be, and the lanes meet once at the end.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from rpa_kernels.layout import LANES


def widen(x: jax.Array, width: int) -> jax.Array:
    """Widens [rows, 128] with equal lanes to [rows, width] without moving data between lanes."""
    copies = -(-width // x.shape[1])
    return jnp.concatenate([x] * copies, axis=1)[:, :width] if copies > 1 else x[:, :width]


def max_by_lane(scores: jax.Array) -> jax.Array:
    """Maxima of scores [rows, keys], [rows, 128]: of all lanes it is that of all keys."""
    if scores.shape[1] % LANES:
        return _broadcast(jnp.max(scores, axis=1, keepdims=True))
    return _fold(jnp.maximum, scores)


def sum_by_lane(p: jax.Array) -> jax.Array:
    """Sums of p [rows, keys], [rows, 128]: over all lanes it is that over all keys."""
    if p.shape[1] % LANES:
        return _broadcast(jnp.sum(p, axis=1, keepdims=True) / LANES)
    return _fold(jnp.add, p)


def over_lanes(by_lane: jax.Array) -> jax.Array:
    """Sums over the lanes of [rows, 128], equal in all lanes."""
    return _broadcast(jnp.sum(by_lane, axis=1, keepdims=True))


def _broadcast(x: jax.Array) -> jax.Array:
    """[rows, 1] to [rows, 128]."""
    return jnp.broadcast_to(x, (x.shape[0], LANES))


def _fold(fold: Callable[[jax.Array, jax.Array], jax.Array], x: jax.Array) -> jax.Array:
    """Folds [rows, n * 128] to [rows, 128], in pairs, so that no chain of operations is long."""
    groups = [x[:, i : i + LANES] for i in range(0, x.shape[1], LANES)]
    while len(groups) > 1:
        pairs = [fold(a, b) for a, b in zip(groups[::2], groups[1::2], strict=False)]
        groups = pairs + groups[2 * len(pairs) :]
    return groups[0]
