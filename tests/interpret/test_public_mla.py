"""Latent attention means what the wheel's does: its reference, and its refusals."""

import dataclasses
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from interpret.public_wheel import FOLDER, public_module
from interpret.test_mla import CALL, DISPATCHER, INTERPRET, SMALL, arguments

from rpa_kernels import reference
from rpa_kernels.batch import Batch
from rpa_tune.dispatch.attention import mla_ragged_paged_attention
from rpa_tune.interop.public.tpu_inference.package import WHEEL

BATCH = Batch(q_lens=(1, 4, 9), kv_lens=(30, 20, 40), num_decode=1, page_seed=3)
FEATURES = {
    "words": ({}, {}),
    "rows_scales": (
        {"kv_packing": 8, "page_size": 16}, {"q_scale": 0.5, "k_scale": 2.0, "v_scale": 3.0},
    ),
    "window_cap": ({"head_dim": 200, "rope_dim": 40}, {"sliding_window": 7, "soft_cap": 2.0}),
}  # fmt: skip


@pytest.mark.parametrize("name", FEATURES)
def test_the_reference_is_that_of_the_wheel(name):
    public_module("mla")  # skips without the wheel
    module = WHEEL.load(WHEEL.fetch(FOLDER), "tpu_inference.kernels.mla.v1.kernel")
    shapes, features = FEATURES[name]
    problem = dataclasses.replace(CALL, **shapes, **features)
    # Without poison, which that function multiplies by zero, and with rows of one word.
    named, operands = arguments(problem, BATCH)
    operands = dataclasses.replace(operands, kv_cache=jnp.nan_to_num(operands.kv_cache))
    words = (problem.num_pages, problem.page_size, 1, problem.k_lanes)
    named["cache_kv"] = operands.kv_cache.reshape(words)
    expected, expected_cache = reference.ragged_paged_attention(
        operands.queries, operands.keys, operands.values, operands.kv_cache, operands.arrays,
        problem,
    )  # fmt: skip
    named = {key: jnp.array(value) for key, value in named.items()}
    named["ql_nope"] = named["ql_nope"].swapaxes(0, 1)  # tokens first, in that function
    with jax.default_matmul_precision("highest"):
        out, cache = module.ref_mla_ragged_paged_attention(**named, sm_scale=0.1, **features)
    used = slice(0, BATCH.num_tokens)
    np.testing.assert_allclose(out[used, :, : problem.head_dim], expected[used], rtol=0, atol=5e-5)
    np.testing.assert_array_equal(
        np.asarray(cache).reshape(expected_cache.shape).view(np.uint32),
        np.asarray(expected_cache).view(np.uint32),
    )


REFUSED = [
    {"q_pe": jnp.zeros((32, 3, 64))},
    {"q_pe": jnp.zeros((31, 4, 64))},
    {"new_kv_c": jnp.zeros((32, 128))},
    {"new_k_pe": jnp.zeros((32, 32))},
    {"new_k_pe": jnp.zeros((32, 64), jnp.bfloat16)},
    {"ql_nope": jnp.zeros((4, 32))},
    {"cache_kv": jnp.zeros((24, 16, 1, 256))},
    {"kv_lens": np.zeros(4, np.int16)},
    {"distribution": np.zeros(2, np.int32)},
    {"soft_cap": 0.0},
    {"sliding_window": 0},
    {"num_kv_pages_per_blocks": (1, 0, 1)},
    {"num_queries_per_blocks": (1, 8, 9), "mixed_q_split": 2},
    {"mixed_q_split": 0},
    {"vmem_limit_bytes": -1},
    {"chunk_prefill_size": 0},
]


@pytest.mark.parametrize("changes", REFUSED, ids=lambda changes: next(iter(changes)))
def test_what_the_wheel_refuses_is_refused(changes):
    module = public_module("mla")
    named, _ = arguments(CALL, SMALL)
    module.static_validate_inputs(**named)
    with pytest.raises(ValueError, match=r".+"):
        module.static_validate_inputs(**{**named, **changes})
    ours = {name.removesuffix("s") if "_per_" in name else name: value
            for name, value in changes.items()}  # fmt: skip
    with (
        mock.patch("rpa_tune.dispatch.runtime._run_latent", side_effect=AssertionError("ran")),
        pytest.raises(ValueError, match=r".+"),
    ):
        mla_ragged_paged_attention(**{**named, **ours}, plan=DISPATCHER, interpret=INTERPRET)
