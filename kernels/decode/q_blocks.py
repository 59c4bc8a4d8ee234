"""Blocks of decode sequences: their queries and new KV come in, outputs and cache updates go out.

Block c is sequences [c * bq_sz, (c + 1) * bq_sz) and lives in buffer c % 2. Its life: fetched
while block c - 1 is attended to; once fetched, its new tokens are sent to the cache; once the
walk's first item is in block c + 1, its outputs are sent. A step's items lie in at most two
blocks, because `bq_sz >= seqs_per_step`.
"""

from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from rpa_kernels.decode.config import DecodeConfig
from rpa_kernels.decode.scratch import Scratch
from rpa_kernels.ints import div, rem
from rpa_kernels.pages import Meta, PagedCache
from rpa_kernels.problem import Problem

Ref = Any
Scalar = Any


@dataclass(frozen=True, kw_only=True, slots=True)
class QBlocks:
    """Refs of the blocks. `progress` in scratch holds (first, ready): the block that the walk's
    first item is in, and the last block that was waited for.
    """

    meta: Meta
    q: Ref
    kv_new: Ref
    out: Ref
    cache: PagedCache
    scratch: Scratch
    problem: Problem
    config: DecodeConfig

    @property
    def num_seqs(self) -> Scalar:
        """Decode sequences in the batch."""
        return self.meta.distribution[0]

    def rows_in(self, block: Scalar) -> Scalar:
        """Sequences in a block; 0 past the last."""
        size = self.config.bq_sz
        return jnp.clip(self.num_seqs - block * size, 0, size)

    def row(self, seq: Scalar, is_real: Scalar) -> tuple[Scalar, Scalar]:
        """Buffer and row of a sequence; the spare row when it is not one."""
        size = self.config.bq_sz
        return rem(div(seq, size), 2), jnp.where(is_real, rem(seq, size), size)

    def start(self) -> None:
        """Starts fetching the first two blocks."""
        self.scratch.progress[0] = 0
        self.scratch.progress[1] = 0
        self.start_fetch(0)
        self.start_fetch(1)

    def wait_first(self) -> None:
        """Waits for the first block and starts its cache updates."""
        self.wait_fetch(0)
        self.start_writes(0)

    def advance(self, first_seq: Scalar, seqs: list[tuple[Scalar, Scalar]]) -> None:
        """Moves on to the blocks of a step whose items belong to `seqs` ((seq, is_real))."""
        progress, size = self.scratch.progress, self.config.bq_sz
        first = div(first_seq, size)

        @pl.when(first > progress[0])
        def _() -> None:
            progress[0] = first
            self.start_send(first - 1)
            self.wait_writes(first - 1)
            self.start_fetch(first + 1)

        last_seq = first_seq
        for seq, is_real in seqs[1:]:
            last_seq = jnp.where(is_real, seq, last_seq)
        last = div(last_seq, size)

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
        last = div(self.num_seqs - 1, self.config.bq_sz)

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

    def _in_copies(self, block: Scalar) -> list[Any]:
        """Copies that bring a block in."""
        slot, rows = rem(block, 2), self.rows_in(block)
        # A block past the last has no rows, but its copy must start at a row that exists.
        tokens = pl.ds(jnp.minimum(block * self.config.bq_sz, self.num_seqs - 1), rows)
        pairs = [(self.q, self.scratch.q)]
        if self.problem.update_kv_cache:
            pairs.append((self.kv_new, self.scratch.kv_new))
        return [
            pltpu.make_async_copy(
                hbm.at[tokens], vmem.at[slot, pl.ds(0, rows)], self.scratch.in_sems.at[slot]
            )
            for hbm, vmem in pairs
        ]

    def start_fetch(self, block: Scalar) -> None:
        """Starts fetching a block; nothing past the last."""
        for copy in self._in_copies(block):
            copy.start()

    def wait_fetch(self, block: Scalar) -> None:
        """Waits for a block's queries and new KV."""
        for copy in self._in_copies(block):
            copy.wait()

    def _out_copy(self, block: Scalar) -> Any:
        """Copy that takes a block's outputs out."""
        slot, rows = rem(block, 2), self.rows_in(block)
        return pltpu.make_async_copy(
            self.scratch.out.at[slot, pl.ds(0, rows)],
            self.out.at[pl.ds(block * self.config.bq_sz, rows)],
            self.scratch.out_sems.at[slot],
        )

    def start_send(self, block: Scalar) -> None:
        """Starts sending a block's outputs."""
        self._out_copy(block).start()

    def wait_send(self, block: Scalar) -> None:
        """Waits until a block's outputs are sent."""
        self._out_copy(block).wait()

    def start_writes(self, block: Scalar) -> None:
        """Starts writing a block's new tokens to the cache, one row a sequence."""
        if not self.problem.update_kv_cache:
            return
        slot, size = rem(block, 2), self.config.bq_sz

        @pl.loop(0, self.rows_in(block))
        def _(row: Scalar) -> None:
            seq = block * size + row
            position = self.meta.kv_lens[seq] - 1
            page = self.meta.page(seq, div(position, self.problem.page_size))
            pltpu.make_async_copy(
                self.scratch.kv_new.at[slot, row],
                self.cache.hbm.at[page, rem(position, self.problem.page_size)],
                self.scratch.write_sems.at[slot],
            ).start()

    def wait_writes(self, block: Scalar) -> None:
        """Waits until a block's new tokens are in the cache."""
        if not self.problem.update_kv_cache:
            return
        slot = rem(block, 2)
        kv_new, sems = self.scratch.kv_new, self.scratch.write_sems
        self.cache.wait(kv_new.at[slot], sems.at[slot], self.rows_in(block))
