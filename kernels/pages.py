"""Moves one span of a sequence's KV between the paged cache in HBM and a buffer in VMEM.

The cache is rows here, page behind page, so that a run of pages (`runs.py`) is one copy. A row is
a token, and nothing is fetched or written beyond the tokens asked for, so the byte counts of
`account` are exact. With latents a row is several tokens, and copies move whole ones (`latent.py`).
Where tokens lie along lanes a row is a page, fetched whole or, where a block is less than a page,
by whole blocks; and what is written is a lane tile of 128 tokens. Positions are tokens from the
start of the sequence's context.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from rpa_kernels import layout, runs
from rpa_kernels.ints import cdiv, div, rem
from rpa_kernels.latent import in_tiles
from rpa_kernels.problem import Problem
from rpa_kernels.window import window_start

Ref = Any
Scalar = Any  # int or int32 scalar

# Copies of a block of at most so many pages are laid out one after another with sizes that may be
# zero: no branch between them, and a zero-size copy costs only its bundle. Beyond it a loop keeps
# the code small.
MAX_UNROLLED_PAGES = 8
# Copies in one turn of that loop: a branch takes half as long as the scalars of a copy.
COPIES_IN_A_TURN = 2


@dataclass(frozen=True, kw_only=True, slots=True)
class Meta:
    """The scalar-prefetch arrays in SMEM; see `batch.BatchArrays`.

    Attributes:
      page_runs: `runs.pack` of the page table.
      tree_mask: int32[max_num_tokens] with `problem.has_tree_mask`, else None. Bit j of a token:
        it sees new token j of its sequence.
    """

    kv_lens: Ref
    page_runs: Ref
    cu_q_lens: Ref
    distribution: Ref
    pages_per_seq: int
    num_pages: int
    tree_mask: Ref | None = None

    def q_len(self, seq: Scalar) -> Scalar:
        """New tokens of a sequence."""
        return self.cu_q_lens[seq + 1] - self.cu_q_lens[seq]

    def entry(self, seq: Scalar, index: Scalar) -> Scalar:
        """Where the page table has page `index` of a sequence."""
        return seq * self.pages_per_seq + index

    def read(self, entry: Scalar) -> runs.Entry:
        """What an entry says, one of a page that its sequence's context reaches.

        Entries past those may be anything, and may be past the end of the table.
        """
        return runs.read(self.page_runs[entry], self.num_pages)


# The start of a window, in operations that are cheap on the scalar unit.
scalar_window_start = partial(window_start, maximum=jnp.maximum, floordiv=div)


@dataclass(frozen=True, kw_only=True, slots=True)
class PagedCache:
    """The KV cache in HBM, addressed by sequence and position.

    Attributes:
      meta: Scalars of the batch.
      hbm: `problem.kv_cache_shape` with pages and tokens of a page as one dimension; as it is
        where tokens lie along lanes.
      problem: Static shapes.

    Buffers are KV buffers in VMEM: [tokens, padded words, packing, lanes]; with tokens along lanes
    [pages or parts of one, 2 * KV heads, padded words, packing, tokens]; with latents [rows, tokens
    of a row, maybe padded lanes]. What is padded makes a copy's descriptor strided.
    """

    @property
    def page_rows(self) -> int:
        """Rows of a page."""
        problem = self.problem
        return 1 if problem.is_seq_along_lane else problem.page_size // problem.row_tokens

    def rows(self, num_tokens: Scalar, max_tokens: int) -> Scalar:
        """Rows of a buffer that `start_fetch` fills."""
        if self.problem.is_latent:
            return cdiv(num_tokens, self.problem.row_tokens)
        if not self.problem.is_seq_along_lane:
            return num_tokens
        return cdiv(num_tokens, min(max_tokens, self.problem.page_size))

    def _rows_of(self, buffer: Ref, row: Scalar, size: Scalar) -> Ref:
        """So many rows of a buffer, without what pads a token, or a head of a page, in VMEM."""
        if self.problem.is_seq_along_lane:
            return buffer.at[pl.ds(row, size), :, pl.ds(0, self.problem.kv_words)]
        if self.problem.is_latent:
            return buffer.at[pl.ds(row, size), :, pl.ds(0, self.problem.k_lanes)]
        return buffer.at[pl.ds(row, size), pl.ds(0, self.problem.kv_words)]

    meta: Meta
    hbm: Ref
    problem: Problem

    def start_fetch(
        self,
        buffer: Ref,
        sem: Ref,
        *,
        row: Scalar,
        seq: Scalar,
        start: Scalar,
        num_tokens: Scalar,
        max_tokens: int,
    ) -> None:
        """Starts copying cached tokens [start, start + num_tokens) to `buffer` from `row` on.

        Args:
          buffer: Where to.
          sem: DMA semaphore; counts the bytes that `wait` takes off.
          row: First token of the buffer to fill; whole rows before it.
          seq: Sequence index.
          start: First position, within the sequence's pages even if nothing is fetched; a multiple
            of the page size, or of `max_tokens` where that is a part of a page.
          num_tokens: Tokens to fetch; nothing at or below 0.
          max_tokens: Static bound on `num_tokens`: whole pages, or a whole part of one.
        """
        page_size, left = self.problem.page_size, jnp.maximum(num_tokens, 0)
        if in_tiles(self.problem):
            row, left = self.rows(row, max_tokens), self.rows(left, max_tokens)
        entry, end_row = self.meta.entry(seq, div(start, page_size)), row + left
        if self.problem.is_seq_along_lane and max_tokens <= page_size:
            in_page: Any = rem(start, page_size)
            tokens = pl.ds(pl.multiple_of(in_page, layout.LANES), max_tokens)
            part = self.hbm.at[pl.ds(self.meta.read(entry).page, left), :, :, :, tokens]
            pltpu.make_async_copy(part, self._rows_of(buffer, row, left), sem).start()
            return
        if max_tokens <= page_size:
            in_page = rem(start, page_size) if max_tokens < page_size else 0
            most = max_tokens
            if self.problem.is_latent:
                in_page, most = (div(x, self.problem.row_tokens) for x in (in_page, most))
            token = self.meta.read(entry).page * self.page_rows + in_page
            self._start_copy(buffer, sem, token, row, jnp.minimum(left, most))
            return

        def copy_runs(place: _Place, count: int) -> _Place:
            for _ in range(count):
                place = self._copy_run(buffer, sem, place, end_row)
            return place

        max_pages = cdiv(max_tokens, page_size)
        if max_pages <= MAX_UNROLLED_PAGES:
            copy_runs(_Place(entry, left), max_pages)
        else:
            jax.lax.while_loop(
                lambda place: place.left > 0,
                lambda place: copy_runs(place, COPIES_IN_A_TURN),
                _Place(entry, left),
            )

    def _copy_run(self, buffer: Ref, sem: Ref, place: "_Place", end_row: Scalar) -> "_Place":
        """Starts the copy of the run at a place, or of nothing at the end; returns the next place.

        A copy of nothing names a page, too: that of the last copy, because entries past a
        sequence's pages may be anything, and a bad address need not be harmless.
        """
        page_rows, (entry, left) = self.page_rows, place
        page, count = self.meta.read(entry)
        size = count * page_rows
        self._start_copy(buffer, sem, page * page_rows, end_row - left, jnp.minimum(size, left))
        has_more = size < left
        return _Place(
            jnp.where(has_more, entry + count, entry), jnp.where(has_more, left - size, 0)
        )

    def _start_copy(self, buffer: Ref, sem: Ref, token: Scalar, row: Scalar, size: Scalar) -> None:
        """Starts copying `size` rows from row `token` of the cache on to a buffer's row."""
        pltpu.make_async_copy(
            self.hbm.at[pl.ds(token, size)],
            self._rows_of(buffer, row, size),
            sem,
        ).start()

    def wait(self, buffer: Ref, sem: Ref, num_rows: Scalar) -> None:
        """Waits until `num_rows` rows in all, maybe none, have arrived in or left `buffer`.

        A wait counts bytes, whichever copies they came from, so one wait serves many copies.
        """

        @pl.when(num_rows > 0)
        def _() -> None:
            rows = self._rows_of(buffer, 0, num_rows)
            pltpu.make_async_copy(rows, rows, sem).wait()

    def start_write_tile(self, tile: Ref, sem: Ref, *, seq: Scalar, position: Scalar) -> None:
        """Starts writing the tile that a position lies in; see `latent.in_tiles`."""
        page_size = self.problem.page_size
        page = self.meta.read(self.meta.entry(seq, div(position, page_size))).page
        if self.problem.is_latent:
            row = div(rem(position, page_size), self.problem.row_tokens)
            pltpu.make_async_copy(tile, self.hbm.at[page * self.page_rows + row], sem).start()
            return
        lane: Any = rem(position, page_size) & -layout.LANES
        tokens = pl.ds(pl.multiple_of(lane, layout.LANES), layout.LANES)
        pltpu.make_async_copy(tile, self.hbm.at[page, :, :, :, tokens], sem).start()

    def start_write(
        self,
        buffer: Ref,
        sem: Ref,
        *,
        row: Scalar,
        seq: Scalar,
        start: Scalar,
        num_tokens: Scalar,
    ) -> None:
        """Starts copying `num_tokens` rows of `buffer` from `row` on to the cache at `start`.

        `start` need not be aligned: the first and last copies may cover part of a page.
        """
        page_size = self.problem.page_size
        first, offset = self.meta.entry(seq, div(start, page_size)), rem(start, page_size)

        def copy_run(index: Scalar) -> Scalar:
            """Starts the copy of the run at `index`; returns the next index."""
            page, count = self.meta.read(first + index)
            following = index + count
            # Page i covers [i * page_size - offset, (i + 1) * page_size - offset) of the rows.
            begin = jnp.maximum(index * page_size - offset, 0)
            size = jnp.minimum(following * page_size - offset, num_tokens) - begin
            token = page * page_size + jnp.where(index == 0, offset, 0)
            rows = buffer.at[pl.ds(row + begin, size), pl.ds(0, self.problem.kv_words)]
            pltpu.make_async_copy(rows, self.hbm.at[pl.ds(token, size)], sem).start()
            return following

        num_pages = cdiv(offset + num_tokens, page_size)
        jax.lax.while_loop(lambda index: index < num_pages, copy_run, jnp.int32(0))


class _Place(NamedTuple):
    """Where a fetch is: an entry of the page table, the last run's at the end, and tokens left."""

    entry: Scalar
    left: Scalar


def fetch_sinks(sinks_hbm: Ref | None, buffer: Ref | None, sem: Ref) -> None:
    """Brings the attention sinks to VMEM, once per launch."""
    if sinks_hbm is not None:
        copy = pltpu.make_async_copy(sinks_hbm, buffer, sem)
        copy.start()
        copy.wait()
