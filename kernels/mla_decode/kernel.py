"""The decode kernel of latents: `decode/kernel.py` but for how a step attends to its items.

All heads of latents are rows of one chain, and the chains of a compute block are few and long: the
first ones' products have no vector work beside them, and the last ones' softmax no product. So
compute blocks that all items see whole are attended to several at once, laid out as one block of
as many chains. What is left of the items goes by single compute blocks.

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

# Compute blocks that are attended to at once, first as many as there are of the first number:
# wholly unrolled code. v7x, 128 heads, float8, 4 x 65536, KV blocks of 8192: 85.8 us as 4, 95.1 as
# 1; as 8 84.4, but a context of 4096 has none, and the compiler takes twice as long (simulated).
BLOCKS_AT_ONCE = (4, 2)


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
    """One kernel call; each of `longs` attends to several compute blocks, most first."""

    longs: tuple[LongAttend, ...]

    def attend(self, slot: Scalar, items: list[Item]) -> None:
        """Attends every item to its block: many keys at once where all see them, then the rest."""
        if not self.longs:
            DecodeKernel.attend(self, slot, items)
            return
        csz, first_left = self.config.bkv_csz, jnp.int32(0)
        longest, shortest = items[0].num_tokens, items[0].num_full
        for item in items[1:]:
            longest = jnp.maximum(longest, item.num_tokens)
            shortest = jnp.minimum(shortest, item.num_full)
        shortest = jnp.maximum(shortest, 0)  # below it where queries come before the block
        for long in self.longs:
            first_left = self.attend_long(slot, items, long, first_left, shortest)

        @pl.loop(div(first_left, csz), cdiv(longest, csz))
        def _(tile: jax.Array) -> None:
            first = tile * csz
            is_full = first + csz <= shortest

            @pl.when(is_full)
            def _() -> None:
                self.maths.tile(slot, items, first, masked=False)

            @pl.when(jnp.logical_not(is_full))
            def _() -> None:
                self.maths.tile(slot, items, first, masked=True)

    def attend_long(
        self, slot: Scalar, items: list[Item], long: LongAttend, first: Scalar, end: Scalar
    ) -> Scalar:
        """Attends to the keys from `first` on as `long` does, up to `end`; returns the next key."""
        at_once = long.config.bkv_csz
        count = div(end - first, at_once)

        @pl.loop(0, count)
        def _(tile: jax.Array) -> None:
            long.tile(slot, items, first + tile * at_once, masked=False)

        return first + count * at_once


def long_attends(maths: Attend) -> tuple[LongAttend, ...]:
    """Those of several compute blocks, as many as there can be in a KV block; most first.

    None in windows, whose first keys are masked, and where results are popped in order, so that
    products of one chain do not run beside the softmax of another.
    """
    config, problem = maths.config, maths.problem
    if problem.reach_tokens is not None or not maths.target.has_result_buffers:
        return ()
    return tuple(
        LongAttend(
            scratch=maths.scratch, meta=maths.meta, problem=problem, target=maths.target,
            config=replace(config, bkv_csz=count * config.bkv_csz), on_chip=maths.on_chip,
            chain_keys=maths.keys,
        )
        for count in BLOCKS_AT_ONCE
        if count * config.bkv_csz <= config.bkv_sz
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
        seq_blocks=seq_blocks, maths=maths, tile_writes=tile_writes, longs=long_attends(maths),
        **common,
    ).run()  # fmt: skip
