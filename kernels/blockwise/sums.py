"""Softmax sums: from the MXU (`mxu_sums`), or by lane.

From the MXU: ones beside V, so that p @ [V | 1] ends with the sums. Where a row holds K|V
(head_dim 64) the ones take K's place in a copy of it: its lanes are multiplied with p anyhow.

By lane: each of 128 lanes sums its own keys, and lanes meet once a query block.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from rpa_kernels.layout import LANES
from rpa_kernels.problem import Problem

Ref = Any


def sum_lanes(problem: Problem) -> Any:
    """Lanes that are one in V, and hold the sums in the accumulator."""
    return pl.ds(0, problem.head_dim) if problem.fuses_kv else pl.ds(problem.padded_head_dim, LANES)


def fill_ones(v: Ref, problem: Problem) -> None:
    """Puts the ones into V, [KV heads, tokens, lanes], once per launch."""
    lanes = sum_lanes(problem)

    @pl.loop(0, v.shape[0])
    def _(head: jax.Array) -> None:
        v[head, :, lanes] = jnp.ones((v.shape[1], lanes.size), v.dtype)


def total(acc: jax.Array, problem: Problem) -> jax.Array:
    """The sums of accumulated rows [rows, lanes of V], equal in all lanes."""
    if not problem.fuses_kv:
        return acc[:, problem.padded_head_dim :]
    lane = jax.lax.broadcasted_iota(jnp.int32, acc.shape, 1)
    half = problem.head_dim
    return jnp.where(lane < half, acc, pltpu.roll(acc, half, 1))


def max_by_lane(scores: jax.Array) -> jax.Array:
    """Maxima of scores [rows, keys], [rows, 128]: of all lanes it is that of all keys."""
    if scores.shape[1] % LANES:
        return _spread(jnp.max(scores, axis=1, keepdims=True))
    return _fold(jnp.maximum, scores)


def sum_by_lane(p: jax.Array) -> jax.Array:
    """Sums of p [rows, keys], [rows, 128]: over all lanes it is that over all keys."""
    if p.shape[1] % LANES:
        return _spread(jnp.sum(p, axis=1, keepdims=True) / LANES)
    return _fold(jnp.add, p)


def over_lanes(by_lane: jax.Array) -> jax.Array:
    """Sums over the lanes of [rows, 128], equal in all lanes."""
    return _spread(jnp.sum(by_lane, axis=1, keepdims=True))


def _spread(x: jax.Array) -> jax.Array:
    return jnp.broadcast_to(x, (x.shape[0], LANES))


def _fold(fold: Callable[[jax.Array, jax.Array], jax.Array], x: jax.Array) -> jax.Array:
    """Folds [rows, n * 128] to [rows, 128], in pairs, so that no chain of operations is long."""
    groups = [x[:, i : i + LANES] for i in range(0, x.shape[1], LANES)]
    while len(groups) > 1:
        pairs = [fold(a, b) for a, b in zip(groups[::2], groups[1::2], strict=False)]
        groups = pairs + groups[2 * len(pairs) :]
    return groups[0]
