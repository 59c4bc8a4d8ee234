"""Blocks of decode sequences: their queries and new KV come in, outputs and cache updates go out.

Block c is sequences [c * bq_sz, (c + 1) * bq_sz), counted from the core's first, and lives in
buffer c % 2. Its life: fetched while block c - 1 is attended to; once fetched, its new tokens are
sent to the cache; once the walk's first item is in block c + 1, its outputs are sent. A step's
items lie in at most two blocks, because `bq_sz >= seqs_per_step`.
"""

from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from rpa_kernels.calls import Refs
from rpa_kernels.decode import heads
from rpa_kernels.decode.config import DecodeConfig
from rpa_kernels.decode.scratch import Scratch
from rpa_kernels.ints import div, rem
from rpa_kernels.latent import in_tiles, tile_tokens
from rpa_kernels.problem import Problem

Scalar = Any


@dataclass(frozen=True, kw_only=True, slots=True)
class SeqBlocks:
    """Refs of the blocks. `progress` in scratch holds (first, ready): the block that the walk's
    first item is in, and the last block that was waited for.
    """

    refs: Refs
    first_seq: Scalar
    end_seq: Scalar
    problem: Problem
    config: DecodeConfig

    @property
    def scratch(self) -> Scratch:
        """Buffers of two blocks, semaphores, progress."""
        scratch: Scratch = self.refs.scratch
        return scratch

    @property
    def writes_rows(self) -> bool:
        """Whether new tokens are written from here."""
        return self.problem.update_kv_cache and not in_tiles(self.problem)

    def first_of(self, block: Scalar) -> Scalar:
        """First sequence of a block."""
        return self.first_seq + block * self.config.bq_sz

    def block_of(self, seq: Scalar) -> Scalar:
        """Block of a sequence."""
        return div(seq - self.first_seq, self.config.bq_sz)

    def rows_in(self, block: Scalar) -> Scalar:
        """Sequences in a block; 0 past the last."""
        size = self.config.bq_sz
        return jnp.clip(self.end_seq - self.first_of(block), 0, size)

    def token_of(self, seq: Scalar) -> Scalar:
        """First token of a sequence, in the order of the batch."""
        if self.problem.decode_query_size == 1:
            return seq
        return self.refs.meta.cu_q_lens[seq]

    def num_tokens(self, block: Scalar) -> Scalar:
        """Tokens of a block; 0 past the last."""
        rows = self.rows_in(block)
        if self.problem.decode_query_size == 1:
            return rows
        first_seq = self._real_seq(block)
        return self.token_of(first_seq + rows) - self.token_of(first_seq)

    def _real_seq(self, block: Scalar) -> Scalar:
        """First sequence of a block, or the last of all past the last block."""
        return jnp.minimum(self.first_of(block), self.end_seq - 1)

    def row(self, seq: Scalar, is_real: Scalar) -> tuple[Scalar, Scalar]:
        """Buffer and row of a sequence's first token; the spare rows when it is no sequence."""
        size, row = self.config.bq_sz, seq - self.first_seq
        buffer = rem(div(row, size), 2)
        if self.problem.decode_query_size == 1:
            return buffer, jnp.where(is_real, rem(row, size), size)
        in_block = self.token_of(seq) - self.token_of(seq - rem(row, size))
        return buffer, jnp.where(is_real, in_block, size * heads.query_tokens(self.problem))

    def start(self) -> None:
        """Starts fetching the first block, and the attention sinks with it."""
        self.scratch.progress[0] = 0
        self.scratch.progress[1] = 0
        for copy in (*self._sinks_copy(), *self._in_copies(0)):
            copy.start()

    def wait_first(self) -> None:
        """Waits for what `start` began, and starts the block's cache updates."""
        for copy in (*self._sinks_copy(), *self._in_copies(0)):
            copy.wait()
        self.start_writes(0)

    def advance(self, first_seq: Scalar, seqs: list[tuple[Scalar, Scalar]]) -> None:
        """Moves on to the blocks of a step whose items belong to `seqs` ((seq, is_real))."""
        progress = self.scratch.progress
        first = self.block_of(first_seq)

        @pl.when(first > progress[0])
        def _() -> None:
            progress[0] = first
            self.start_send(first - 1)
            self.wait_writes(first - 1)
            self.start_fetch(first + 1)

        last_seq = first_seq
        for seq, is_real in seqs[1:]:
            last_seq = jnp.where(is_real, seq, last_seq)
        last = self.block_of(last_seq)

        @pl.when(last > progress[1])
        def _() -> None:
            progress[1] = last
            self.wait_fetch(last)
            self.start_writes(last)

            @pl.when(last > 1)
            def _() -> None:
                self.wait_send(last - 2)

    def drain(self) -> None:
        """Sends what is left and waits for everything under way."""
        last = self.block_of(self.end_seq - 1)

        @pl.when(self.scratch.progress[0] < last)
        def _() -> None:
            self.start_send(last - 1)
            self.wait_writes(last - 1)

        self.start_send(last)
        self.wait_writes(last)

        @pl.when(last > 0)
        def _() -> None:
            self.wait_send(last - 1)

        self.wait_send(last)

    def _sinks_copy(self) -> list[Any]:
        """The copy that brings the attention sinks in, if there are any."""
        if self.refs.sinks is None:
            return []
        return [
            pltpu.make_async_copy(self.refs.sinks, self.scratch.sinks, self.scratch.in_sems.at[0])
        ]

    def _in_copies(self, block: Scalar) -> list[Any]:
        """Copies that bring a block in."""
        slot, size = rem(block, 2), self.num_tokens(block)
        # A block past the last has no rows, but its copy must start at a row that exists.
        tokens: Any = pl.ds(self.token_of(self._real_seq(block)), size)
        pairs = [(self.refs.q, self.scratch.q, tokens)]
        if self.problem.is_latent:
            pairs.append((self.refs.q_rope, self.scratch.q_rope, tokens))
        if self.problem.update_kv_cache:
            new = self._new_tiles(block) if in_tiles(self.problem) else tokens
            pairs.append((self.refs.kv_new, self.scratch.kv_new, new))
        return [
            pltpu.make_async_copy(
                hbm.at[rows], vmem.at[slot, pl.ds(0, rows.size)], self.scratch.in_sems.at[slot]
            )
            for hbm, vmem, rows in pairs
        ]

    def _new_tiles(self, block: Scalar) -> Any:
        """Tiles that hold a block's new tokens; none past the last block."""
        end_seq = jnp.minimum(self.first_of(block) + self.config.bq_sz, self.end_seq)
        last = self.token_of(end_seq) - 1
        first_tile = self._first_tile(block)
        size = jnp.where(
            self.rows_in(block) > 0, div(last, tile_tokens(self.problem)) - first_tile + 1, 0
        )
        return pl.ds(first_tile, size)

    def _first_tile(self, block: Scalar) -> Scalar:
        """Tile of a block's first new token."""
        return div(self.token_of(self._real_seq(block)), tile_tokens(self.problem))

    def new_token(self, seq: Scalar) -> tuple[Scalar, Scalar, Scalar]:
        """Buffer, tile, and place in it, of a sequence's first new token; with tiles only."""
        block, token, size = self.block_of(seq), self.token_of(seq), tile_tokens(self.problem)
        return rem(block, 2), div(token, size) - self._first_tile(block), rem(token, size)

    def start_fetch(self, block: Scalar) -> None:
        """Starts fetching a block; nothing past the last."""
        for copy in self._in_copies(block):
            copy.start()

    def wait_fetch(self, block: Scalar) -> None:
        """Waits for a block's queries and new KV."""
        for copy in self._in_copies(block):
            copy.wait()

    def _out_copies(self, block: Scalar) -> list[Any]:
        """Copies that take a block's outputs out."""
        slot, size = rem(block, 2), self.num_tokens(block)
        pairs = [(self.scratch.out, self.refs.out)]
        if self.problem.return_lse:
            pairs.append((self.scratch.lse, self.refs.lse))
        return [
            pltpu.make_async_copy(
                vmem.at[slot, pl.ds(0, size)],
                hbm.at[pl.ds(self.token_of(self.first_of(block)), size)],
                self.scratch.out_sems.at[slot],
            )
            for vmem, hbm in pairs
        ]

    def start_send(self, block: Scalar) -> None:
        """Starts sending a block's outputs."""
        for copy in self._out_copies(block):
            copy.start()

    def wait_send(self, block: Scalar) -> None:
        """Waits until a block's outputs are sent."""
        for copy in self._out_copies(block):
            copy.wait()

    def start_writes(self, block: Scalar) -> None:
        """Starts writing a block's new tokens to the cache, one row or a few for each sequence.

        Where tiles are written `tile_writes.py` does, one by one.
        """
        if not self.writes_rows:
            return
        slot, meta = rem(block, 2), self.refs.meta

        @pl.loop(0, self.rows_in(block))
        def _(row: Scalar) -> None:
            seq = self.first_of(block) + row
            if self.problem.decode_query_size > 1:
                q_len = meta.q_len(seq)
                _, first = self.row(seq, True)
                self.refs.cache.start_write(
                    self.scratch.kv_new.at[slot], self.scratch.write_sems.at[slot], row=first,
                    seq=seq, start=meta.kv_lens[seq] - q_len, num_tokens=q_len,
                )  # fmt: skip
                return
            position = meta.kv_lens[seq] - 1
            page_size = self.problem.page_size
            page = meta.read(meta.entry(seq, div(position, page_size))).page
            pltpu.make_async_copy(
                self.scratch.kv_new.at[slot, row],
                self.refs.cache.hbm.at[page * page_size + rem(position, page_size)],
                self.scratch.write_sems.at[slot],
            ).start()

    def wait_writes(self, block: Scalar) -> None:
        """Waits until a block's new tokens are in the cache."""
        if not self.writes_rows:
            return
        slot = rem(block, 2)
        kv_new, sems = self.scratch.kv_new, self.scratch.write_sems
        self.refs.cache.wait(kv_new.at[slot], sems.at[slot], self.num_tokens(block))
