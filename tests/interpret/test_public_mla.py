"""Latent attention means what the wheel's does: its reference, and its refusals."""

import dataclasses
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from interpret.eager_pallas import eager_pallas
from interpret.kernel_cases import V6E, blockwise_config, decode_config
from interpret.public_wheel import FOLDER, public_module
from interpret.test_mla import CALL, DISPATCHER, INTERPRET, SMALL, arguments

from rpa_kernels import reference
from rpa_kernels.batch import Batch
from rpa_tune.dispatch.attention import mla_ragged_paged_attention
from rpa_tune.dispatch.plan import Launch, LaunchPlan
from rpa_tune.hw.chip import load_chip
from rpa_tune.interop.public.tpu_inference.functions import pretend
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


# A batch of two decode sequences and one alone, short queries, and a chunk over two pages.
SERVED = Batch(q_lens=(1, 1, 1, 4, 9), kv_lens=(30, 17, 64, 20, 40), num_decode=3, page_seed=3)
BLOCKS = {
    "num_kv_pages_per_block": 2, "num_queries_per_block": (1, 4, 4), "decode_batch_size": 2,
    "mixed_q_split": 2, "vmem_limit_bytes": 1 << 26,
}  # fmt: skip
# Features of the call. In float32 and rows of one token: of smaller elements that kernel views many
# rows as words, and writes to them, which NumPy's memory cannot be laid out for; of rows of several
# tokens its indices reach one behind a buffer (`eager_pallas.Ref` refuses both).
BESIDE = {"plain": {}, "window_cap": {"sliding_window": 7, "soft_cap": 2.0}}
PUBLIC_ERROR, OUR_ERROR = 5e-5, 2e-2  # ours multiplies in bfloat16


def run_public(named, **features):
    """Output and cache of the wheel's own kernel, its statements run one by one on the CPU.

    Queries and output are turned over by jax, not by its two kernels for that.
    """
    module = public_module("mla")

    def turned(x, *, transpose_axes, **_):
        return [x.transpose(transpose_axes)]

    with (
        pretend(load_chip("v6e"), module),
        mock.patch.object(module, "xpose_pipeline", turned),
        eager_pallas(),
    ):
        arrays = {name: jnp.array(array) for name, array in named.items()}
        return module.mla_ragged_paged_attention(
            **arrays, **BLOCKS, **features, s_dtype=jnp.float32, p_same_dtype_as_v=False
        )


@pytest.mark.slow
@pytest.mark.parametrize("name", BESIDE)
def test_the_kernel_of_the_wheel_beside_ours(name):
    features = BESIDE[name]
    problem = dataclasses.replace(CALL, max_num_seqs=5, **features)
    named, operands = arguments(problem, SERVED)
    # Without poison, which that kernel multiplies by zero behind a window.
    named["cache_kv"] = jnp.nan_to_num(operands.kv_cache)
    expected, expected_cache = reference.ragged_paged_attention(
        operands.queries, operands.keys, operands.values, named["cache_kv"], operands.arrays,
        problem,
    )  # fmt: skip
    features = {"sm_scale": problem.sm_scale, **features}
    out, cache = run_public(named, **features)
    launches = (
        Launch(family="mla-decode", config=decode_config(bkv_sz=32, bkv_csz=32)),
        Launch(family="mla-mixed", config=blockwise_config(bkv_sz=32, bkv_csz=32)),
    )
    plan = LaunchPlan(problem=problem, target=V6E, launches=launches)
    ours, our_cache = mla_ragged_paged_attention(
        **named, plan=plan, interpret=INTERPRET, **features
    )
    used, bits = slice(0, SERVED.num_tokens), f"uint{8 * cache.dtype.itemsize}"
    for found, error in ((out, PUBLIC_ERROR), (ours, OUR_ERROR)):
        found = np.asarray(found.swapaxes(0, 1)[used], np.float32)
        np.testing.assert_allclose(found, np.asarray(expected[used], np.float32), rtol=error,
                                   atol=error)  # fmt: skip
    for found in (cache, our_cache):
        np.testing.assert_array_equal(
            np.asarray(found).view(bits), np.asarray(expected_cache).view(bits)
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
