"""Softmax sums from ones beside V: a product of weights with them, interpreted."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import pallas as pl

from rpa_kernels.blockwise import mxu_sums
from rpa_kernels.problem import Problem

PROBLEM = Problem(
    num_q_heads=8, num_kv_heads=2, head_dim=128, page_size=16, max_num_tokens=16, max_num_seqs=4,
    pages_per_seq=4, num_pages=16,
)  # fmt: skip
FUSED = dataclasses.replace(PROBLEM, head_dim=64)


@pytest.mark.parametrize(
    ("problem", "lanes"), [(PROBLEM, 256), (FUSED, 128)], ids=["own_lanes", "in_place_of_k"]
)
def test_a_product_with_the_ones_ends_with_the_sums(problem, lanes):
    rng = np.random.default_rng(0)
    p = rng.random((8, 16), np.float32)
    v = rng.random((2, 16, lanes), np.float32)

    def body(v_in, p_in, out, v_ref):
        v_ref[...] = v_in[...]
        mxu_sums.fill_ones(v_ref, problem)
        for head in range(2):
            out[head] = mxu_sums.total(p_in[...] @ v_ref[head], problem)

    shapes = tuple(jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((2, 8, 128), v.shape))
    out, with_ones = pl.pallas_call(body, out_shape=shapes, interpret=True)(v, p)
    sums = np.broadcast_to(p.sum(axis=1)[None, :, None], out.shape)
    np.testing.assert_allclose(out, sums, rtol=1e-6)
    # The rest is V still: 128 lanes of it, or the upper half of a row.
    kept = slice(64, 128) if problem.fuses_kv else slice(0, 128)
    np.testing.assert_array_equal(with_ones[..., kept], v[..., kept])
