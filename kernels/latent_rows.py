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
        x = rows.reshape(count, lanes)
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
    left = num_valid - pack * jax.lax.broadcasted_iota(jnp.int32, words.shape, 0)
    if pack == 1:
        return jnp.where(left > 0, words, jnp.zeros_like(words))
    kept = (jnp.uint32(1) << (left * (32 // pack)).astype(jnp.uint32)) - jnp.uint32(1)
    kept = jnp.where(left >= pack, jnp.uint32(0xFFFFFFFF), kept)
    return jnp.where(left > 0, words & kept, jnp.zeros_like(words))


def put_token(
    ref: Ref,
    lead: tuple[Scalar, ...],
    token: Scalar,
    new: tuple[Ref, tuple[Scalar, ...], Scalar],
    out: tuple[Ref, tuple[Scalar, ...]],
    *,
    on_chip: bool,
) -> None:
    """Puts one new token into a row of a KV buffer.

    Args:
      ref: KV buffers.
      lead: Indices down to the row.
      token: Place in the row.
      new: Rows of new tokens, indices down to one, and the token's place in it.
      out: Rows, and indices down to one that gets the result, too.
      on_chip: Which body.
    """
    new_ref, new_lead, new_token = new
    if on_chip:
        pack = layout.packing(str(ref.dtype))
        bits = 32 // pack
        words, new_words = ref.bitcast(jnp.uint32), new_ref.bitcast(jnp.uint32)
        where = (*lead, pl.ds(div(token, pack), 1))
        word = new_words[(*new_lead, pl.ds(div(new_token, pack), 1))]
        if pack > 1:
            mask = jnp.uint32((1 << bits) - 1)
            shift = (rem(token, pack) * bits).astype(jnp.uint32)
            value = (word >> (rem(new_token, pack) * bits).astype(jnp.uint32)) & mask
            word = (words[where] & ~(mask << shift)) | (value << shift)
        words[where] = word
        out[0][out[1]] = ref[lead]
        return
    old, own = _bits(ref[lead]), _bits(new_ref[(*new_lead, pl.ds(new_token, 1))])
    place = jax.lax.broadcasted_iota(jnp.int32, old.shape, 0)
    row = jax.lax.bitcast_convert_type(jnp.where(place == token, own, old), ref.dtype)
    ref[lead] = row
    out[0][out[1]] = row


def _bits(x: jax.Array) -> jax.Array:
    """Its bits: a CPU may turn one NaN into another on the way."""
    width = 8 * layout.dtype_bytes(str(x.dtype))
    return jax.lax.bitcast_convert_type(x, jnp.dtype(f"uint{width}"))
