"""New tokens of a step, where they are written with their neighbours (`latent.in_tiles`).

A token is one lane of a lane tile of 128 tokens, or one of the tokens in a row of latents; copies
move tiles whole. The tile came with the sequence's last KV block; the token is put into it for the
step's products, and the tile goes back to the cache from a buffer of its own, so that the KV buffer
can be filled again at once. Nobody else reads or writes the tile: the last page of a sequence is
its own. Several new tokens of a sequence may lie in several tiles, and in two KV blocks, but no
tile lies in two of those.
"""

from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
from jax.experimental import pallas as pl

from rpa_kernels import lane_pages, latent_rows
from rpa_kernels.decode.account import item_tiles, new_tiles
from rpa_kernels.decode.config import DecodeConfig
from rpa_kernels.decode.scratch import Scratch
from rpa_kernels.decode.seq_blocks import SeqBlocks
from rpa_kernels.decode.walk import Item
from rpa_kernels.ints import div, rem
from rpa_kernels.latent import tile_tokens
from rpa_kernels.pages import PagedCache
from rpa_kernels.problem import Problem

Ref = Any
Scalar = Any


@dataclass(frozen=True, kw_only=True, slots=True)
class TileWrites:
    """Refs and statics; a slot is a KV buffer, and has buffers for as many tiles as items."""

    cache: PagedCache
    scratch: Scratch
    seq_blocks: SeqBlocks
    problem: Problem
    config: DecodeConfig
    on_chip: bool

    def reset(self) -> None:
        """Before the first step: nothing is on its way."""
        _, unwritten = self._written
        for slot in range(self.config.num_buffers):
            unwritten[slot] = 0

    @property
    def _written(self) -> tuple[Ref, Ref]:
        """The tiles on their way to the cache, and how many of each slot."""
        tiles: Ref = self.scratch.kv_out
        unwritten: Ref = self.scratch.unwritten
        return tiles, unwritten

    def put(self, slot: Scalar, items: list[Item]) -> None:
        """Puts the new tokens of a step into its KV buffer, and starts writing their tiles."""
        s, tiles, unwritten = self.scratch, *self._written
        self._wait(slot)
        if self.problem.decode_query_size > 1:
            unwritten[slot] = self._put_several(slot, items)
            return
        num_new: Scalar = 0
        for g, item in enumerate(items):
            has_new = item.num_cached < item.num_tokens
            num_new += has_new.astype(jnp.int32)

            @pl.when(has_new)
            def _(g: int = g, item: Item = item) -> None:
                *tile, new_place = self.seq_blocks.new_token(item.seq)
                place = rem(item.num_cached, tile_tokens(self.cache.problem))
                self._put_token((slot, g), item.num_cached, place, (tuple(tile), new_place))
                self.cache.start_write_tile(
                    tiles.at[slot, g], s.write_sems.at[slot], seq=item.seq,
                    position=item.kv_len - 1,
                )  # fmt: skip

        unwritten[slot] = num_new

    def _put_several(self, slot: Scalar, items: list[Item]) -> Scalar:
        """The same for up to several new tokens of an item; returns how many tiles they lie in."""
        num_tiles: Scalar = 0
        size = tile_tokens(self.problem)
        for g, item in enumerate(items):
            has_new = item.num_cached < item.num_tokens
            aligned = item.num_cached - rem(item.num_cached, size)
            for i in range(item_tiles(self.problem)):
                start = aligned + i * size
                is_there = has_new & (start < item.num_tokens)
                num_tiles += is_there.astype(jnp.int32)

                @pl.when(is_there)
                def _(g: int = g, i: int = i, item: Item = item, start: Scalar = start) -> None:
                    self._put_tile(slot, (g, i), item, start)

        return num_tiles

    def _put_tile(self, slot: Scalar, place: tuple[int, int], item: Item, start: Scalar) -> None:
        """Puts an item's new tokens into one tile, and starts writing it.

        Args:
          slot: KV buffer.
          place: Number of the item in the step, and of the tile among those with its new tokens.
          item: Whose.
          start: First token of the tile, counted from the item's.
        """
        s, (g, i), (tiles, _) = self.scratch, place, self._written
        buffer, tile, new_place = self.seq_blocks.new_token(item.seq)
        size = tile_tokens(self.problem)
        # Of the token for place 0, from the buffer's first tile on; maybe before or behind them:
        # below zero it is rounded down, too, as sizes of tiles are powers of two.
        source = tile * size + new_place + item.start + start - item.first_query
        last = new_tiles(self.problem, self.config) - 1
        first, second = (jnp.clip(div(source, size) + k, 0, last) for k in range(2))
        new = lane_pages.NewTokens(
            ref=s.kv_new, first=(buffer, first), second=(buffer, second),
            offset=rem(source, size), begin=jnp.maximum(item.num_cached - start, 0),
            end=jnp.minimum(item.num_tokens - start, size),
        )  # fmt: skip
        out = (slot, g * item_tiles(self.problem) + i)
        self._put_new(slot, g * self.config.bkv_sz + start, new, out)
        self.cache.start_write_tile(
            tiles.at[out], s.write_sems.at[slot], seq=item.seq, position=item.start + start
        )

    def _put_token(
        self,
        out: tuple[Scalar, int],
        token: Scalar,
        place: Scalar,
        new: tuple[tuple[Scalar, ...], Scalar],
    ) -> None:
        """Puts a token into its tile of the KV buffer, and the tile into the one that is sent.

        Args:
          out: Slot and item.
          token: Its number in the item's KV block.
          place: The token's in the tile.
          new: Indices down to a tile of new tokens, and the token's place in it.
        """
        s, (slot, g), (tile, new_place) = self.scratch, out, new
        first, size = g * self.config.bkv_sz, tile_tokens(self.cache.problem)
        tokens = lane_pages.NewTokens(
            ref=s.kv_new, first=tile, second=tile, offset=(new_place - place) & (size - 1),
            begin=place, end=place + 1,
        )  # fmt: skip
        self._put_new(slot, first + token - place, tokens, out)

    def _put_new(
        self, slot: Scalar, start: Scalar, new: lane_pages.NewTokens, out: tuple[Scalar, Any]
    ) -> None:
        """Puts new tokens into the tile of a KV buffer that begins at token `start`.

        Args:
          slot: KV buffer.
          start: Token of the buffer.
          new: What goes there.
          out: Slot and number of the tile that gets the result, too, to be sent.
        """
        kv, tiles = self.scratch.kv, self._written[0]
        if self.problem.is_latent:
            row = (slot, div(start, tile_tokens(self.problem)))
            latent_rows.put_tokens(kv, row, new, (tiles, out), on_chip=self.on_chip)
            return
        lane_pages.put_tokens(kv, (slot,), start, new, (tiles, out), on_chip=self.on_chip)

    def _wait(self, slot: Scalar) -> None:
        """Waits until the tiles of the last step of this slot are in the cache."""
        tiles, unwritten = self._written
        self.cache.wait(tiles.at[slot], self.scratch.write_sems.at[slot], unwritten[slot])

    def drain(self) -> None:
        """Waits until all tiles are in the cache."""
        for slot in range(self.config.num_buffers):
            self._wait(slot)
