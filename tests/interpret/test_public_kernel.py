"""The public kernels themselves, run on the CPU, against ours and against our reference.

Our output may err at most twice as much as the plain low-precision implementation, the public one
a little more, and the two caches must be equal to the last bit.
"""

import jax.numpy as jnp
import numpy as np
import pytest
from interpret.eager_pallas import eager_pallas
from interpret.kernel_cases import V6E, blockwise_config, decode_config, make_problem
from interpret.public_wheel import public_module
from jax.experimental.pallas import tpu as pltpu

import rpa_tune
from rpa_kernels import reference
from rpa_kernels.batch import Batch
from rpa_kernels.verify import draw_operands, tolerance_of
from rpa_tune.dispatch.call import Arrays, problem_of
from rpa_tune.dispatch.plan import Launch, LaunchPlan
from rpa_tune.hw.chip import load_chip
from rpa_tune.interop.public.tpu_inference.functions import pretend

# Of sums in the queries' dtype: a few blocks, each with a product, a rescaling and a sum.
ROUNDINGS = 4
FINFO_EPS = {"bfloat16": 2.0**-8, "float32": 2.0**-24}
INTERPRET = pltpu.InterpretParams(uninitialized_memory="nan")
BATCH = Batch(q_lens=(1, 1, 9, 4), kv_lens=(1, 40, 40, 17), num_decode=2)
CHUNKED = Batch(q_lens=(1, 8, 8, 3), kv_lens=(30, 8, 45, 4), num_decode=1, num_prefill=2)
EMPTY = Batch(q_lens=(), kv_lens=(), num_decode=0)
V3_BLOCKS = {
    "d_block_sizes": (1, 32, 1, 32), "p_block_sizes": (8, 32, 8, 32),
    "m_block_sizes": (8, 32, 8, 32),
}  # fmt: skip
HD64_BLOCKS = {"num_kv_pages_per_block": 2, "num_queries_per_block": 8}
FP8 = {"kv_dtype": "float8_e4m3fn", "k_scale": 0.5, "v_scale": 2.0}
ONE_HEAD = {"num_q_heads": 2, "num_kv_heads": 1}

# (shapes of the problem, features of the call, batch). Head size 64 is the public hd64 kernel.
CASES = {
    "chunked_prefill": ({}, {"chunk_prefill_size": 8}, CHUNKED),
    "nothing": (ONE_HEAD, {}, EMPTY),
}
SLOW_CASES = {
    "sinks": ({"head_dim": 64, "has_sinks": True}, {"sliding_window": 9}, BATCH),
    "fp8_q_scale": ({**ONE_HEAD, **FP8, "q_scale": 0.3}, {}, BATCH),
    "mha_window": ({"num_q_heads": 2, "num_kv_heads": 2}, {"sliding_window": 9}, BATCH),
    "odd_ratio_bidirectional": (
        {"num_q_heads": 5, "num_kv_heads": 1}, {"use_causal_mask": False}, BATCH),
    "bidirectional_window": (ONE_HEAD, {"use_causal_mask": False, "sliding_window": 9}, BATCH),
    "promise": (
        ONE_HEAD, {"use_causal_mask": False, "skip_kv_mask": True},
        Batch(q_lens=(1, 9), kv_lens=(32, 64), num_decode=1)),
    "three_heads": ({"num_q_heads": 21, "num_kv_heads": 3}, {}, BATCH),
    "wide_heads_cap": ({"head_dim": 256}, {"soft_cap": 2.0, "sm_scale": 1.0}, BATCH),
    "head_80_float32": (
        {"head_dim": 80, "q_dtype": "float32", "kv_dtype": "float32"}, {}, BATCH),
    "shared_kv": (ONE_HEAD, {"update_kv_cache": False}, BATCH),
    "fp8": ({**ONE_HEAD, **FP8}, {}, BATCH),
    "e5m2_q_scale": ({**ONE_HEAD, "kv_dtype": "float8_e5m2", "q_scale": 0.3}, {}, BATCH),
    "q_scale_of_plain_cache": ({**ONE_HEAD, "q_scale": 0.3, "k_scale": 3.0}, {}, BATCH),
    "mask_value": (ONE_HEAD, {"mask_value": -1e5, "sliding_window": 9}, BATCH),
    "hd64_fp8": ({"head_dim": 64, **FP8, "q_scale": 0.3}, {}, BATCH),
    "hd64_cap": ({"head_dim": 64}, {"soft_cap": 2.0, "mask_value": -1e30}, BATCH),
    "hd64_chunked": ({"head_dim": 64}, {"chunk_prefill_size": 8}, CHUNKED),
    "hd64_float32": ({"head_dim": 64, "q_dtype": "float32", "kv_dtype": "float32"}, {}, BATCH),
}  # fmt: skip
ALL = [
    *(pytest.param(*case, id=name) for name, case in CASES.items()),
    *(pytest.param(*case, id=name, marks=pytest.mark.slow) for name, case in SLOW_CASES.items()),
]


