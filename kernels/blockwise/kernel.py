"""The blockwise kernel: walks query blocks and, for each, the KV blocks that it sees.

A step is one KV block of one query block. `num_buffers - 1` KV blocks are being fetched while one
computes, across query block and sequence boundaries; the next query block is fetched and the
last output sent meanwhile. A KV block is unpacked once and reused by every query compute block.
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from rpa_kernels import lane_pages, latent_rows, packed, pages
from rpa_kernels.blockwise import mxu_sums, tile_blocks, walk
from rpa_kernels.blockwise.attend import Attention
from rpa_kernels.blockwise.chains import Chains, all_chains
from rpa_kernels.blockwise.config import BlockwiseConfig
from rpa_kernels.blockwise.partition import SEQS
from rpa_kernels.blockwise.q_blocks import QBlocks
from rpa_kernels.blockwise.scratch import Scratch
from rpa_kernels.blockwise.tile_blocks import TileBlocks
from rpa_kernels.blockwise.walk import Block, Cursor
from rpa_kernels.calls import Refs
from rpa_kernels.ints import cdiv
from rpa_kernels.latent import in_tiles
from rpa_kernels.layout import LANES
from rpa_kernels.pages import Meta, PagedCache
from rpa_kernels.problem import Problem
from rpa_kernels.slots import slot_of
from rpa_kernels.target import Target

Ref = Any
Scalar = Any

# 32-bit words of a head that are unpacked together: 16 vector registers.
UNPACKED = 16 * 8 * LANES


@dataclass(frozen=True, kw_only=True, slots=True)
class BlockwiseKernel:
    """Refs and statics of one kernel call; methods are its phases."""

    meta: Meta
    kv_new: Ref | None
    cache: PagedCache
    sinks: Ref | None
    first: Cursor
    end: Cursor
    scratch: Scratch
    q_blocks: QBlocks
    tile_blocks: TileBlocks | None
    paths: tuple[Chains, ...]
    problem: Problem
    config: BlockwiseConfig
    target: Target
    on_chip: bool

    def block_at(self, cursor: Cursor) -> Block:
        """Reads the lengths of a step."""
        return walk.block_at(cursor, self.meta, self.problem, self.config)

    def is_own(self, cursor: Cursor) -> Scalar:
        """Whether a step, none before the core's first, is the core's."""
        is_before = cursor.seq < self.end.seq
        if self.target.num_cores == 1:
            return is_before
        # Cores may share a sequence: each has query blocks of it.
        is_in_last = (cursor.seq == self.end.seq) & (cursor.q_block < self.end.q_block)
        return is_before | is_in_last

    # Fetching KV and writing new tokens back.

    def start_fetch(self, slot: Scalar, cursor: Cursor, *, is_fresh: bool = False) -> Cursor:
        """Starts fetching the KV block of a step; returns the next step.

        A fresh buffer was never filled, so nothing of it can be on its way to the cache.
        """
        block, is_own = self.block_at(cursor), self.is_own(cursor)

        @pl.when(is_own)
        def _() -> None:
            if not is_fresh:
                self.wait_write(slot)
            buffer, sem = self.scratch.kv.at[slot], self.scratch.kv_sems.at[slot]
            self.cache.start_fetch(
                buffer,
                sem,
                row=0,
                seq=block.seq,
                start=block.kv_start,
                num_tokens=self.fetch_end(block) - block.kv_start,
                max_tokens=self.config.bkv_sz,
            )
            if self.problem.update_kv_cache and self.tile_blocks is not None:
                self.tile_blocks.start_fetch(slot, block)
            elif self.problem.update_kv_cache:
                self.start_fetch_new(block, buffer, sem)

        following = walk.after(cursor, block)
        return Cursor(
            *(jnp.where(is_own, new, old) for new, old in zip(following, cursor, strict=True))
        )

    def fetch_end(self, block: Block) -> Scalar:
        """Position after the last token of a block that comes from the cache."""
        if self.tile_blocks is not None:
            return tile_blocks.fetch_end(block, self.problem)
        return jnp.minimum(block.kv_end, block.cached_end)

    def wait_fetch(self, slot: Scalar, block: Block) -> None:
        """Waits until a KV block is there, cached and new tokens."""
        kv, sems, lanes = self.scratch.kv, self.scratch.kv_sems, self.tile_blocks
        if lanes is None:
            self.cache.wait(kv.at[slot], sems.at[slot], block.num_kv)
            return
        num_tokens = jnp.maximum(self.fetch_end(block) - block.kv_start, 0)
        rows = self.cache.rows(num_tokens, self.config.bkv_sz)
        self.cache.wait(kv.at[slot], sems.at[slot], rows)
        if self.problem.update_kv_cache:
            lanes.wait_and_put(slot, block)

    def start_fetch_new(self, block: Block, buffer: Ref, sem: Ref) -> None:
        """Starts fetching the block's new tokens, behind its cached ones."""
        kv_new: Ref = self.kv_new
        start = jnp.maximum(block.kv_start, block.cached_end)
        size = jnp.maximum(block.kv_end - start, 0)
        token = jnp.minimum(
            block.new_token + start - block.cached_end, self.problem.max_num_tokens - size
        )
        pltpu.make_async_copy(
            kv_new.at[pl.ds(token, size)],
            buffer.at[
                pl.ds(jnp.minimum(start - block.kv_start, self.config.bkv_sz - size), size),
                pl.ds(0, self.problem.kv_words),
            ],
            sem,
        ).start()

    def start_write(self, slot: Scalar, block: Block) -> None:
        """Starts writing the query block's own tokens in this KV block to the cache.

        Every new token belongs to one query block, which sees it in one KV block, so each is
        written once, whatever the window or the number of passes over the KV.
        """
        if not self.problem.update_kv_cache:
            return
        if self.tile_blocks is not None:
            self.tile_blocks.start_write(slot, block)
            return
        start = jnp.maximum(block.kv_start, block.q_first)
        size = jnp.maximum(jnp.minimum(block.kv_end, block.q_end) - start, 0)
        self.scratch.unwritten[slot] = size

        @pl.when(size > 0)
        def _() -> None:
            self.cache.start_write(
                self.scratch.kv.at[slot],
                self.scratch.write_sems.at[slot],
                row=start - block.kv_start,
                seq=block.seq,
                start=start,
                num_tokens=size,
            )

    def wait_write(self, slot: Scalar) -> None:
        """Waits until a KV buffer's tokens are in the cache, so that it can be filled again."""
        if not self.problem.update_kv_cache:
            return
        kv, sems, unwritten = self.scratch.kv, self.scratch.write_sems, self.scratch.unwritten
        if self.tile_blocks is not None:
            self.tile_blocks.wait_write(slot)
        else:
            self.cache.wait(kv.at[slot], sems.at[slot], unwritten[slot])
        self.scratch.unwritten[slot] = 0

    # Attention.

    def unpack(self, slot: Scalar, block: Block) -> None:
        """Takes K and V of every head out of a KV block, once for all query rows."""
        csz = self.config.bkv_csz
        # Few queries look at more keys at a time: of those past the end they read zeros, too.
        num_tiles = walk.on_path_value(
            block,
            self.paths,
            lambda chains: cdiv(block.num_kv, chains.keys) * (chains.keys // csz),
        )

        @pl.loop(0, num_tiles)
        def _(tile: jax.Array) -> None:
            start = tile * csz
            is_full = start + csz <= block.num_kv

            @pl.when(is_full)
            def _() -> None:
                self.unpack_tile(slot, start, None)

            @pl.when(jnp.logical_not(is_full))
            def _() -> None:
                self.unpack_tile(slot, start, block.num_kv - start)

    def unpack_tile(self, slot: Scalar, start: Scalar, num_valid: Scalar | None) -> None:
        """Unpacks one compute block; tokens past `num_valid` become zero."""
        csz, lanes = self.config.bkv_csz, self.scratch.k.shape[-1]
        # The words of one part stay in registers for both K and V.
        size = UNPACKED // lanes
        size = csz if csz % size else size
        if self.problem.is_seq_along_lane:
            size = LANES
        if num_valid is None:
            for offset in range(0, csz, size):
                self.unpack_tokens(slot, start + offset, size, None)
            return

        # The masks of all parts at once would be spilled, a third of all scratch at head_dim 256.
        @pl.loop(0, csz // size)
        def _(part: jax.Array) -> None:
            offset = part * size
            self.unpack_tokens(slot, start + offset, size, num_valid - offset)

    def unpack_tokens(
        self, slot: Scalar, start: Scalar, size: int, num_valid: Scalar | None
    ) -> None:
        """Unpacks all heads of `size` tokens."""
        s, problem, tokens = self.scratch, self.problem, pl.ds(start, size)
        if problem.is_latent:
            rows = latent_rows.load(
                s.kv, (slot,), start=start, count=size, lanes=problem.k_lanes, num_valid=num_valid,
                on_chip=self.on_chip,
            )  # fmt: skip
            s.k[0, tokens] = rows.astype(s.k.dtype)
            if s.v is not None:
                width = problem.padded_head_dim
                s.v[0, tokens, pl.ds(0, width)] = rows[:, :width].astype(s.v.dtype)
            return
        for head in range(problem.num_kv_heads):
            k, v = self.load_kv(slot, head, start, size, num_valid)
            s.k[head, tokens] = k.astype(s.k.dtype)
            if s.v is not None:
                # A row K|V leaves the ones in K's place alone.
                first = problem.head_dim if problem.fuses_kv else 0
                lanes = pl.ds(first, v.shape[1] - first)
                s.v[head, tokens, lanes] = v[:, first:].astype(s.v.dtype)

    def load_kv(
        self, slot: Scalar, head: int, start: Scalar, size: int, num_valid: Scalar | None
    ) -> tuple[jax.Array, jax.Array]:
        """Loads K and V of one head, each [size, lanes]."""
        s, problem = self.scratch, self.problem
        if self.tile_blocks is None:
            return packed.load_kv(
                s.kv, (slot,), head=head, start=start, count=size, fused=problem.fuses_kv,
                dtype=problem.kv_dtype, num_valid=num_valid, on_chip=self.on_chip,
            )  # fmt: skip
        k, v = (
            lane_pages.load_by_token(
                s.kv, (slot,), part=2 * head + part, words=problem.kv_words,
                start=start, count=size, num_valid=num_valid, on_chip=self.on_chip,
            )
            for part in range(2)
        )  # fmt: skip
        return k, v

    def attend(self, block: Block) -> None:
        """Attends the query block to the KV block."""

        def on_chains() -> None:
            walk.on_path(
                block,
                self.paths,
                lambda chains: Attention(
                    block=block, chains=chains, scratch=self.scratch, problem=self.problem,
                    config=self.config, target=self.target,
                ).run(),
            )  # fmt: skip

        if self.problem.sees_cache_only:
            pl.when(block.num_kv > 0)(on_chains)  # of an empty context there is nothing to score
        else:
            on_chains()

    # The walk.

    def run(self) -> None:
        """Prologue, steps, epilogue; does nothing without sequences."""

        @pl.when(self.is_own(self.first))
        def _() -> None:
            for slot in range(self.config.num_buffers):
                self.scratch.unwritten[slot] = 0
            if self.config.mxu_sums:
                mxu_sums.fill_ones(self.scratch.v, self.problem)
            self.q_blocks.reset()
            cursor = ahead = self.first
            self.q_blocks.start(0, self.block_at(cursor))
            pages.fetch_sinks(self.sinks, self.scratch.sinks, self.scratch.sinks_sem)
            for slot in range(self.config.num_buffers - 1):
                ahead = self.start_fetch(slot, ahead, is_fresh=True)
            jax.lax.while_loop(
                lambda carry: self.is_own(carry[2]),
                self.step,
                (jnp.int32(0), jnp.int32(0), cursor, ahead),
            )
            for slot in range(self.config.num_buffers):
                self.wait_write(slot)
            self.q_blocks.drain()

    def step(
        self, carry: tuple[Scalar, Scalar, Cursor, Cursor]
    ) -> tuple[Scalar, Scalar, Cursor, Cursor]:
        """One step: prefetch, wait, write back, unpack, attend, send."""
        slot, parity, cursor, ahead = carry
        last_slot = self.config.num_buffers - 1
        ahead = self.start_fetch(jnp.where(slot == 0, last_slot, slot - 1), ahead)
        block = self.block_at(cursor)

        @pl.when(cursor.kv_block == 0)
        def _() -> None:
            @pl.when(self.is_own(block.next_q))
            def _() -> None:
                self.q_blocks.start(1 - parity, self.block_at(block.next_q))

            self.q_blocks.begin(parity, block)

        self.wait_fetch(slot, block)
        self.start_write(slot, block)
        self.unpack(slot, block)
        self.attend(block)

        @pl.when(block.is_last_kv)
        def _() -> None:
            self.q_blocks.finish(parity, block)

        return (
            jnp.where(slot == last_slot, 0, slot + 1),
            jnp.where(block.is_last_kv, 1 - parity, parity),
            walk.after(cursor, block),
            ahead,
        )


def blockwise_kernel(
    refs: Refs,
    *,
    family: str,
    problem: Problem,
    config: BlockwiseConfig,
    target: Target,
    on_chip: bool,
) -> None:
    """Body of the Pallas call.

    Args:
      refs: Operands, outputs and scratch; a core range is (sequence, query block) of its
        start and of its end.
      family: `prefill`, `mixed` or `mla-mixed`.
      problem: Static shapes and features.
      config: Block sizes.
      target: What the chip can do.
      on_chip: Which body of `packed` to use.
    """
    zero = jnp.int32(0)
    first, end = (Cursor(refs.meta.distribution[i], zero, zero) for i in SEQS[slot_of(family)])
    if refs.core_range is not None:
        first, end = (Cursor(seq, q_block, zero) for seq, q_block in refs.core_range)
    paths = all_chains(slot_of(family), problem, config, target)
    q_blocks = QBlocks(
        refs=refs, scratch=refs.scratch, paths=paths, problem=problem, on_chip=on_chip
    )
    tiles = None
    if in_tiles(problem):
        tiles = TileBlocks(
            kv_new=refs.kv_new, cache=refs.cache, scratch=refs.scratch, problem=problem,
            config=config, on_chip=on_chip,
        )  # fmt: skip
    BlockwiseKernel(
        meta=refs.meta, kv_new=refs.kv_new, cache=refs.cache, sinks=refs.sinks, first=first,
        end=end, scratch=refs.scratch, q_blocks=q_blocks, tile_blocks=tiles, paths=paths,
        problem=problem, config=config, target=target, on_chip=on_chip,
    ).run()  # fmt: skip
