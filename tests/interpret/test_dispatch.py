"""The dispatcher's call against the reference: every mix of families, jit, donation, bad input."""

import functools
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu

from rpa_kernels import reference
from rpa_kernels.batch import Batch
from rpa_kernels.problem import Problem
from rpa_tune.dispatch.attention import page_runs, ragged_paged_attention
from rpa_tune.dispatch.dispatcher import Dispatcher
from rpa_tune.dispatch.plan import LaunchPlan
from rpa_tune.hw.chip import load_chip
from rpa_tune.tables.reader import Tables
from rpa_tune.tables.step import Lengths, Step

PROBLEM = Problem(
    num_q_heads=4, num_kv_heads=2, head_dim=128, page_size=16, max_num_tokens=32,
    max_num_seqs=4, pages_per_seq=4, num_pages=24, q_dtype="float32", kv_dtype="float32",
    sm_scale=0.1,
)  # fmt: skip
# Races are the kernels' own tests' business; here it is which kernel serves which sequence.
INTERPRET = pltpu.InterpretParams(uninitialized_memory="nan", dma_execution_mode="on_wait")
DISPATCHER = Dispatcher(load_chip("v6e"), Tables(), on_miss="heuristic")


def make_inputs(problem=PROBLEM, seed=0):
    rng = np.random.default_rng(seed)
    tokens, dim = problem.max_num_tokens, problem.head_dim
    shapes = [(tokens, problem.num_q_heads, dim), (tokens, problem.num_kv_heads, dim),
              (tokens, problem.num_kv_heads, dim), problem.kv_cache_shape]  # fmt: skip
    return [jnp.asarray(rng.standard_normal(shape), problem.q_dtype) for shape in shapes]


def metadata(batch, problem=PROBLEM):
    arrays = batch.arrays(problem)
    return arrays.kv_lens, arrays.page_indices, arrays.cu_q_lens, arrays.distribution


def run(batch, plan, **options):
    return ragged_paged_attention(
        *make_inputs(), *metadata(batch), plan=plan, sm_scale=0.1, interpret=INTERPRET, **options
    )


def check(batch, out, cache):
    call = functools.partial(
        reference.ragged_paged_attention, *make_inputs(), batch.arrays(PROBLEM), PROBLEM
    )
    expected, expected_cache = call()
    rounded, _ = call(compute_dtype="bfloat16")
    used = slice(0, batch.num_tokens)
    # At most twice the error of the plain low-precision implementation.
    tolerance = 2 * float(jnp.max(jnp.abs(rounded[used] - expected[used])))
    np.testing.assert_allclose(out[used], expected[used], rtol=0, atol=tolerance)
    np.testing.assert_array_equal(cache, expected_cache)


BATCHES = {
    "decode only": Batch(q_lens=(1, 1), kv_lens=(17, 64), num_decode=2, page_seed=1),
    "mixed only": Batch(q_lens=(5, 20), kv_lens=(5, 33), num_decode=0, page_seed=2),
    "decode and mixed": Batch(q_lens=(1, 1, 9), kv_lens=(1, 16, 40), num_decode=2, page_seed=3),
    "prefill slot": Batch(
        q_lens=(1, 8, 8, 3), kv_lens=(30, 8, 24, 4), num_decode=1, num_prefill=2, page_seed=4
    ),
}


QUICK = {"decode and mixed"}


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=() if n in QUICK else pytest.mark.slow) for n in BATCHES],
)
def test_planned_steps_equal_the_reference(name):
    batch = BATCHES[name]
    plan = DISPATCHER.plan(PROBLEM, Step.of_batch(batch))
    out, cache = run(batch, plan, chunk_prefill_size=8 if batch.num_prefill else None)
    check(batch, out, cache)


