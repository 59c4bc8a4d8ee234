"""The decode kernel: walks the KV blocks of all decode sequences, `seqs_per_step` at a time.

An *item* is one KV block of one sequence. Items are taken in order from the list of all of them,
so that ragged lengths leave no slot of a step empty but the last step's. `num_buffers - 1` steps
are being fetched while one computes, across sequence boundaries. Each item of a step runs its
own online softmax, which makes them independent chains for the MXU; after the last compute block
the items are joined in order into the state of the running sequence.

Queries, new keys and values, and outputs move in blocks of `bq_sz` sequences; `seq_blocks.py` does
that. A sequence has one new token, so that token i is sequence i, or up to
`problem.decode_query_size` of them: then as many are computed for each, and what is computed beyond
a sequence's own is overwritten by the sequences after it.
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from rpa_kernels.calls import Refs
from rpa_kernels.decode.attend import Attend, Row
from rpa_kernels.decode.config import DecodeConfig
from rpa_kernels.decode.scratch import Scratch
from rpa_kernels.decode.seq_blocks import SeqBlocks
from rpa_kernels.decode.tile_writes import TileWrites
from rpa_kernels.decode.walk import Cursor, Item, Walk
from rpa_kernels.ints import cdiv
from rpa_kernels.latent import in_tiles
from rpa_kernels.pages import PagedCache
from rpa_kernels.problem import Problem
from rpa_kernels.target import Target
from rpa_kernels.window import newest_sees_from

Ref = Any
Scalar = Any


@dataclass(frozen=True, kw_only=True, slots=True)
class DecodeKernel:
    """Refs and statics of one kernel call; methods are its phases."""

    walk: Walk
    cache: PagedCache
    scratch: Scratch
    seq_blocks: SeqBlocks
    maths: Attend
    tile_writes: TileWrites | None
    problem: Problem
    config: DecodeConfig

    def rows(self, items: list[Item]) -> list[Row]:
        """Where the items' queries and outputs are."""
        return [self.seq_blocks.row(item.seq, item.is_real) for item in items]

    def start_fetch(self, slot: Scalar, cursor: Cursor) -> Cursor:
        """Starts fetching the step at `cursor`; returns the cursor of the step after it."""
        items, following = self.walk.items_from(cursor)
        for g, item in enumerate(items):
            self.cache.start_fetch(
                self.scratch.kv.at[slot],
                self.scratch.kv_sems.at[slot],
                row=g * self.config.bkv_sz,
                seq=item.owner,
                start=item.start,
                num_tokens=self.num_fetched(item),
                max_tokens=self.config.bkv_sz,
            )
        return following

    def num_fetched(self, item: Item) -> Scalar:
        """Tokens of an item that come from the cache; in tiles with the place of the new one."""
        return item.num_tokens if in_tiles(self.problem) else item.num_cached

    def wait_fetch(self, slot: Scalar, items: list[Item]) -> None:
        """Waits for the step's cached tokens and puts new tokens behind them."""
        s, words, bkv_sz = self.scratch, self.problem.kv_words, self.config.bkv_sz
        rows = sum(self.cache.rows(self.num_fetched(item), bkv_sz) for item in items)
        self.cache.wait(s.kv.at[slot], s.kv_sems.at[slot], rows)
        if not self.problem.update_kv_cache:
            return
        if self.tile_writes is not None:
            self.tile_writes.put(slot, items)
            return
        if self.problem.decode_query_size > 1:
            self.put_new(slot, items)
            return
        for g, (item, new) in enumerate(zip(items, self.rows(items), strict=True)):
            # Without a branch: an item without a new token stores to the spare row.
            has_new = item.num_cached < item.num_tokens
            row = jnp.where(has_new, g * bkv_sz + item.num_cached, len(items) * bkv_sz)
            s.kv[slot, row, pl.ds(0, words)] = s.kv_new[new]

    def put_new(self, slot: Scalar, items: list[Item]) -> None:
        """Puts the new tokens of a step behind the cached ones, up to several of an item."""
        s, words, bkv_sz = self.scratch, self.problem.kv_words, self.config.bkv_sz
        for g, (item, (buffer, first)) in enumerate(zip(items, self.rows(items), strict=True)):

            @pl.when(item.num_cached < item.num_tokens)
            def _(
                g: int = g, item: Item = item, buffer: Scalar = buffer, first: Scalar = first
            ) -> None:
                for token in range(self.problem.decode_query_size):
                    place = item.first_query + token - item.start
                    is_here = (place >= 0) & (place < item.num_tokens)
                    row = jnp.where(is_here, g * bkv_sz + place, len(items) * bkv_sz)
                    s.kv[slot, row, pl.ds(0, words)] = s.kv_new[buffer, first + token]

    def attend(self, slot: Scalar, items: list[Item]) -> None:
        """Attends every item to its block, one compute block after another."""
        csz = self.config.bkv_csz
        longest = items[0].num_tokens
        for item in items[1:]:
            longest = jnp.maximum(longest, item.num_tokens)

        @pl.loop(0, cdiv(longest, csz))
        def _(tile: jax.Array) -> None:
            first = tile * csz
            is_full = True
            for item in items:
                is_full &= first + csz <= item.num_full
                oldest = newest_sees_from(item.kv_len, self.problem)
                if oldest is not None:
                    is_full &= item.start + first >= oldest

            @pl.when(is_full)
            def _() -> None:
                self.maths.tile(slot, items, first, masked=False)

            @pl.when(jnp.logical_not(is_full))
            def _() -> None:
                self.maths.tile(slot, items, first, masked=True)

    def run(self) -> None:
        """Prologue, steps, epilogue; does nothing without decode sequences."""

        @pl.when(self.walk.first_seq < self.walk.end_seq)
        def _() -> None:
            cursor = Cursor(jnp.int32(self.walk.first_seq), jnp.int32(0))
            self.seq_blocks.start()
            if self.tile_writes is not None:
                self.tile_writes.reset()
            # A loop, though a short one: within straight code the compiler moves the copies of
            # queries behind those of KV, and the first step waits for all of them.
            ahead = jax.lax.fori_loop(0, self.config.num_buffers, self.start_fetch, cursor)
            self.seq_blocks.start_fetch(1)
            self.seq_blocks.wait_first()
            jax.lax.while_loop(
                lambda carry: carry[1].seq < self.walk.end_seq,
                self.step,
                (jnp.int32(0), cursor, ahead),
            )
            self.seq_blocks.drain()
            if self.tile_writes is not None:
                self.tile_writes.drain()

    def step(self, carry: tuple[Scalar, Cursor, Cursor]) -> tuple[Scalar, Cursor, Cursor]:
        """One step: wait, attend, join, and fetch the step `num_buffers` ahead."""
        slot, cursor, ahead = carry
        items, following = self.walk.items_from(cursor)
        self.seq_blocks.advance(items[0].seq, [(item.seq, item.is_real) for item in items])
        self.maths.begin(self.rows(items))
        self.wait_fetch(slot, items)
        self.attend(slot, items)
        rows = self.rows(items)

        def fetch_and_join(ahead: Cursor) -> Cursor:
            # One block of code: the join's vector work leaves the scalar slots to the copies.
            after = self.start_fetch(slot, ahead)
            self.maths.join(items, rows)
            return after

        def join(ahead: Cursor) -> Cursor:
            self.maths.join(items, rows)
            return ahead

        # The last steps have nothing to fetch, and the last one's output waits for its join.
        ahead = jax.lax.cond(ahead.seq < self.walk.end_seq, fetch_and_join, join, ahead)
        is_last = slot == self.config.num_buffers - 1
        return jnp.where(is_last, 0, slot + 1), following, ahead


