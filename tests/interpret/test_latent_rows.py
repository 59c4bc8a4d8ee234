"""Loads and updates of latent rows: the chip's body and the interpreter's mean the same."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from interpret.test_packed import bits, random_bits, run

from rpa_kernels import latent_rows, layout
from rpa_kernels.lane_pages import NewTokens

LANES, ROWS = 384, 6
# (dtype, tokens of a row): words, and whole vector registers of every dtype.
SHAPES = [
    ("bfloat16", 2), ("bfloat16", 32), ("float8_e4m3fn", 4), ("float8_e5m2", 32), ("float32", 1),
    ("float32", 8),
]  # fmt: skip


def both(body, x, *out):
    """What the chip's body and the other one give; equal."""
    fast, plain = (
        run(lambda *refs, on_chip=on_chip: body(on_chip, *refs), x, *out)
        for on_chip in (True, False)
    )
    for a, b in zip(fast, plain, strict=True):
        np.testing.assert_array_equal(bits(a), bits(b))
    return [np.asarray(value) for value in plain]


@pytest.mark.parametrize(("dtype", "tokens"), SHAPES)
def test_load(dtype, tokens):
    x = random_bits((2, ROWS, tokens, LANES), dtype)
    by_token = np.asarray(x)[1].reshape(-1, LANES)
    count, start = 4 * tokens, tokens
    for lanes in (256, LANES):
        for num_valid in (None, count - 1, 0, count):

            def body(on_chip, ref, out_ref, lanes=lanes, num_valid=num_valid):
                out_ref[...] = latent_rows.load(
                    ref, (1,), start=start, count=count, lanes=lanes, num_valid=num_valid,
                    on_chip=on_chip,
                )  # fmt: skip

            (found,) = both(body, x, jax.ShapeDtypeStruct((count, lanes), x.dtype))
            expected = by_token[start : start + count, :lanes].copy()
            expected[count if num_valid is None else num_valid :] = 0
            np.testing.assert_array_equal(bits(found), bits(expected))


@pytest.mark.parametrize(("dtype", "tokens"), SHAPES)
def test_put_tokens(dtype, tokens):
    """Of two rows that follow each other the tokens from `offset` on come to place 0 on."""
    x = random_bits((2, ROWS, tokens, LANES), dtype)
    rows = np.asarray(x)
    source = np.concatenate([rows[0, 3], rows[0, 4]])
    for offset in sorted({0, 1 % tokens, tokens // 2, tokens - 1}):
        for begin, end in ((0, tokens), (-3, tokens + 5), (1, tokens - 1)):

            def body(on_chip, ref, kv_ref, out_ref, offset=offset, begin=begin, end=end):
                kv_ref[...] = ref[...]
                new = NewTokens(
                    ref=ref, first=(0, 3), second=(0, 4), offset=jnp.int32(offset),
                    begin=jnp.int32(begin), end=jnp.int32(end),
                )  # fmt: skip
                latent_rows.put_tokens(kv_ref, (1, 2), new, (out_ref, (0,)), on_chip=on_chip)

            out = jax.ShapeDtypeStruct((1, tokens, LANES), x.dtype)
            kv, row = both(body, x, jax.ShapeDtypeStruct(x.shape, x.dtype), out)
            expected = rows.copy()
            places = range(max(begin, 0), min(end, tokens))
            for place in places:
                expected[1, 2, place] = source[offset + place]
            np.testing.assert_array_equal(bits(kv), bits(expected))
            np.testing.assert_array_equal(bits(row[0]), bits(expected[1, 2]))


def test_shapes_are_those_of_layouts():
    assert {tokens for dtype, tokens in SHAPES if tokens <= 4} == {1, 2, 4}
    for dtype, tokens in SHAPES:
        pack = layout.packing(dtype)
        assert tokens == pack or tokens % (8 * pack) == 0
