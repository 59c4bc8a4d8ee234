"""Loads and updates of KV whose tokens lie along lanes.

A buffer is [..., pages, 2 * KV heads, padded words, packing, tokens of a page], or parts of pages:
K and V of a head are each [head_dim, tokens] in 32-bit words, so that taking one out costs nothing.
What pads their words is whole vector registers, or nothing, and is never read. The unit is a lane
tile of 128 tokens. New tokens are tiles, too, in the order of the batch (`inputs.py`); a token
moves to its lane by a rotation.

Each function has a body for the chip and one for the interpreter, as in `packed.py`.
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from rpa_kernels import layout
from rpa_kernels.ints import div, rem
from rpa_kernels.layout import LANES
from rpa_kernels.packed import word_rows

Ref = Any
Scalar = Any


def load(
    ref: Ref,
    lead: tuple[Scalar, ...],
    *,
    part: int,
    words: int,
    start: Scalar,
    count: int,
    num_valid: Scalar | None,
    on_chip: bool,
) -> jax.Array:
    """Loads K or V of one head for `count` tokens of a KV buffer.

    Args:
      ref: KV buffers.
      lead: Indices down to the buffer.
      part: Twice the head, and one more for V.
      words: Words of head_dim in the cache.
      start: First token in the buffer, at a lane tile.
      count: Tokens, whole lane tiles.
      num_valid: Tokens that were fetched, counted from `start`; later ones read as zero. None if
        all were.
      on_chip: Which body.

    Returns:
      [head_dim, count] in the dtype of the buffer; head_dim is whole lanes, as queries have, with
      zeros behind what the cache has.
    """
    tiles = []
    for first in range(0, count, LANES):
        page, lane = _place(start, first, count, ref.shape[-1])
        left = None if num_valid is None else num_valid - first
        place = (page, part, lane)
        tiles.append(_load_tile(ref, lead, place, words, left, on_chip=on_chip))
    x = tiles[0] if len(tiles) == 1 else jnp.concatenate(tiles, axis=1)
    missing = -x.shape[0] % LANES
    return jnp.concatenate([x, jnp.zeros((missing, count), x.dtype)], axis=0) if missing else x


def load_by_token(*args: Any, **kwargs: Any) -> jax.Array:
    """As `load`, turned round: [count, head_dim]."""
    x = load(*args, **kwargs)
    if x.dtype.itemsize > 1:
        return x.T
    # Registers of bytes cannot be turned round, and converting float8 costs more than its bits do.
    turned = _bits(x).astype(jnp.uint32).T.astype(jnp.uint8)
    return jax.lax.bitcast_convert_type(turned, x.dtype)


def _place(start: Scalar, first: int, count: int, width: int) -> tuple[Scalar, Scalar]:
    """Page and lane of token `start + first`; static lanes where blocks are whole pages."""
    if count % width == 0:
        return div(start, width) + first // width, first % width
    token = start + first
    return div(token, width), rem(token, width)


def _load_tile(
    ref: Ref, lead: tuple[Scalar, ...], place: tuple[Scalar, int, Scalar], words: int,
    num_valid: Scalar | None, *, on_chip: bool,
) -> jax.Array:  # fmt: skip
    """Loads one lane tile of K or V, at (page, part, lane): [padded head_dim, 128]."""
    page, part, lane = place

    def valid(x: jax.Array) -> jax.Array:
        if num_valid is None:
            return x
        token = jax.lax.broadcasted_iota(jnp.int32, x.shape, 1)
        return jnp.where(token < num_valid, x, jnp.zeros_like(x))

    if not on_chip:
        tokens = pl.ds(lane, LANES)
        tile = ref[(*lead, page, part, pl.ds(0, words), slice(None), tokens)]
        return valid(tile.reshape(-1, LANES))
    rows = _tile_rows(ref, page * ref.shape[-4] + part, lane, words)
    return pltpu.bitcast(valid(word_rows(ref, lead)[rows]), ref.dtype)


def _tile_rows(ref: Ref, part: Scalar, lane: Scalar, words: int) -> Any:
    """Rows of `word_rows` that hold a lane tile of a part, counted through pages."""
    padded, folds = ref.shape[-3], ref.shape[-1] // LANES
    row = part * (padded * folds)
    if folds > 1:
        return pl.ds(row + div(lane, LANES), words, folds)
    # Words of head_dim, and what pads them, are whole vector registers.
    return pl.ds(row if isinstance(row, int) else aligned(row, padded), words)


def aligned(value: Any, multiple: int) -> Any:
    """The same scalar; the compiler is told that it is a multiple."""
    return pl.multiple_of(value, multiple)


@dataclass(frozen=True, kw_only=True, slots=True)
class NewTokens:
    """New tokens that belong into one lane tile.

    Attributes:
      ref: Tiles of new tokens, [..., 2 * KV heads, words, packing, 128].
      first: Indices down to the tile that has the first 128 - `offset` of the 128 tokens.
      second: Indices down to the tile that has the others.
      offset: Lane, in the first tile, of the token that belongs into lane 0.
      begin: First lane that takes a new token.
      end: Lane after the last one.
    """

    ref: Ref
    first: tuple[Scalar, ...]
    second: tuple[Scalar, ...]
    offset: Scalar
    begin: Scalar
    end: Scalar


def put_tokens(
    ref: Ref,
    lead: tuple[Scalar, ...],
    start: Scalar,
    new: NewTokens,
    out: tuple[Ref, tuple[Scalar, ...]] | None = None,
    *,
    on_chip: bool,
) -> None:
    """Puts new tokens into a lane tile of a KV buffer.

    Args:
      ref: KV buffers.
      lead: Indices down to the buffer.
      start: First token of the lane tile in the buffer.
      new: What goes there.
      out: Tiles, and indices down to one that gets the result, too.
      on_chip: Which body.
    """
    parts, width, words = ref.shape[-4], ref.shape[-1], new.ref.shape[-3]
    page, lane = div(start, width), rem(start, width)

    def merged(old: jax.Array, first: jax.Array, second: jax.Array, *, roll: Any) -> jax.Array:
        token = jax.lax.broadcasted_iota(jnp.int32, old.shape, old.ndim - 1)
        both = jnp.where(token >= new.offset, first, second)
        both = roll(both, (LANES - new.offset) & (LANES - 1), old.ndim - 1)
        return jnp.where((token >= new.begin) & (token < new.end), both, old)

    @pl.loop(0, parts)
    def _(part: Scalar) -> None:
        if not on_chip:
            tokens = pl.ds(lane, LANES)
            where = (*lead, page, part, pl.ds(0, words), slice(None), tokens)
            read = (_bits(new.ref[(*tile, part)]) for tile in (new.first, new.second))
            tile = merged(_bits(ref[where]), *read, roll=jnp.roll)
            ref[where] = jax.lax.bitcast_convert_type(tile, ref.dtype)
            if out is not None:
                out[0][(*out[1], part)] = jax.lax.bitcast_convert_type(tile, ref.dtype)
            return
        view, rows = word_rows(ref, lead), _tile_rows(ref, page * parts + part, lane, words)
        own = _tile_rows(new.ref, part, 0, words)
        read = (word_rows(new.ref, tile)[own] for tile in (new.first, new.second))
        tile = merged(view[rows], *read, roll=pltpu.roll)
        view[rows] = tile
        if out is not None:
            word_rows(*out)[own] = tile


def _bits(x: jax.Array) -> jax.Array:
    """Its bits: a CPU may turn one NaN into another on the way."""
    width = 8 * layout.dtype_bytes(str(x.dtype))
    return jax.lax.bitcast_convert_type(x, jnp.dtype(f"uint{width}"))
