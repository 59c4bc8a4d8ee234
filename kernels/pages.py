"""Moves one span of a sequence's KV between the paged cache in HBM and a buffer in VMEM.

Every copy names a page and a run of tokens in it; nothing is fetched or written beyond the
tokens asked for, so the byte counts of `account` are exact. Positions are tokens from the start
of the sequence's context.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from rpa_kernels.ints import cdiv, div, rem
from rpa_kernels.problem import Problem
from rpa_kernels.window import window_start

Ref = Any
Scalar = Any  # int or int32 scalar

# Page copies up to this count are laid out one after another with sizes that may be zero: no
# branch between them, and a zero-size copy costs only its bundle. Beyond it a loop keeps the
# code small.
MAX_UNROLLED_PAGES = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class Meta:
    """The scalar-prefetch arrays in SMEM; see `batch.BatchArrays`."""

    kv_lens: Ref
    page_indices: Ref
    cu_q_lens: Ref
    distribution: Ref
    pages_per_seq: int

    def entry(self, seq: Scalar, index: Scalar) -> Scalar:
        """Where `page_indices` has page `index` of a sequence."""
        return seq * self.pages_per_seq + index

    def page(self, seq: Scalar, index: Scalar) -> jax.Array:
        """Physical page `index` of a sequence, one that its context reaches.

        Entries past those may be anything, and may be past the end of the table.
        """
        page: jax.Array = self.page_indices[self.entry(seq, index)]
        return page


# The start of a window, in operations that are cheap on the scalar unit.
scalar_window_start = partial(window_start, maximum=jnp.maximum, floordiv=div)


@dataclass(frozen=True, kw_only=True, slots=True)
class PagedCache:
    """The KV cache in HBM, addressed by sequence and position.

    Buffers are KV buffers in VMEM: [tokens, padded words, packing, lanes].
    """

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
          row: First token of the buffer to fill.
          seq: Sequence index.
          start: First position, within the sequence's pages even if nothing is fetched; a multiple
            of the page size, or of `max_tokens` where that is a part of a page.
          num_tokens: Tokens to fetch; nothing at or below 0.
          max_tokens: Static bound on `num_tokens`: whole pages, or a whole part of one.
        """
        page_size, words = self.problem.page_size, self.problem.kv_words
        first = self.meta.entry(seq, div(start, page_size))
        in_page = rem(start, page_size) if max_tokens < page_size else 0

        def copy_page(i: Scalar, entry: Scalar) -> None:
            size = jnp.clip(num_tokens - i * page_size, 0, min(page_size, max_tokens))
            pltpu.make_async_copy(
                self.hbm.at[self.meta.page_indices[entry], pl.ds(in_page, size)],
                buffer.at[pl.ds(row + i * page_size, size), pl.ds(0, words)],
                sem,
            ).start()

        max_pages = cdiv(max_tokens, page_size)
        if max_pages <= MAX_UNROLLED_PAGES:
            # A copy of no tokens names a page too. It is the last one that is fetched from: entries
            # past a sequence's pages may be anything, and a bad address need not be harmless.
            last = first + div(jnp.maximum(num_tokens, 1) - 1, page_size)
            for i in range(max_pages):
                copy_page(i, jnp.minimum(first + i, last) if i else first)
        else:
            pl.loop(0, cdiv(jnp.maximum(num_tokens, 0), page_size))(
                lambda i: copy_page(i, first + i)
            )

    def wait(self, buffer: Ref, sem: Ref, num_tokens: Scalar) -> None:
        """Waits until `num_tokens` tokens in all, maybe none, have arrived in or left `buffer`.

        A wait counts bytes, whichever copies they came from, so one wait serves many copies.
        """

        @pl.when(num_tokens > 0)
        def _() -> None:
            tokens = buffer.at[pl.ds(0, num_tokens), pl.ds(0, self.problem.kv_words)]
            pltpu.make_async_copy(tokens, tokens, sem).wait()

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
        page_size, words = self.problem.page_size, self.problem.kv_words
        first_page, offset = div(start, page_size), rem(start, page_size)

        @pl.loop(0, cdiv(offset + num_tokens, page_size))
        def _(i: jax.Array) -> None:
            # Page i covers [i * page_size - offset, (i + 1) * page_size - offset) of the rows.
            begin = jnp.maximum(i * page_size - offset, 0)
            size = jnp.minimum((i + 1) * page_size - offset, num_tokens) - begin
            in_page = jnp.where(i == 0, offset, 0)
            pltpu.make_async_copy(
                buffer.at[pl.ds(row + begin, size), pl.ds(0, words)],
                self.hbm.at[self.meta.page(seq, first_page + i), pl.ds(in_page, size)],
                sem,
            ).start()


def fetch_sinks(sinks_hbm: Ref | None, buffer: Ref | None, sem: Ref) -> None:
    """Brings the attention sinks to VMEM, once per launch."""
    if sinks_hbm is not None:
        copy = pltpu.make_async_copy(sinks_hbm, buffer, sem)
        copy.start()
        copy.wait()
