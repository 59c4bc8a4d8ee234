"""Loads and updates of latent rows in VMEM.

A buffer is [..., rows, tokens of a row, lanes], as the cache is (`latent.py`): `packing` tokens of
a row share one 32-bit word. Each function has a body for the chip and one for the interpreter, as
in `packed.py`.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from rpa_kernels import layout, packed
from rpa_kernels.ints import div, rem
from rpa_kernels.lane_pages import NewTokens

Ref = Any
Scalar = Any


def load(
    ref: Ref,
    lead: tuple[Scalar, ...],
    *,
    start: Scalar,
    count: int,
    lanes: int,
    num_valid: Scalar | None,
    on_chip: bool,
) -> jax.Array:
    """Loads `count` tokens of a KV buffer.

    Args:
      ref: KV buffers.
      lead: Indices down to the buffer.
      start: First token in the buffer, at a row.
      count: Tokens, whole rows.
      lanes: Lanes of each: those of the latent, or all.
      num_valid: Tokens that were fetched, counted from `start`; later ones read as zero. None if
        all were.
      on_chip: Which body.

    Returns:
      [count, lanes] in the dtype of the buffer.
    """
    tokens, pack = ref.shape[-2], layout.packing(str(ref.dtype))
    row = div(start, tokens)
    if not on_chip or tokens != pack:
        rows = ref[(*lead, pl.ds(row, count // tokens), slice(None), pl.ds(0, lanes))]
        x: jax.Array = rows.reshape(count, lanes)
        if num_valid is None:
            return x
        if not on_chip:
            token = jax.lax.broadcasted_iota(jnp.int32, x.shape, 0)
            return jnp.where(token < num_valid, x, jnp.zeros_like(x))
        words = pltpu.bitcast(x, jnp.uint32)
    else:
        words = packed.load_words(
            ref, lead, row=row, count=count // pack, stride=1, num_lanes=lanes
        )
    if num_valid is not None:
        words = _first(words, num_valid, pack)
    return pltpu.bitcast(words, ref.dtype)


def _first(words: jax.Array, num_valid: Scalar, pack: int) -> jax.Array:
    """Words [count, lanes] with zeros in the place of all tokens but the first `num_valid`."""
    token = pack * jax.lax.broadcasted_iota(jnp.int32, words.shape, 0)
    return words & _low(num_valid - token, pack)


def _low(count: jax.Array, pack: int) -> jax.Array:
    """Words whose first `count` tokens are ones, none below 1 and all from `pack` on."""
    part = (jnp.clip(count, 0, pack - 1) * (32 // pack)).astype(jnp.uint32)
    ones = jnp.uint32(0xFFFFFFFF)
    return jnp.where(count >= pack, ones, (jnp.uint32(1) << part) - jnp.uint32(1))


def put_tokens(
    ref: Ref,
    lead: tuple[Scalar, ...],
    new: NewTokens,
    out: tuple[Ref, tuple[Scalar, ...]] | None = None,
    *,
    on_chip: bool,
) -> None:
    """Puts new tokens into a row of a KV buffer.

    Args:
      ref: KV buffers; their rows may have lanes more.
      lead: Indices down to the row.
      new: What goes there. Its tiles are rows, and its lanes places in a row.
      out: Rows, and indices down to one that gets the result, too.
      on_chip: Which body.
    """
    own_lanes = (*lead, slice(None), pl.ds(0, new.ref.shape[-1]))
    loaded = (ref[own_lanes], new.ref[new.first], new.ref[new.second])
    if on_chip:
        old, first, second = (pltpu.bitcast(x, jnp.uint32) for x in loaded)
        row = pltpu.bitcast(_merged_words(old, first, second, new), ref.dtype)
    else:
        old, first, second = (_bits(x) for x in loaded)
        place = jax.lax.broadcasted_iota(jnp.int32, old.shape, 0)
        own = jnp.roll(jnp.where(place >= new.offset, first, second), -new.offset, axis=0)
        bits = jnp.where((place >= new.begin) & (place < new.end), own, old)
        row = jax.lax.bitcast_convert_type(bits, ref.dtype)
    ref[own_lanes] = row
    if out is not None:
        out[0][out[1]] = row


def _merged_words(old: jax.Array, first: jax.Array, second: jax.Array, new: NewTokens) -> jax.Array:
    """`put_tokens` on words, each [words of a row, lanes]."""
    pack = layout.packing(str(new.ref.dtype))
    num_words = old.shape[0]
    word = jax.lax.broadcasted_iota(jnp.int32, old.shape, 0)

    def words_from(start: Scalar) -> jax.Array:
        """So many words of both rows, from word `start` of the first on."""
        if num_words == 1:
            return jnp.where(start > 0, second, first)
        mixed = jnp.where(word >= start, first, second)
        return pltpu.roll(mixed, rem(num_words - start, num_words), 0)

    own = words_from(div(new.offset, pack))
    if pack > 1:
        # A token may be in another part of its word than the place that it goes to.
        shift = jnp.uint32(rem(new.offset, pack) * (32 // pack))
        behind = words_from(div(new.offset, pack) + 1)
        own = (own >> shift) | ((behind << jnp.uint32(1)) << (jnp.uint32(31) - shift))
    place = word * pack
    mask = _low(new.end - place, pack) & ~_low(new.begin - place, pack)
    return old ^ ((own ^ old) & mask)


def _bits(x: jax.Array) -> jax.Array:
    """Its bits: a CPU may turn one NaN into another on the way."""
    width = 8 * layout.dtype_bytes(str(x.dtype))
    return jax.lax.bitcast_convert_type(x, jnp.dtype(f"uint{width}"))