@pytest.mark.slow
def test_families_fill_in_one_log_sum_exp_and_chunks_are_those_of_the_call():
    batch = BATCHES["decode and mixed"]
    problem = replace(PROBLEM, return_lse=True, attention_chunk_size=24)
    plan = DISPATCHER.plan(problem, Step.of_batch(batch))
    out, cache, lse = run(batch, plan, return_lse=True, attention_chunk_size=24)
    expected, expected_cache, expected_lse = reference.ragged_paged_attention(
        *make_inputs(), batch.arrays(problem), problem
    )
    used = slice(0, batch.num_tokens)
    np.testing.assert_allclose(out[used], expected[used], rtol=0, atol=0.02)
    np.testing.assert_allclose(lse[used], expected_lse[used], rtol=0, atol=0.02)
    np.testing.assert_array_equal(cache, expected_cache)
    assert (lse[batch.num_tokens :] == -np.inf).all()
    with pytest.raises(ValueError, match=r"another problem: .*return_lse=False \(plan: True\)"):
        run(batch, plan, attention_chunk_size=24)


def test_a_few_new_tokens_are_decode_and_the_rest_is_mixed():
    batch = Batch(q_lens=(3, 1, 2, 9), kv_lens=(18, 16, 64, 40), num_decode=3, page_seed=3)
    problem = replace(PROBLEM, decode_query_size=3)
    plan = DISPATCHER.plan(problem, Step.of_batch(batch))
    assert plan.families == ("decode", "mixed")
    out, cache = ragged_paged_attention(
        *make_inputs(), *metadata(batch, problem), plan=plan, sm_scale=0.1,
        interpret=INTERPRET, decode_query_size=3,
    )  # fmt: skip
    check(replace(batch, num_decode=0), out, cache)
    for size, need in ((1, "one token each"), (2, "1 to 2 tokens each")):
        with pytest.raises(ValueError, match=f"3 decode sequences need {need}"):
            ragged_paged_attention(
                *make_inputs(), *metadata(batch, problem), plan=plan, decode_query_size=size
            )
    with pytest.raises(ValueError, match="decode_query_size=9 must be at most 8"):
        run(BATCHES["decode only"], plan, decode_query_size=9)


@pytest.mark.slow
def test_a_tree_of_drafts_is_for_decode_alone():
    """Two branches after the first token: as a causal step in which each has its own branch."""
    batch = Batch(q_lens=(3, 5), kv_lens=(40, 20), num_decode=1, page_seed=3)
    problem = replace(PROBLEM, decode_query_size=4, has_tree_mask=True)
    mask = np.zeros(PROBLEM.max_num_tokens, np.int32)
    mask[:3] = 0b001, 0b011, 0b101
    call = functools.partial(
        ragged_paged_attention, *make_inputs(), *metadata(batch, problem), sm_scale=0.1,
        interpret=INTERPRET, decode_query_size=4,
    )  # fmt: skip
    plan = DISPATCHER.plan(problem, Step.of_batch(batch))
    out, cache = call(plan=plan, tree_mask=mask)
    expected, expected_cache = reference.ragged_paged_attention(
        *make_inputs(), batch.arrays(problem), problem, tree_mask=mask
    )
    np.testing.assert_allclose(out[:8], expected[:8], rtol=0, atol=0.02)
    np.testing.assert_array_equal(cache, expected_cache)
    causal, _ = reference.ragged_paged_attention(
        *make_inputs(), replace(batch, num_decode=0).arrays(PROBLEM), PROBLEM
    )
    same = np.asarray([0, 1, 3, 7])
    np.testing.assert_allclose(expected[same], causal[same], rtol=0, atol=1e-6)
    assert np.abs(expected[2] - causal[2]).max() > 0.04
    with pytest.raises(ValueError, match="has 1 decode sequences that it would leave out"):
        call(plan=DISPATCHER.plan(problem, Step.of([7], [9], [0, 0, 1])), tree_mask=mask)
    with pytest.raises(ValueError, match=r"tree_mask must be int32\(32,\), got bool\(3,\)"):
        call(plan=plan, tree_mask=np.ones(3, bool))