def decode_kernel(
    refs: Refs,
    *,
    problem: Problem,
    config: DecodeConfig,
    target: Target,
    on_chip: bool,
) -> None:
    """Body of the Pallas call.

    Args:
      refs: Operands, outputs and scratch; a core range is (first sequence,), (end,).
      problem: Static shapes and features.
      config: Block sizes.
      target: What the chip can do.
      on_chip: Which body of `packed` to use.
    """
    first_seq, end_seq = 0, refs.meta.distribution[0]
    if refs.core_range is not None:
        (first_seq,), (end_seq,) = refs.core_range
    seq_blocks = SeqBlocks(
        refs=refs, first_seq=first_seq, end_seq=end_seq, problem=problem, config=config
    )
    maths = Attend(
        scratch=refs.scratch, meta=refs.meta, problem=problem, config=config, target=target,
        on_chip=on_chip,
    )  # fmt: skip
    walk = Walk(
        meta=refs.meta, first_seq=first_seq, end_seq=end_seq, problem=problem, config=config
    )
    tile_writes = None
    if in_tiles(problem) and problem.update_kv_cache:
        tile_writes = TileWrites(
            cache=refs.cache, scratch=refs.scratch, seq_blocks=seq_blocks, problem=problem,
            config=config, on_chip=on_chip,
        )  # fmt: skip
    DecodeKernel(
        walk=walk, cache=refs.cache, scratch=refs.scratch, seq_blocks=seq_blocks, maths=maths,
        tile_writes=tile_writes, problem=problem, config=config,
    ).run()  # fmt: skip
