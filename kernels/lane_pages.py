"""Loads and updates of KV whose tokens lie along lanes.

A buffer is [..., pages, 2 * KV heads, words, packing, tokens of a page], or parts of pages: K and V
of a head are each [head_dim, tokens] in 32-bit words, so that taking one out costs nothing. The unit
is a lane tile of 128 tokens. New tokens are tiles, too, in the order of the batch (`inputs.py`); a
token moves to its lane by a rotation.

Each function has a body for the chip and one for the interpreter, as in `packed.py`.
"""

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
      start: First token in the buffer, at a lane tile.
      count: Tokens, whole lane tiles.
      num_valid: Tokens that were fetched, counted from `start`; later ones read as zero. None if
        all were.
      on_chip: Which body.

    Returns:
      [padded head_dim, count] in the dtype of the buffer.
    """
    tiles = []
    for first in range(0, count, LANES):
        page, lane = _place(start, first, count, ref.shape[-1])
        left = None if num_valid is None else num_valid - first
        tiles.append(_load_tile(ref, lead, page, part, lane, left, on_chip=on_chip))
    return tiles[0] if len(tiles) == 1 else jnp.concatenate(tiles, axis=1)


def _place(start: Scalar, first: int, count: int, width: int) -> tuple[Scalar, Scalar]:
    """Page and lane of token `start + first`; static lanes where blocks are whole pages."""
    if count % width == 0:
        return div(start, width) + first // width, first % width
    token = start + first
    return div(token, width), rem(token, width)


def _load_tile(
    ref: Ref, lead: tuple[Scalar, ...], page: Scalar, part: int, lane: Scalar,
    num_valid: Scalar | None, *, on_chip: bool,
) -> jax.Array:  # fmt: skip
    """Loads one lane tile of K or V: [padded head_dim, 128]."""

    def valid(x: jax.Array) -> jax.Array:
        if num_valid is None:
            return x
        token = jax.lax.broadcasted_iota(jnp.int32, x.shape, 1)
        return jnp.where(token < num_valid, x, jnp.zeros_like(x))

    if not on_chip:
        tokens = pl.ds(lane, LANES)
        return valid(ref[(*lead, page, part, slice(None), slice(None), tokens)].reshape(-1, LANES))
    rows = _tile_rows(ref, page * ref.shape[-4] + part, lane)
    return pltpu.bitcast(valid(word_rows(ref, lead)[rows]), ref.dtype)


def _tile_rows(ref: Ref, part: Scalar, lane: Scalar) -> Any:
    """Rows of `word_rows` that hold a lane tile of a part, counted through pages."""
    words, folds = ref.shape[-3], ref.shape[-1] // LANES
    row = part * (words * folds)
    if folds > 1:
        return pl.ds(row + div(lane, LANES), words, folds)
    # Words of head_dim are whole vector registers.
    return pl.ds(row if isinstance(row, int) else pl.multiple_of(row, words), words)


def put_token(
    ref: Ref,
    lead: tuple[Scalar, ...],
    new: Ref,
    new_lead: tuple[Scalar, ...],
    out: Ref,
    out_lead: tuple[Scalar, ...],
    *,
    token: Scalar,
    new_lane: Scalar,
    on_chip: bool,
) -> None:
    """Puts a new token into a KV buffer, and its whole lane tile into `out` to be written.

    Args:
      ref: KV buffers.
      lead: Indices down to the buffer.
      new: New tokens, [..., 2 * KV heads, words, packing, 128].
      new_lead: Indices down to the tile that holds the token.
      out: Tiles of the same shape.
      out_lead: Indices down to the tile to fill.
      token: Where it goes, in the buffer.
      new_lane: Where it is in its tile.
      on_chip: Which body.
    """
    width = ref.shape[-1]
    page, lane = div(token, width), rem(token, width)
    own = lane & (LANES - 1)
    shift = (own - new_lane) & (LANES - 1)
    first = pl.multiple_of(lane - own, LANES)

    def merged(old: jax.Array, rotated: jax.Array) -> jax.Array:
        is_own = jax.lax.broadcasted_iota(jnp.int32, old.shape, old.ndim - 1) == own
        return jnp.where(is_own, rotated, old)

    @pl.loop(0, ref.shape[-4])
    def _(part: Scalar) -> None:
        if not on_chip:
            where = (*lead, page, part, slice(None), slice(None), pl.ds(first, LANES))
            tile = merged(_bits(ref[where]), jnp.roll(_bits(new[(*new_lead, part)]), shift, -1))
            ref[where] = out[(*out_lead, part)] = jax.lax.bitcast_convert_type(tile, ref.dtype)
            return
        view, rows = word_rows(ref, lead), _tile_rows(ref, page * ref.shape[-4] + part, first)
        source = word_rows(new, new_lead)[_tile_rows(new, part, 0)]
        tile = merged(view[rows], pltpu.roll(source, shift, axis=1))
        view[rows] = tile
        word_rows(out, out_lead)[_tile_rows(out, part, 0)] = tile


def _bits(x: jax.Array) -> jax.Array:
    """Its bits: a CPU may turn one NaN into another on the way."""
    width = 8 * layout.dtype_bytes(str(x.dtype))
    return jax.lax.bitcast_convert_type(x, jnp.dtype(f"uint{width}"))