def test_mixed_alone_serves_any_batch():
    """What a plan does not launch, mixed takes over: no sequence is dropped."""
    batch = BATCHES["prefill slot"]
    mixed = DISPATCHER.plan(PROBLEM, Step.of([7], [9], [0, 0, 1]))
    assert mixed.families == ("mixed",)
    check(batch, *run(batch, mixed))


def test_prefill_serves_the_decode_sequences_of_a_plan_without_decode():
    batch = BATCHES["prefill slot"]
    plan = DISPATCHER.plan(PROBLEM, replace(Step.of_batch(batch), decode=Lengths()))
    assert plan.families == ("prefill", "mixed")
    check(batch, *run(batch, plan, chunk_prefill_size=8))


def test_a_plan_is_static_to_an_outer_jit():
    batch = BATCHES["decode and mixed"]
    plan = DISPATCHER.plan(PROBLEM, Step.of_batch(batch))
    traces = []

    @functools.partial(jax.jit, static_argnames="plan")
    def step(arrays, rest, *, plan):
        traces.append(plan)
        return DISPATCHER(*arrays, *rest, plan=plan, sm_scale=0.1, interpret=INTERPRET)

    check(batch, *step(make_inputs(), metadata(batch), plan=plan))
    again = DISPATCHER.plan(replace(PROBLEM), Step.of_batch(batch))
    step(make_inputs(), metadata(batch), plan=again)
    assert len(traces) == 1


def test_queries_and_cache_are_donated():
    batch = BATCHES["decode only"]
    arrays = make_inputs()
    plan = DISPATCHER.plan(PROBLEM, Step.of_batch(batch))
    ragged_paged_attention(*arrays, *metadata(batch), plan=plan, sm_scale=0.1, interpret=INTERPRET)
    assert [array.is_deleted() for array in arrays] == [True, False, False, True]


@pytest.mark.parametrize("donated", [pytest.param((), marks=pytest.mark.slow), (0, 3)])
def test_a_callers_jit_decides_about_donation(donated):
    """Without it the caller's cache is as it was, though the kernels write theirs in place."""
    batch = BATCHES["decode only"]
    plan = DISPATCHER.plan(PROBLEM, Step.of_batch(batch))

    @functools.partial(jax.jit, donate_argnums=donated)
    def step(*arrays):
        return DISPATCHER(*arrays, plan=plan, sm_scale=0.1, interpret=INTERPRET)

    arrays = make_inputs()
    out, cache = step(*arrays, *metadata(batch))
    check(batch, out, cache)
    assert [array.is_deleted() for array in arrays] == [i in donated for i in range(4)]
    if not donated:
        for array, before in zip(arrays, make_inputs(), strict=True):
            np.testing.assert_array_equal(array, before)


def test_a_plan_that_would_drop_sequences_is_refused():
    plan = DISPATCHER.plan(PROBLEM, Step.of_batch(BATCHES["decode only"]))
    with pytest.raises(ValueError, match=r"launches \('decode',\).*1 mixed"):
        run(BATCHES["decode and mixed"], plan)


def test_a_plan_of_another_problem_is_refused():
    plan = DISPATCHER.plan(replace(PROBLEM, page_size=32), Step.of([1], [9], [1, 1, 1]))
    with pytest.raises(ValueError, match="page_size=16"):
        run(BATCHES["decode only"], plan)


def test_an_empty_plan_launches_nothing():
    plan = DISPATCHER.plan(PROBLEM, Step())
    batch = Batch(q_lens=(), kv_lens=(), num_decode=0)
    _, cache = run(batch, plan)
    np.testing.assert_array_equal(cache, make_inputs()[3])


