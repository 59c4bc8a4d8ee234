"""Softmax sums from the MXU (`mxu_sums`): ones beside V, so that p @ [V | 1] ends with the sums.

Where a row holds K|V (head_dim 64) the ones take K's place in a copy of it: its lanes are
multiplied with p anyhow. Without them each lane sums its own keys; see `lane_ops.py`.
"""

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
