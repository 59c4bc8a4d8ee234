"""The chip's on_chip loads and stores mean the same as the ones the race detector can run."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from rpa_kernels import layout, packed

TOKENS = 32


def bits(x):
    return np.asarray(x).view(np.uint8)


def run(body, x, *out):
    """Runs a kernel body on one VMEM operand under the plain interpreter."""
    return pl.pallas_call(
        body,
        in_specs=[pl.BlockSpec(memory_space=pltpu.VMEM)],
        out_specs=[pl.BlockSpec(memory_space=pltpu.VMEM)] * len(out),
        out_shape=list(out),
        interpret=True,
    )(x)


def random_bits(shape, dtype):
    size = int(np.prod(shape)) * layout.dtype_bytes(dtype)
    # Small exponents only, so that no value is a NaN that a copy could rewrite.
    raw = np.random.default_rng(0).integers(0, 32, size, np.uint8)
    return jax.lax.bitcast_convert_type(
        jnp.asarray(raw).reshape(*shape, layout.dtype_bytes(dtype)).squeeze(), jnp.dtype(dtype)
    ).reshape(shape)


@pytest.mark.parametrize("dtype", layout.KV_DTYPES)
@pytest.mark.parametrize(("heads", "head_dim"), [(1, 128), (2, 64), (3, 128), (2, 256)])
def test_load_kv(dtype, heads, head_dim):
    fused = layout.fuses_kv(head_dim)
    _, _, words, pack, lanes = layout.kv_cache_shape(
        num_pages=1, page_size=1, num_kv_heads=heads, head_dim=head_dim, kv_dtype=dtype
    )
    x = random_bits((2, TOKENS, layout.odd(words), pack, lanes), dtype)
    out = jax.ShapeDtypeStruct((heads, 2, 16, lanes), jnp.dtype(dtype))

    def body(on_chip, ref, k_ref):
        for head in range(heads):
            k, v = packed.load_kv(
                ref, (1,), head=head, start=8, count=16, fused=fused, dtype=dtype,
                num_valid=11, on_chip=on_chip,
            )  # fmt: skip
            k_ref[head, 0], k_ref[head, 1] = k, v

    fast, plain = (
        run(lambda *refs, on_chip=on_chip: body(on_chip, *refs), x, out)[0]
        for on_chip in (True, False)
    )
    np.testing.assert_array_equal(bits(fast), bits(plain))
    row = 0 if fused else 1
    last_v = np.asarray(x)[1, 8 : 8 + 11].reshape(11, -1, lanes)[:, row]
    np.testing.assert_array_equal(bits(np.asarray(plain)[0, 1, :11]), bits(last_v))
    assert not bits(np.asarray(plain)[:, :, 11:]).any()


@pytest.mark.parametrize("dtype", ["bfloat16", "float8_e4m3fn", "int8"])
@pytest.mark.parametrize("lanes", [128, 256])
def test_load_rows(dtype, lanes):
    pack, tokens = layout.packing(dtype), slice(8, 24)
    x = random_bits((2, TOKENS, 3, pack, lanes), dtype)
    out = jax.ShapeDtypeStruct((16 * pack, lanes), jnp.dtype(dtype))

    def body(on_chip, num_valid, ref, rows_ref):
        rows_ref[...] = packed.load_rows(
            ref, (1,), word=2, start=8, count=16, num_rows=pack - 1, num_valid=num_valid,
            on_chip=on_chip,
        )  # fmt: skip

    for num_valid in (None, 11):
        expected = bits(np.asarray(x)[1, tokens, 2].copy()).reshape(16, pack, -1)
        expected[:, pack - 1] = 0
        expected[num_valid or 16 :] = 0
        for on_chip in (True, False):
            (rows,) = run(lambda *refs, s=on_chip, n=num_valid: body(s, n, *refs), x, out)
            np.testing.assert_array_equal(bits(rows).reshape(expected.shape), expected)


@pytest.mark.parametrize("dtype", ["float8_e4m3fn", "int8"])
@pytest.mark.parametrize("value", [False, True])
def test_load_pair(dtype, value):
    x = random_bits((2, TOKENS, 3, 4, 256), dtype)
    out = jax.ShapeDtypeStruct((32, 256), jnp.dtype(dtype))

    def body(on_chip, num_valid, ref, rows_ref):
        rows_ref[...] = packed.load_pair(
            ref, (1,), word=2, value=value, start=8, count=16, num_valid=num_valid,
            on_chip=on_chip,
        )  # fmt: skip

    words = bits(np.asarray(x)[1, 8:24, 2].copy())
    token, head = packed.pair_columns(np.arange(32), 16)
    for num_valid in (None, 5, 11):
        expected = words[token, 2 * head + value]
        expected[token >= (num_valid or 16)] = 0
        for on_chip in (True, False):
            (rows,) = run(lambda *refs, s=on_chip, n=num_valid: body(s, n, *refs), x, out)
            np.testing.assert_array_equal(bits(rows), expected)


@pytest.mark.parametrize("dtype", layout.Q_DTYPES)
@pytest.mark.parametrize(("heads", "words", "lanes"), [(1, 4, 128), (3, 2, 128), (2, 1, 256)])
def test_load_q(dtype, heads, words, lanes):
    pack = layout.packing(dtype)
    x = random_bits((2, TOKENS, heads, words, pack, lanes), dtype)
    rows = jax.ShapeDtypeStruct((heads, words, 16 * pack, lanes), jnp.dtype(dtype))
    token = jax.ShapeDtypeStruct((heads, words * pack, lanes), jnp.dtype(dtype))

    def body(on_chip, ref, rows_ref, token_ref):
        for head in range(heads):
            token_ref[head] = packed.load_token_q(ref, (1, 5), head=head, on_chip=on_chip)
            for word in range(words):
                rows_ref[head, word] = packed.load_q(
                    ref, (1,), head=head, word=word, start=8, count=16, on_chip=on_chip
                )

    fast, plain = (
        run(lambda *refs, on_chip=on_chip: body(on_chip, *refs), x, rows, token)
        for on_chip in (True, False)
    )
    for a, b in zip(fast, plain, strict=True):
        np.testing.assert_array_equal(bits(a), bits(b))
    expected = np.asarray(x)[1, 8:24, 0, words - 1].reshape(16 * pack, lanes)
    np.testing.assert_array_equal(bits(plain[0][0, words - 1]), bits(expected))


class WordRef:
    """A reference as far as on_chip stores use one; no interpreter stores through a reshape."""

    def __init__(self, array):
        self.array = array
        self.shape = array.shape
        self.at = self

    def bitcast(self, dtype):
        assert dtype == jnp.uint32
        *major, pack, lanes = self.shape
        words = self.array.reshape(*major, pack, lanes)
        assert pack == 1
        return WordRef(words.view(np.uint32))

    def reshape(self, *shape):
        return WordRef(self.array.reshape(shape))

    def __getitem__(self, index):
        if isinstance(index, tuple):
            return WordRef(self.array[index])
        return self.array[index.start : index.start + index.size * index.stride : index.stride]

    def __setitem__(self, index, value):
        self[index][...] = value


@pytest.mark.parametrize("lanes", [128, 256])
def test_store_words_stores_where_load_words_loads(lanes):
    ref = WordRef(np.zeros((2, TOKENS, 3, 1, lanes), np.float32))
    words = np.random.default_rng(0).integers(1, 1 << 30, (16, lanes), np.uint32)
    packed.store_words(ref, (1,), words, row=8 * 3 + 1, stride=3)
    loaded = packed.load_words(ref, (1,), row=8 * 3 + 1, count=16, stride=3)
    np.testing.assert_array_equal(np.asarray(loaded), words)
    stored = ref.array.view(np.uint32)
    np.testing.assert_array_equal(stored[1, 8:24, 1, 0], words)
    assert np.count_nonzero(stored) == words.size