BAD = {
    "must have one shape": lambda a, m: (a.__setitem__(2, a[2][:, :1]), None),
    "must agree in tokens": lambda a, m: (a.__setitem__(0, a[0][:16]), None),
    "must have one dtype": lambda a, m: (a.__setitem__(3, a[3].astype(jnp.bfloat16)), None),
    "must be \\[tokens": lambda a, m: (a.__setitem__(0, a[0][0]), None),
    "kv_lens must be int32": lambda a, m: (m.__setitem__(0, m[0].astype(np.int16)), None),
    "page_indices has 15": lambda a, m: (m.__setitem__(1, m[1][:15]), None),
    "and cu_q_lens 4": lambda a, m: (m.__setitem__(2, m[2][:4]), None),
}


@pytest.mark.parametrize("message", BAD)
def test_shapes_that_do_not_belong_together_are_refused(message):
    batch = BATCHES["decode only"]
    arrays, rest = make_inputs(), list(metadata(batch))
    BAD[message](arrays, rest)
    plan = DISPATCHER.plan(PROBLEM, Step.of_batch(batch))
    with pytest.raises(ValueError, match=message):
        ragged_paged_attention(*arrays, *rest, plan=plan, sm_scale=0.1, interpret=INTERPRET)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"skip_kv_mask": True}, "skip_kv_mask"),
        ({"chunk_prefill_size": 0}, "chunk_prefill_size"),
        ({"soft_cap": 0.0}, "soft_cap"),
        ({"sliding_window": 0}, "sliding_window"),
    ],
)
def test_features_that_cannot_be_are_refused(options, message):
    plan = LaunchPlan(problem=PROBLEM, target=DISPATCHER.chip.target, launches=())
    with pytest.raises(ValueError, match=message):
        run(BATCHES["decode only"], plan, **options)


def test_unknown_arguments_are_refused():
    plan = LaunchPlan(problem=PROBLEM, target=DISPATCHER.chip.target, launches=())
    with pytest.raises(TypeError, match="block_sizes"):
        run(BATCHES["decode only"], plan, block_sizes=1)


# Pages of the decode sequences descend: runs matter.
DESCENDING = Batch(
    q_lens=(1, 1), kv_lens=(17, 64), num_decode=2, page_table=((9, 8), (7, 6, 5, 4))
)  # fmt: skip


def test_page_runs_of_the_host_and_of_xla_are_those_that_a_call_makes():
    plan = DISPATCHER.plan(PROBLEM, Step.of_batch(DESCENDING))
    kv_lens, pages, starts, _ = metadata(DESCENDING)
    on_host = page_runs(kv_lens, pages, starts, PROBLEM)
    assert isinstance(on_host, np.ndarray)
    traced = jax.jit(page_runs, static_argnums=3)(kv_lens, pages, starts, PROBLEM)
    np.testing.assert_array_equal(traced, on_host)
    out, cache = run(DESCENDING, plan, page_runs=on_host)
    check(DESCENDING, out, cache)
    # The call reads them: those of another table fetch other pages.
    others = page_runs(kv_lens, np.flip(pages).copy(), starts, PROBLEM)
    assert np.any(run(DESCENDING, plan, page_runs=others)[0] != out)


def test_page_runs_that_cannot_be_of_the_call_are_refused():
    plan = DISPATCHER.plan(PROBLEM, Step.of_batch(DESCENDING))
    kv_lens, pages, starts, _ = metadata(DESCENDING)
    with pytest.raises(ValueError, match=r"page_runs must be int32\(16,\)"):
        run(DESCENDING, plan, page_runs=pages[:-1])
    with pytest.raises(ValueError, match=r"page_runs must be int32\(16,\)"):
        run(DESCENDING, plan, page_runs=pages.astype(np.float32))
    with pytest.raises(ValueError, match=r"page_indices is int32\(15,\), must be int32\(16,\)"):
        page_runs(kv_lens, pages[:-1], starts, PROBLEM)
    with pytest.raises(ValueError, match=r"kv_lens is int64"):
        page_runs(kv_lens.astype(np.int64), pages, starts, PROBLEM)
