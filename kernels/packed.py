"""Loads and stores of heads that share 32-bit words in VMEM.

K and V of a token lie in neighbouring parts of a word, and the heads of a token in neighbouring
words, so taking one head out of a block is a on_chip load of whole words followed by shifts.
Each function has two bodies that mean the same: `on_chip` is the fast one for the chip; the
other indexes values, because the TPU interpreter that finds races knows neither `bitcast` nor
`reshape` of a reference. tests/interpret/test_packed.py proves them equal.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from rpa_kernels import layout

Ref = Any
Scalar = Any


def word_rows(ref: Ref, lead: tuple[Scalar, ...]) -> Ref:
    """View of `ref[*lead]` as [rows, 128] 32-bit words; on the chip."""
    words = ref.bitcast(jnp.uint32).at[lead]
    return words.reshape(math.prod(words.shape) // layout.LANES, layout.LANES)


def load_words(
    ref: Ref,
    lead: tuple[Scalar, ...],
    *,
    row: Scalar,
    count: int,
    stride: int,
    num_lanes: int | None = None,
) -> jax.Array:
    """Loads uint32[count, lanes]: words `row`, `row + stride`, ... of `ref[*lead]`.

    Args:
      ref: [..., packing, lanes] in VMEM.
      lead: Indices of leading dimensions.
      row: First word, counted through all dimensions between `lead` and the last two.
      count: Number of words.
      stride: Words from one to the next.
      num_lanes: Lanes to load, whole registers of them; None for all.
    """
    view = word_rows(ref, lead)
    folds = ref.shape[-1] // layout.LANES
    loaded = range(folds if num_lanes is None else num_lanes // layout.LANES)
    parts = [view[pl.ds(row * folds + fold, count, stride * folds)] for fold in loaded]
    return parts[0] if len(parts) == 1 else jnp.concatenate(parts, axis=1)


def store_words(
    ref: Ref, lead: tuple[Scalar, ...], value: jax.Array, *, row: Scalar, stride: int
) -> None:
    """Stores uint32[count, lanes] where `load_words` would load it."""
    view = word_rows(ref, lead)
    folds = ref.shape[-1] // layout.LANES
    for fold in range(folds):
        lanes = value[:, fold * layout.LANES : (fold + 1) * layout.LANES]
        view[pl.ds(row * folds + fold, value.shape[0], stride * folds)] = lanes


def unpack(words: jax.Array, part: int, dtype: str) -> jax.Array:
    """Takes element `part` of every word: [count, lanes] in `dtype`."""
    bits = 8 * layout.dtype_bytes(dtype)
    if bits == 32:
        return pltpu.bitcast(words, jnp.dtype(dtype))
    narrow = (words >> (part * bits)).astype(jnp.dtype(f"uint{bits}"))
    return pltpu.bitcast(narrow, jnp.dtype(dtype))


def load_kv(
    ref: Ref,
    lead: tuple[Scalar, ...],
    *,
    head: int,
    start: Scalar,
    count: int,
    fused: bool,
    dtype: str,
    num_valid: Scalar | None,
    on_chip: bool,
) -> tuple[jax.Array, jax.Array]:
    """Loads K and V of one head for `count` tokens of a KV buffer.

    Args:
      ref: KV buffers, [..., tokens, padded words, packing, lanes].
      lead: Indices down to the buffer.
      head: KV head.
      start: First token in the buffer.
      count: Tokens to load.
      fused: Whether one row holds K and V side by side; both results are then that row.
      dtype: Dtype name of the buffer.
      num_valid: Tokens that were fetched, counted from `start`; later ones read as zero, so
        that stale bits in them can not turn a zero weight into NaN. None if all are.
      on_chip: Which body; see the module docstring.

    Returns:
      (K, V), each [count, lanes] in `dtype`.
    """
    pack = layout.packing(dtype)
    row = head if fused else 2 * head
    word, part = divmod(row, pack)
    v_word, v_part = (word, part) if fused else divmod(row + 1, pack)
    stride = ref.shape[-3]

    def valid(x: jax.Array) -> jax.Array:
        if num_valid is None:
            return x
        token = jax.lax.broadcasted_iota(jnp.int32, x.shape, 0)
        return jnp.where(token < num_valid, x, jnp.zeros_like(x))

    if not on_chip:
        tokens = pl.ds(start, count)
        k = valid(ref[(*lead, tokens, word, part)])
        return k, (k if fused else valid(ref[(*lead, tokens, v_word, v_part)]))
    words = valid(load_words(ref, lead, row=start * stride + word, count=count, stride=stride))
    k = unpack(words, part, dtype)
    if fused:
        return k, k
    if v_word != word:
        words = valid(
            load_words(ref, lead, row=start * stride + v_word, count=count, stride=stride)
        )
    return k, unpack(words, v_part, dtype)


def load_rows(
    ref: Ref,
    lead: tuple[Scalar, ...],
    *,
    word: int,
    start: Scalar,
    count: int,
    num_rows: int,
    num_valid: Scalar | None,
    on_chip: bool,
) -> jax.Array:
    """Loads all rows of one word for `count` tokens of a KV buffer, as they lie.

    Args:
      ref: KV buffers, [..., tokens, padded words, packing, lanes].
      lead: Indices down to the buffer.
      word: Word of each token.
      start: First token in the buffer.
      count: Tokens to load.
      num_rows: Rows of the word that hold anything; the others read as zero.
      num_valid: Tokens that were fetched; rows of later ones read as zero. None if all were.
      on_chip: Which body.

    Returns:
      [count * packing, lanes]: row t * packing + e is token `start + t`, part e of the word.
    """
    stride, pack, lanes = ref.shape[-3:]
    if not on_chip:
        rows = ref[(*lead, pl.ds(start, count), word)].reshape(count * pack, lanes)
        row = jax.lax.broadcasted_iota(jnp.int32, rows.shape, 0)
        holds = row % pack < num_rows
        if num_valid is not None:
            holds &= row < num_valid * pack
        return jnp.where(holds, rows, jnp.zeros_like(rows))
    words = load_words(ref, lead, row=start * stride + word, count=count, stride=stride)
    if num_rows < pack:
        words &= (1 << (num_rows * 32 // pack)) - 1
    if num_valid is not None:
        token = jax.lax.broadcasted_iota(jnp.int32, words.shape, 0)
        words = jnp.where(token < num_valid, words, jnp.zeros_like(words))
    return pltpu.bitcast(words, ref.dtype)


def load_q(
    ref: Ref, lead: tuple[Scalar, ...], *, head: int, word: int, start: Scalar, count: int,
    on_chip: bool,
) -> jax.Array:  # fmt: skip
    """Loads the query rows of one word of one KV head for `count` tokens.

    Args:
      ref: Query buffers, [..., tokens, KV heads, words, packing, lanes].
      lead: Indices down to the buffer.
      head: KV head.
      word: Word of the head: query heads `word * packing` and up.
      start: First token.
      count: Tokens.
      on_chip: Which body.

    Returns:
      [count * packing, lanes]: row t * packing + e is token `start + t`, part e of the word.
    """
    _, heads, words, pack, lanes = ref.shape[-5:]
    if not on_chip:
        tokens: jax.Array = ref[(*lead, pl.ds(start, count), head, word)]
        return tokens.reshape(count * pack, lanes)
    stride = heads * words
    value = load_words(
        ref, lead, row=start * stride + head * words + word, count=count, stride=stride
    )
    return pltpu.bitcast(value, ref.dtype)


def store_q(
    ref: Ref, lead: tuple[Scalar, ...], value: jax.Array, *, head: int, word: int, start: Scalar,
    on_chip: bool,
) -> None:  # fmt: skip
    """Stores rows where `load_q` would load them; `value` has the dtype of `ref`."""
    _, heads, words, pack, lanes = ref.shape[-5:]
    count = value.shape[0] // pack
    if not on_chip:
        ref[(*lead, pl.ds(start, count), head, word)] = value.reshape(count, pack, lanes)
        return
    stride = heads * words
    row = start * stride + head * words + word
    store_words(ref, lead, pltpu.bitcast(value, jnp.uint32), row=row, stride=stride)


def store_lse(
    ref: Ref, lead: tuple[Scalar, ...], value: jax.Array, *, start: Scalar, on_chip: bool
) -> None:
    """Stores the log-sum-exp of tokens, `start` and up.

    Args:
      ref: [..., tokens, q packing, 1, lanes], float32.
      lead: Indices down to the buffer.
      value: [tokens * packing, lanes]: row t * packing + e is part e of token `start + t`.
      start: First token.
      on_chip: Which body.
    """
    pack, _, lanes = ref.shape[-3:]
    if not on_chip:
        count = value.shape[0] // pack
        ref[(*lead, pl.ds(start, count))] = value.reshape(count, pack, 1, lanes)
        return
    store_words(ref, lead, pltpu.bitcast(value, jnp.uint32), row=start * pack, stride=1)


def load_token_q(
    ref: Ref, lead: tuple[Scalar, ...], *, head: int, count: int = 1, tokens: int = 1, on_chip: bool
) -> jax.Array:
    """Loads the query rows of neighbouring KV heads of a token, or of a few.

    Args:
      ref: Query buffers, [..., tokens, KV heads, words, packing, lanes].
      lead: Indices down to the first token.
      head: First KV head.
      count: KV heads.
      tokens: Tokens.
      on_chip: Which body.

    Returns:
      [count * tokens * words * packing, lanes]: head by head, the tokens of each in their order.
    """
    words, pack, lanes = ref.shape[-3:]
    *outer, first = lead
    if not on_chip:
        rows: jax.Array = ref[(*outer, pl.ds(first, tokens), pl.ds(head, count))]
        return rows.swapaxes(0, 1).reshape(count * tokens * words * pack, lanes)
    if tokens == 1:
        value = load_words(ref, lead, row=head * words, count=count * words, stride=1)
        return pltpu.bitcast(value, ref.dtype)
    parts = [
        load_words(ref, (*outer, first + t), row=(head + k) * words, count=words, stride=1)
        for k in range(count)
        for t in range(tokens)
    ]
    return pltpu.bitcast(jnp.concatenate(parts, axis=0), ref.dtype)


def store_token_q(
    ref: Ref,
    lead: tuple[Scalar, ...],
    value: jax.Array,
    *,
    head: int,
    count: int = 1,
    tokens: int = 1,
    on_chip: bool,
) -> None:
    """Stores rows where `load_token_q` would load them."""
    words, pack, lanes = ref.shape[-3:]
    *outer, first = lead
    if not on_chip:
        rows = value.reshape(count, tokens, words, pack, lanes).swapaxes(0, 1)
        ref[(*outer, pl.ds(first, tokens), pl.ds(head, count))] = rows
        return
    value = pltpu.bitcast(value, jnp.uint32)
    if tokens == 1:
        store_words(ref, lead, value, row=head * words, stride=1)
        return
    for k in range(count):
        for t in range(tokens):
            part = value[(k * tokens + t) * words :][:words]
            store_words(ref, (*outer, first + t), part, row=(head + k) * words, stride=1)
