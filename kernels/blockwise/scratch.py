"""Named scratch of a blockwise kernel; shapes come from `account.buffers`."""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jax.experimental.pallas import tpu as pltpu

from rpa_kernels.blockwise.account import buffers
from rpa_kernels.blockwise.config import BlockwiseConfig
from rpa_kernels.problem import Problem
from rpa_kernels.target import Target

Ref = Any


class Scratch(NamedTuple):
    """Scratch refs.

    Shapes (rows: query rows of one KV head in a query block; order: granule of tokens, word,
    token, part of the word):
      kv: [num_buffers, bkv_sz, padded words, packing, lanes], fetched KV blocks.
      kv_new: Tiles of new tokens, [num_buffers, tiles, ...]; None but where tokens are written in
        tiles (`latent.in_tiles`), and the shape of kv is another, too.
      q_rope: [2, bq_sz, 1, q words, q packing, rope lanes]; None but with latents.
      q, out: [2, bq_sz, KV heads, q words, q packing, lanes].
      k: [KV heads, bkv_sz, lanes], the KV block at hand, unpacked.
      v: [KV heads, bkv_sz, lanes or more], the same, with `mxu_sums` and ones behind it, or where
        K is if K|V fused; None if fused without `mxu_sums`.
      scaled_q: [KV heads, rows, lanes].
      m: [KV heads, rows, 128], running maximum, equal in all lanes.
      row_sum: [KV heads, rows, 128], running sum of each lane's keys; with `mxu_sums` None.
      acc: [KV heads, rows, lanes of v], running p @ V, and with `mxu_sums` the
        running sum in the lanes of v that hold ones.
      s, p: [rows of `num_slots` chains, bkv_csz], scores and probabilities; more rows for more
        keys; see `attend.py`.
      alpha: [rows of `num_slots` chains, 128], factors for what was accumulated before.
      mask_cap: [rows of `num_masks` chains, bkv_csz], what the scores of an edge are at most,
        laid out as they are: infinity, or `MASKED`; None where no split keeps masks.
      lane_max: [rows of `num_slots` chains, 128], greatest score of each lane; where results have
        buffers, else None.
      sinks: `problem.sinks_shape`, or None.
      lse: [2, bq_sz, q packing, 1, lanes], log-sum-exp of two query blocks, or None.
      unwritten: int32[num_buffers] in SMEM, tokens of each KV buffer on their way to the cache, or
        lane tiles of them.
      unsent: int32[2] in SMEM, tokens of each output buffer on their way out.
      kv_sems, write_sems: [num_buffers]; q_sems, out_sems: [2]; sinks_sem: one.
    """

    kv: Ref
    kv_new: Ref | None
    q: Ref
    q_rope: Ref | None
    out: Ref
    k: Ref
    v: Ref | None
    scaled_q: Ref
    m: Ref
    row_sum: Ref | None
    acc: Ref
    s: Ref
    p: Ref
    alpha: Ref
    mask_cap: Ref | None
    lane_max: Ref | None
    sinks: Ref | None
    lse: Ref | None
    unwritten: Ref
    unsent: Ref
    kv_sems: Ref
    write_sems: Ref
    q_sems: Ref
    out_sems: Ref
    sinks_sem: Ref


def scratch_shapes(problem: Problem, config: BlockwiseConfig, target: Target) -> Scratch:
    """What `pallas_call` allocates."""
    vmem: dict[str, Any] = dict.fromkeys(
        ("kv_new", "q_rope", "v", "row_sum", "mask_cap", "lane_max", "sinks", "lse")
    )
    vmem |= {
        name: pltpu.VMEM(shape, jnp.dtype(dtype))
        for name, (shape, dtype) in buffers(problem, config, target).items()
    }
    return Scratch(
        **vmem,
        unwritten=pltpu.SMEM((config.num_buffers,), jnp.int32),
        unsent=pltpu.SMEM((2,), jnp.int32),
        kv_sems=pltpu.SemaphoreType.DMA((config.num_buffers,)),
        write_sems=pltpu.SemaphoreType.DMA((config.num_buffers,)),
        q_sems=pltpu.SemaphoreType.DMA((2,)),
        out_sems=pltpu.SemaphoreType.DMA((2,)),
        sinks_sem=pltpu.SemaphoreType.DMA,
    )
