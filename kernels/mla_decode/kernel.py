"""The decode kernel of latents: `decode/kernel.py` but for how a step attends to its items.

All heads of latents are rows of one chain, and a chain of a compute block is long: its first product
has no vector work beside it and its last softmax no product, which is a third of a block of two
chains. So compute blocks that all items see whole are attended to several at once, laid out as one
block of as many chains. What is left of the items goes by single compute blocks.

Kept apart from the decode kernel, so that a change here leaves rows of the decode family valid.
"""

from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from rpa_kernels.calls import Refs
from rpa_kernels.decode.attend import Attend
from rpa_kernels.decode.config import DecodeConfig
from rpa_kernels.decode.kernel import DecodeKernel
from rpa_kernels.decode.seq_blocks import SeqBlocks
from rpa_kernels.decode.tile_writes import TileWrites
from rpa_kernels.decode.walk import Item, Walk
from rpa_kernels.ints import cdiv, div
from rpa_kernels.problem import Problem
from rpa_kernels.target import Target

Scalar = Any

# Compute blocks that are attended to at once, at most: in loops that are wholly unrolled code (v7x, 128
# heads, float8, 4 x 65536, KV blocks of 8192: 84.4 us as 8, 85.8 as 4, 95.1 as 1; simulated).
BLOCKS_AT_ONCE = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class LongAttend(Attend):
    """The maths of several compute blocks at once; `config.bkv_csz` has the keys of all."""

    chain_keys: int

    @property
    def keys(self) -> int:
        """Keys of a chain, as many as one of a single compute block has."""
        return self.chain_keys

    @property
    def is_long(self) -> bool:
        """There are more chains than one product's latency needs."""
        return True


@dataclass(frozen=True, kw_only=True, slots=True)
class LatentDecodeKernel(DecodeKernel):
    """One kernel call; `long` attends to several compute blocks, or None where it does not pay."""

    long: LongAttend | None

    def attend(self, slot: Scalar, items: list[Item]) -> None:
        """Attends every item to its block: many keys at once where all see them, then the rest."""
        if self.long is None:
            DecodeKernel.attend(self, slot, items)
            return
        csz, at_once = self.config.bkv_csz, self.long.config.bkv_csz
        longest, shortest = items[0].num_tokens, items[0].num_full
        for item in items[1:]:
            longest = jnp.maximum(longest, item.num_tokens)
            shortest = jnp.minimum(shortest, item.num_full)
        # Below zero where queries come before the block.
        num_long = div(jnp.maximum(shortest, 0), at_once)

        @pl.loop(0, num_long)
        def _(tile: jax.Array) -> None:
            self.long.tile(slot, items, tile * at_once, masked=False)  # type: ignore[union-attr]

        @pl.loop(num_long * (at_once // csz), cdiv(longest, csz))
        def _(tile: jax.Array) -> None:
            first = tile * csz
            is_full = first + csz <= shortest

            @pl.when(is_full)
            def _() -> None:
                self.maths.tile(slot, items, first, masked=False)

            @pl.when(jnp.logical_not(is_full))
            def _() -> None:
                self.maths.tile(slot, items, first, masked=True)


def long_attend(maths: Attend) -> LongAttend | None:
    """That of as many compute blocks as there are in a KV block, up to `BLOCKS_AT_ONCE`.

    None in windows, whose first keys are masked, and where results are popped in order, so that
    products of one chain do not run beside the softmax of another.
    """
    config, problem = maths.config, maths.problem
    num_blocks = min(config.bkv_sz // config.bkv_csz, BLOCKS_AT_ONCE)
    if num_blocks < 2 or problem.reach_tokens is not None or not maths.target.has_result_buffers:
        return None
    return LongAttend(
        scratch=maths.scratch, meta=maths.meta, problem=problem, target=maths.target,
        config=replace(config, bkv_csz=num_blocks * config.bkv_csz), on_chip=maths.on_chip,
        chain_keys=maths.keys,
    )  # fmt: skip


def latent_decode_kernel(
    refs: Refs, *, problem: Problem, config: DecodeConfig, target: Target, on_chip: bool
) -> None:
    """Body of the Pallas call; the arguments are those of `decode.kernel.decode_kernel`."""
    first_seq, end_seq = 0, refs.meta.distribution[0]
    if refs.core_range is not None:
        (first_seq,), (end_seq,) = refs.core_range
    common: dict[str, Any] = {"problem": problem, "config": config}
    seqs: dict[str, Any] = common | {"first_seq": first_seq, "end_seq": end_seq}
    seq_blocks = SeqBlocks(refs=refs, **seqs)
    maths = Attend(
        scratch=refs.scratch, meta=refs.meta, target=target, on_chip=on_chip, **common
    )  # fmt: skip
    tile_writes = None
    if problem.update_kv_cache:
        tile_writes = TileWrites(
            cache=refs.cache, scratch=refs.scratch, seq_blocks=seq_blocks, on_chip=on_chip, **common
        )  # fmt: skip
    LatentDecodeKernel(
        walk=Walk(meta=refs.meta, **seqs), cache=refs.cache, scratch=refs.scratch,
        seq_blocks=seq_blocks, maths=maths, tile_writes=tile_writes, long=long_attend(maths),
        **common,
    ).run()  # fmt: skip