def run_public(problem, arrays, *, blocks=None, **features):
    """Output and cache of the public kernel, on the CPU."""
    kernel = "hd64" if problem.fuses_kv else "v3"
    module = public_module(kernel)
    name = "ragged_paged_attention_hd64" if problem.fuses_kv else "ragged_paged_attention"
    given = [a for a in arrays if a is not None]
    blocks = blocks or (HD64_BLOCKS if problem.fuses_kv else V3_BLOCKS)
    with pretend(load_chip("v6e"), module), eager_pallas():
        return getattr(module, name)(*given, vmem_limit_bytes=1 << 26, **blocks, **features)


def run_ours(problem, arrays, batch, **features):
    """Output and cache of the drop-in call, with small blocks."""
    families = {"decode": decode_config(), "prefill": blockwise_config(),
                "mixed": blockwise_config()}  # fmt: skip
    launches = tuple(
        Launch(family=family, config=config)
        for family, config in families.items()
        if batch.family_seqs(family)
    )
    plan = LaunchPlan(problem=problem, target=V6E, launches=launches)
    return rpa_tune.ragged_paged_attention(*arrays[:9], plan=plan, interpret=INTERPRET, **features)


def draw(shapes, features, batch):
    """The problem, the arrays of the call, and its features with scales."""
    scales = {name: shapes[name] for name in ("q_scale", "k_scale", "v_scale") if name in shapes}
    features = {"sm_scale": 0.09, **scales, **features}
    drawn = make_problem(max_num_tokens=24, max_num_seqs=4, pages_per_seq=8, num_pages=24, **shapes)
    ops = draw_operands(drawn, batch)
    host = (getattr(ops.arrays, name) for name in Arrays._fields[4:8])
    arrays = Arrays(
        ops.queries, ops.keys, ops.values, ops.kv_cache, *map(jnp.asarray, host), ops.sinks
    )
    return problem_of(arrays, **features), ops, arrays, features


def rows(out, batch):
    return np.asarray(out[: batch.num_tokens].astype(jnp.float32))


def largest(x):
    return float(np.max(np.abs(x), initial=0.0))


def bits(cache):
    return np.asarray(cache).view(np.uint8)


@pytest.mark.parametrize(("shapes", "features", "batch"), ALL)
def test_equal_to_the_public_kernel(shapes, features, batch):
    problem, ops, arrays, features = draw(shapes, features, batch)
    public, public_cache = run_public(problem, arrays, **features)

    def refer(dtype):
        out, cache = reference.ragged_paged_attention(
            *arrays[:4], ops.arrays, problem, sinks=ops.sinks, compute_dtype=dtype
        )
        return rows(out, batch), bits(cache)

    (expected, expected_cache), (plain, _) = refer("float32"), refer("bfloat16")
    np.testing.assert_array_equal(expected_cache, bits(public_cache))
    tolerance = tolerance_of(problem, largest(plain - expected), largest(expected))
    # The public v3 kernel adds up in the dtype of the queries; ours and hd64 in float32.
    share = FINFO_EPS[problem.q_dtype] * ROUNDINGS
    assert largest(rows(public, batch) - expected) <= tolerance + share * largest(expected)
    ours, our_cache = run_ours(problem, arrays, batch, **features)  # donates
    np.testing.assert_array_equal(bits(our_cache), bits(public_cache))
    assert (ours.dtype, ours.shape) == (public.dtype, public.shape)
    assert largest(rows(ours, batch) - expected) <= tolerance


