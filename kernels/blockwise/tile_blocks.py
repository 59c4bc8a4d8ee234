"""New tokens of a KV block, where they are written with their neighbours (`latent.in_tiles`).

Copies move whole tiles, lane tiles of 128 tokens or rows of latents, so what was one copy of new
tokens is three steps: their tiles come in beside the KV block, are moved into their places in it,
and the block's tiles go to the cache.

A tile that has cached tokens, too, is read by every query block that sees it, and may be written
only when none will read it again. So each tile is written by the last query block of its sequence
that visits it: without a window that is the sequence's last one, which sees all new tokens. It also
fetches the pages that have new tokens only, because the rest of the last one must stay as it was.
A sequence's query blocks are all on one core (`partition.py`).
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from rpa_kernels import lane_pages, latent_rows, pages
from rpa_kernels.blockwise.config import BlockwiseConfig
from rpa_kernels.blockwise.scratch import Scratch
from rpa_kernels.blockwise.walk import Block
from rpa_kernels.ints import cdiv, div, rem
from rpa_kernels.latent import tile_tokens
from rpa_kernels.layout import LANES
from rpa_kernels.pages import PagedCache
from rpa_kernels.problem import Problem

Ref = Any
Scalar = Any


def fetch_end(block: Block, problem: Problem) -> Scalar:
    """Position after the last token of a KV block that comes from the cache."""
    cached_end = jnp.minimum(block.kv_end, block.cached_end)
    if not problem.update_kv_cache:
        return cached_end
    return jnp.where(_is_last(block), block.kv_end, cached_end)


def _is_last(block: Block) -> Scalar:
    """Whether a query block is the last of its sequence."""
    return block.next_q.q_block == 0


@dataclass(frozen=True, kw_only=True, slots=True)
class TileBlocks:
    """Refs and statics; a slot is a KV buffer."""

    kv_new: Ref | None
    cache: PagedCache
    scratch: Scratch
    problem: Problem
    config: BlockwiseConfig
    on_chip: bool

    @property
    def _new(self) -> Ref:
        """Tiles of new tokens in VMEM."""
        tiles: Ref = self.scratch.kv_new
        return tiles

    @property
    def _size(self) -> int:
        """Tokens of a tile."""
        return tile_tokens(self.problem)

    def _tiles(self, block: Block) -> tuple[Scalar, Scalar]:
        """The first tile of new tokens in a KV block, and how many there are."""
        start = jnp.maximum(block.kv_start, block.cached_end)
        size = jnp.maximum(block.kv_end - start, 0)
        first = block.new_token + start - block.cached_end
        num_tiles = div(rem(first, self._size) + size + self._size - 1, self._size)
        return (
            jnp.where(size > 0, div(first, self._size), 0),
            jnp.where(size > 0, num_tiles, 0),
        )

    def start_fetch(self, slot: Scalar, block: Block) -> None:
        """Starts fetching the tiles of a block's new tokens."""
        kv_new: Ref = self.kv_new
        first, size = self._tiles(block)
        pltpu.make_async_copy(
            kv_new.at[pl.ds(first, size)],
            self._new.at[slot, pl.ds(0, size)],
            self.scratch.kv_sems.at[slot],
        ).start()

    def wait_and_put(self, slot: Scalar, block: Block) -> None:
        """Waits for the tiles, and puts the new tokens where they belong in the KV block."""
        s, tokens = self.scratch, self._size
        first, size = self._tiles(block)
        self.cache.wait(self._new.at[slot], s.kv_sems.at[slot], size)
        start = jnp.maximum(block.cached_end - block.kv_start, 0)

        @pl.loop(div(start, tokens), jnp.where(size > 0, cdiv(block.num_kv, tokens), 0))
        def _(tile: jax.Array) -> None:
            lane = tile * tokens
            # Of the token that belongs into lane 0, counted from a tile before the first.
            token = block.new_token + (block.kv_start + lane - block.cached_end)
            token += (1 - first) * tokens
            own = div(token, tokens)
            new = lane_pages.NewTokens(
                ref=self._new,
                # What lies before the first tile and behind the last is not put anywhere.
                first=(slot, jnp.maximum(own - 1, 0)),
                second=(slot, jnp.minimum(own, size - 1)),
                offset=rem(token, tokens),
                begin=start - lane,
                end=block.num_kv - lane,
            )
            if self.problem.is_latent:
                latent_rows.put_tokens(s.kv, (slot, tile), new, on_chip=self.on_chip)
            else:
                lane_pages.put_tokens(s.kv, (slot,), lane, new, on_chip=self.on_chip)

    def start_write(self, slot: Scalar, block: Block) -> None:
        """Starts writing the tiles of new tokens that no later query block visits."""
        s, problem, tokens = self.scratch, self.problem, self._size
        next_start = pages.scalar_window_start(block.q_end, problem)
        end = jnp.where(_is_last(block), block.kv_end, jnp.minimum(next_start, block.kv_end))
        first = div(jnp.maximum(block.kv_start, block.cached_end), tokens)
        size = jnp.maximum(cdiv(jnp.maximum(end, 0), tokens) - first, 0)
        s.unwritten[slot] = size

        @pl.loop(0, size)
        def _(index: jax.Array) -> None:
            position = (first + index) * tokens
            self.cache.start_write_tile(
                self._tile_of(slot, position - block.kv_start), s.write_sems.at[slot],
                seq=block.seq, position=position,
            )  # fmt: skip

    def _tile_of(self, slot: Scalar, token: Scalar) -> Ref:
        """The tile of a KV buffer that begins with a token."""
        kv = self.scratch.kv
        if self.problem.is_latent:
            return kv.at[slot, div(token, self._size)]
        width = kv.shape[-1]
        lane: Any = rem(token, width)
        return kv.at[slot, div(token, width), :, :, :, pl.ds(pl.multiple_of(lane, LANES), LANES)]

    def wait_write(self, slot: Scalar) -> None:
        """Waits until a KV buffer's tiles are in the cache."""
        s = self.scratch
        self.cache.wait(self._new.at[slot], s.write_sems.at[slot], s.unwritten[slot])
