"""Named scratch of the decode kernel; shapes come from `account.buffers`."""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jax.experimental.pallas import tpu as pltpu

from rpa_kernels.decode.account import buffers
from rpa_kernels.decode.config import DecodeConfig
from rpa_kernels.latent import in_tiles
from rpa_kernels.problem import Problem
from rpa_kernels.target import Target

Ref = Any


class Scratch(NamedTuple):
    """Scratch refs.

    Shapes (T: query tokens of a sequence, C: `bq_sz` times T, G: `seqs_per_step`, rows: T times
    the padded query heads of one head group):
      kv: [num_buffers, G * bkv_sz + 1, padded words, packing, lanes], fetched KV blocks.
      kv_new: [2, C + T, words, packing, lanes], new keys and values of a block of sequences.
      kv_out: Tiles on their way to the cache, of each item; None but where tokens are written in
        tiles (`latent.in_tiles`), and the shapes of kv and kv_new are others, too.
      q, out: [2, C + T, KV heads, q words, q packing, lanes].
      q_rope: The same of rope rows; None but with latents.
      scaled_q: [G, head groups, rows, lanes], queries of the step's items.
      item_m, item_row_sum, item_acc: [G, head groups, rows, ...], softmax state of each item.
      m, sums, acc: [head groups, rows, ...], softmax state of the sequence the step began in.
      sinks: `problem.sinks_shape`, or None.
      lse: [2, C + T, q packing, 1, lanes], log-sum-exp of a block of sequences, or None.
      progress: int32[2] in SMEM; see `seq_blocks.SeqBlocks`.
      unwritten: int32[num_buffers] in SMEM, tiles of kv_out on their way; None without it.
      kv_sems: [num_buffers]; in_sems, out_sems: [2]; write_sems: [2], or [num_buffers] for kv_out.
    """

    kv: Ref
    kv_new: Ref
    kv_out: Ref | None
    q: Ref
    q_rope: Ref | None
    out: Ref
    scaled_q: Ref
    item_m: Ref
    item_row_sum: Ref
    item_acc: Ref
    m: Ref
    row_sum: Ref
    acc: Ref
    sinks: Ref | None
    lse: Ref | None
    progress: Ref
    unwritten: Ref | None
    kv_sems: Ref
    in_sems: Ref
    out_sems: Ref
    write_sems: Ref


def scratch_shapes(problem: Problem, config: DecodeConfig, target: Target) -> Scratch:
    """What `pallas_call` allocates."""
    vmem: dict[str, Any] = dict.fromkeys(("sinks", "lse", "kv_out", "q_rope"))
    vmem |= {
        name: pltpu.VMEM(shape, jnp.dtype(dtype))
        for name, (shape, dtype) in buffers(problem, config, target).items()
    }
    tiles = in_tiles(problem)
    return Scratch(
        **vmem,
        progress=pltpu.SMEM((2,), jnp.int32),
        unwritten=pltpu.SMEM((config.num_buffers,), jnp.int32) if tiles else None,
        kv_sems=pltpu.SemaphoreType.DMA((config.num_buffers,)),
        in_sems=pltpu.SemaphoreType.DMA((2,)),
        out_sems=pltpu.SemaphoreType.DMA((2,)),
        write_sems=pltpu.SemaphoreType.DMA((config.num_buffers if tiles else 2,)),
    )