# What differs, on purpose. Each test fails when the public kernel changes its mind.


def test_prefill_slot_without_a_chunk_size_is_served():
    """The public function launches no kernel for it, and leaves its rows as they were."""
    problem, ops, arrays, features = draw(ONE_HEAD, {}, CHUNKED)
    public, public_cache = run_public(problem, arrays)
    in_slot = slice(1, 17)
    np.testing.assert_array_equal(public[in_slot], arrays.queries[in_slot])
    expected, cache = reference.ragged_paged_attention(*arrays[:4], ops.arrays, problem)
    assert (bits(cache) != bits(public_cache)).any()
    plan = LaunchPlan(
        problem=problem, target=V6E, launches=(Launch(family="mixed", config=blockwise_config()),)
    )
    cache = bits(cache)
    ours, our_cache = rpa_tune.ragged_paged_attention(
        *arrays[:9], plan=plan, interpret=INTERPRET, **features
    )
    np.testing.assert_allclose(rows(ours, CHUNKED), rows(expected, CHUNKED), atol=0.05)
    np.testing.assert_array_equal(bits(our_cache), cache)


@pytest.mark.slow
def test_new_tokens_behind_the_window_are_written():
    """The public kernel writes what its last query block fetches, which may not be all of them.

    No later token of the sequence sees the others; one that shares its pages as a prefix does.
    """
    window = {"sliding_window": 5}
    problem, _, arrays, features = draw(ONE_HEAD, window, BATCH)
    before = bits(arrays.kv_cache)
    public_cache = bits(run_public(problem, arrays, **features)[1])
    our_cache = bits(run_ours(problem, arrays, BATCH, **features)[1])
    differs = (our_cache != public_cache).any(axis=(2, 3, 4))
    page = BATCH.pages(problem)[2][1]
    assert np.argwhere(differs).tolist() == [[page, 15]]  # position 31, the first new one
    np.testing.assert_array_equal(public_cache[differs], before[differs])


def test_a_mask_value_among_the_scores_has_no_meaning():
    """The public answer then depends on its block sizes; ours is that of a low one."""
    problem, _, arrays, features = draw(ONE_HEAD, {}, BATCH)
    low, high = (
        [
            run_public(problem, arrays, blocks=blocks, mask_value=value, **features)[0]
            for blocks in (
                {"d_block_sizes": (1, size, 1, size), "m_block_sizes": (8, 32, 8, 32)}
                for size in (16, 64)
            )
        ]
        for value in (-1e30, -1.0)
    )
    decode = slice(0, 2)
    np.testing.assert_allclose(*(rows(x, BATCH)[decode] for x in low), atol=0.05)
    assert largest(rows(high[0], BATCH)[decode] - rows(high[1], BATCH)[decode]) > 0.1
    low_features, high_features = ({**features, "mask_value": v} for v in (-1e30, -1.0))
    assert problem_of(arrays, **low_features) == problem_of(arrays, **high_features)


def test_output_dtype_is_that_of_the_queries():
    """Wherever the public kernel runs; it fails with another width than the queries'."""
    problem, _, arrays, features = draw(ONE_HEAD, {}, BATCH)
    del problem
    plain = problem_of(arrays, **features)
    public, _ = run_public(plain, arrays, out_dtype=jnp.dtype("float16"))
    assert public.dtype == jnp.bfloat16
    assert problem_of(arrays, out_dtype=jnp.float16, **features) == plain
    with pytest.raises(TypeError, match="cannot reshape"):
        run_public(plain, arrays, out_dtype=jnp.dtype("float32"))
    # Ours gives what its documentation says.
    assert problem_of(arrays, out_dtype=jnp.float32, **features).resolved_out_dtype == "float32"
    with pytest.raises(ValueError, match="floating-point"):
        problem_of(arrays, out_dtype=jnp.int32, **features)
