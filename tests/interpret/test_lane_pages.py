"""Loads and updates of tokens along lanes: the chip's body and the interpreter's mean the same."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from interpret.eager_pallas import Ref, eager_pallas

from rpa_kernels import lane_pages, layout

PAGES = 3


def page_bits(kv_dtype, head_dim, width, pages=PAGES):
    """Random elements of pages, [1, pages, 2 * KV heads, words, packing, width]; no NaN."""
    shape = layout.lane_page_shape(
        num_kv_heads=2, head_dim=head_dim, kv_dtype=kv_dtype, num_tokens=width
    )
    values = np.random.default_rng(width).standard_normal((1, pages, *shape))
    return jnp.asarray(values, kv_dtype)


def with_gap(pages, words):
    """The same with so many words more behind each head, all bits set: NaN, if one were read."""
    *lead, _, pack, width = pages.shape
    bits = jnp.full((*lead, words, pack, width), -1, f"int{8 * pages.dtype.itemsize}")
    gap = jax.lax.bitcast_convert_type(bits, pages.dtype)
    return jnp.concatenate([pages, gap], axis=-3)


def by_token(pages):
    """[parts, head_dim, tokens] of all pages."""
    _, count, parts, words, pack, width = pages.shape
    rows = np.asarray(pages)[0].transpose(1, 2, 3, 0, 4)
    return rows.reshape(parts, words * pack, count * width)


@pytest.mark.parametrize("on_chip", [True, False])
@pytest.mark.parametrize("kv_dtype", layout.SEQ_ALONG_LANE_DTYPES)
@pytest.mark.parametrize(
    ("width", "start", "count", "gap"),
    [(128, 128, 256, 0), (128, 128, 256, 8), (256, 128, 128, 8), (384, 256, 256, 0)],
)
def test_load(kv_dtype, width, start, count, gap, on_chip):
    """Tiles within a page and across two, a head narrower than its lanes, and a tail."""
    pages = page_bits(kv_dtype, 80, width)
    words = pages.shape[-3]
    expected = by_token(pages)[3, :, start : start + count]
    expected = np.concatenate([expected, np.zeros((128 - len(expected), count), expected.dtype)])
    for num_valid in (None, 70):
        expected[:, num_valid or count :] = 0
        where = {"part": 3, "words": words, "start": np.int32(start),
                 "count": count, "num_valid": num_valid, "on_chip": on_chip}  # fmt: skip
        with eager_pallas():
            kv = Ref.of(with_gap(pages, gap))
            loaded = lane_pages.load(kv, (0,), **where)
            turned = lane_pages.load_by_token(kv, (0,), **where)
        np.testing.assert_array_equal(np.asarray(loaded), expected)
        np.testing.assert_array_equal(np.asarray(turned), expected.T)


@pytest.mark.parametrize("on_chip", [True, False])
@pytest.mark.parametrize("kv_dtype", layout.SEQ_ALONG_LANE_DTYPES)
@pytest.mark.parametrize(("width", "gap"), [(128, 0), (256, 8)])
@pytest.mark.parametrize(("offset", "begin", "end"), [(0, 0, 128), (100, 5, 90), (3, -70, 200)])
def test_put_tokens(kv_dtype, width, gap, offset, begin, end, on_chip):
    """Of two tiles that follow each other the tokens from `offset` on come to lane 0 on."""
    pages, new = page_bits(kv_dtype, 128, width), page_bits(kv_dtype, 128, 128)
    kv, out = Ref.of(with_gap(pages, gap)), Ref.new(new.shape, new.dtype)
    tokens = lane_pages.NewTokens(
        ref=Ref.of(new), first=(0, 1), second=(0, 2), offset=offset, begin=begin, end=end
    )
    with eager_pallas():
        start = np.int32(128)
        lane_pages.put_tokens(kv, (0,), start, tokens, (out, (0, 0)), on_chip=on_chip)
    expected = by_token(pages).copy()
    first, last = max(begin, 0), min(end, 128)
    coming = by_token(new)[..., 128 + offset : 256 + offset]
    expected[..., 128 + first : 128 + last] = coming[..., first:last]
    words = pages.shape[-3]
    np.testing.assert_array_equal(by_token(kv.view[..., :words, :, :]), expected)
    assert np.isnan(np.asarray(kv.view[..., words:, :, :], np.float32)).all()
    np.testing.assert_array_equal(by_token(out.view[:, :1]), expected[..., 128:256])
