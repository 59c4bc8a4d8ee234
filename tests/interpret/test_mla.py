"""Latent attention against the float32 reference, and that against attention to real heads."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from interpret.kernel_cases import (
    DECODE_BATCH,
    MIXED_BATCH,
    V5E,
    V6E,
    V7X,
    blockwise_config,
    decode_config,
    make_problem,
    make_target,
)
from jax.experimental.pallas import tpu as pltpu

from rpa_kernels import load_family, reference, verify
from rpa_kernels.batch import Batch
from rpa_kernels.decode import attend
from rpa_kernels.infeasible import Infeasible
from rpa_kernels.mla_decode import kernel as mla_decode
from rpa_tune.dispatch.attention import mla_ragged_paged_attention
from rpa_tune.dispatch.dispatcher import Dispatcher
from rpa_tune.dispatch.mla_call import LatentArrays, latent_problem_of
from rpa_tune.evaluate.correctness import hostile_batches
from rpa_tune.hw.chip import load_chip
from rpa_tune.tables.reader import Tables
from rpa_tune.tables.step import Step


def make_latent(**changes):
    fields = {"num_q_heads": 4, "num_kv_heads": 1, "head_dim": 256, "rope_dim": 64}
    return make_problem(**{**fields, **changes})


TWO_CORES = make_target(chip="v5p", mxu_size=128, num_cores=2, has_bf16_vector_units=False)
ROWS_OF_32 = {"page_size": 32, "pages_per_seq": 8, "kv_packing": 32}
FLOAT8 = {
    **ROWS_OF_32, "kv_dtype": "float8_e4m3fn", "q_dtype": "float8_e4m3fn", "q_scale": 0.25,
    "k_scale": 0.5, "v_scale": 2.0,
}  # fmt: skip
CASES = {"words": ({}, V6E), "rows_of_float8": (FLOAT8, V7X)}
SLOW_CASES = {
    "rows": ({**ROWS_OF_32, "num_q_heads": 3, "soft_cap": 2.0, "sm_scale": 1.0}, V6E),
    "float32": ({"q_dtype": "float32", "kv_dtype": "float32", "num_q_heads": 5}, V6E),
    "window_float8_words": ({"sliding_window": 40, "kv_dtype": "float8_e5m2"}, V5E),
    "padded": ({"head_dim": 200, "rope_dim": 32, "kv_dtype": "float8_e4m3fn"}, V7X),
    "two_cores": ({}, TWO_CORES),
    "float8_as_it_comes": ({**FLOAT8, "q_scale": None}, V7X),
}
ALL = [
    *(pytest.param(*case, id=name) for name, case in CASES.items()),
    *(pytest.param(*case, id=name, marks=pytest.mark.slow) for name, case in SLOW_CASES.items()),
]
# One to all tokens; contexts that are all new, that end around a page's, a row's and a block's end;
# a sequence of the other family behind.
FEW_BATCH = Batch(
    q_lens=(4, 1, 3, 4, 2, 4, 9), kv_lens=(4, 18, 17, 226, 130, 129, 20), num_decode=6
)
SHORT_BATCH = Batch(q_lens=(4, 7, 16, 3, 17), kv_lens=(200, 150, 16, 256, 129), num_decode=0)


def check(family, problem, config, batch, target=V6E, **options):
    report = verify.verify(load_family(family), problem, config, batch, target=target, **options)
    assert report.ok, report.problems


@pytest.mark.parametrize(("case", "target"), ALL)
def test_decode_is_right(case, target):
    check("mla-decode", make_latent(**case), decode_config(), DECODE_BATCH, target)


def test_decode_in_two_chains_is_right(monkeypatch):
    """A compute block of all heads is two chains; here any is, and queries are float8 unscaled."""
    monkeypatch.setattr(attend, "LONG_CHAIN", 0)
    config, case = decode_config(bkv_sz=64, bkv_csz=64), SLOW_CASES["float8_as_it_comes"]
    check("mla-decode", make_latent(**case[0]), config, DECODE_BATCH, case[1])


@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("long_chain", [attend.LONG_CHAIN, 0])
def test_decode_of_several_compute_blocks_at_once_is_right(monkeypatch, size, long_chain):
    """Four and two at once of blocks of eight; items end in other ones, and before any."""
    monkeypatch.setattr(attend, "LONG_CHAIN", long_chain)
    config = decode_config(bkv_sz=1024)
    case = {
        **FLOAT8,
        "q_scale": None,
        "pages_per_seq": 36,
        "num_pages": 128,
        "decode_query_size": size,
    }
    kv_lens = (257, 900, 1024, 1100, 3)
    batch = Batch(q_lens=(size,) * 5, kv_lens=kv_lens, num_decode=5)
    check("mla-decode", make_latent(**case), config, batch, V7X)


def test_no_compute_blocks_are_attended_to_at_once_where_it_does_not_pay():
    def of(target=V7X, config=None, **changes):
        config = config or decode_config(bkv_sz=1024)
        nothing = {"scratch": None, "meta": None, "on_chip": True}
        maths = attend.Attend(
            problem=make_latent(**changes), config=config, target=target, **nothing
        )
        return [(long.config.bkv_csz, long.keys) for long in mla_decode.long_attends(maths)]

    assert of() == [(512, 128), (256, 128)]
    assert of(config=decode_config(bkv_sz=256)) == [(256, 128)]
    assert of(config=decode_config()) == of(V6E) == of(sliding_window=40) == []


@pytest.mark.parametrize(
    ("case", "target"), [pytest.param(*CASES["words"], id="words"), *(
        pytest.param(*case, id=name, marks=pytest.mark.slow)
        for name, case in {**SLOW_CASES, "rows_of_float8": CASES["rows_of_float8"]}.items()
    )],
)  # fmt: skip
def test_mixed_is_right(case, target):
    check("mla-mixed", make_latent(**case), blockwise_config(), MIXED_BATCH, target)


@pytest.mark.parametrize(("case", "target"), ALL)
def test_decode_of_a_few_tokens_is_right(case, target):
    check(
        "mla-decode", make_latent(decode_query_size=4, **case), decode_config(), FEW_BATCH, target
    )


@pytest.mark.slow
@pytest.mark.parametrize(("case", "target"), CASES.values(), ids=CASES)
@pytest.mark.parametrize("size", [2, 3, 8])
def test_decode_of_every_number_of_tokens_is_right(case, target, size):
    """Shorter and longer ones in turn, two blocks of sequences, new rows around a page's end."""
    problem = make_latent(decode_query_size=size, **case)
    q_lens = tuple(size - i % size for i in range(6))
    kv_lens = tuple(127 + i if i else size for i in range(6))
    batch = Batch(q_lens=(*q_lens, 5), kv_lens=(*kv_lens, 20), num_decode=6)
    check("mla-decode", problem, decode_config(), batch, target, dma_mode="eager")


@pytest.mark.slow
@pytest.mark.parametrize("case", [{}, ROWS_OF_32], ids=["words", "rows"])
def test_mixed_of_few_queries_is_right(case):
    config = blockwise_config(bq_sz=32, bq_csz=32, bkv_sz=256)
    check("mla-mixed", make_latent(**case), config, SHORT_BATCH)


@pytest.mark.slow
@pytest.mark.parametrize("dma_mode", ["on_wait", "eager"])
@pytest.mark.parametrize(
    ("family", "tokens"), [("mla-decode", 1), ("mla-decode", 4), ("mla-mixed", 1)]
)
def test_hostile_batches(family, tokens, dma_mode):
    """Fragmented pages and runs; lengths at page and block boundaries, and one to either side."""
    problem = make_latent(**ROWS_OF_32, decode_query_size=tokens)
    config = decode_config() if family == "mla-decode" else blockwise_config()
    batches = hostile_batches(
        family, page_size=problem.page_size, block_tokens=128, decode_query_size=tokens
    )
    for batch in batches:
        sizes = {
            "max_num_tokens": max(batch.num_tokens, 32), "max_num_seqs": batch.num_seqs + 1,
            "pages_per_seq": -(-max(batch.kv_lens) // problem.page_size) + 1,
            "num_pages": sum(-(-n // problem.page_size) for n in batch.kv_lens) + 3,
        }  # fmt: skip
        check(family, dataclasses.replace(problem, **sizes), config, batch, dma_mode=dma_mode)


def test_families_serve_their_own_kind():
    latent, other = make_latent(), make_problem()
    for name, problem in (("decode", latent), ("mixed", latent), ("prefill", latent),
                          ("mla-decode", other), ("mla-mixed", other)):  # fmt: skip
        family = load_family(name)
        bad = family.default_config(problem, V6E)
        assert isinstance(bad, Infeasible)
        assert bad.limit == "rope_dim"
        assert "this problem is for" in str(bad)
    small = dataclasses.replace(latent, **ROWS_OF_32)
    bad = load_family("mla-decode").check(small, decode_config(bkv_sz=16, bkv_csz=16), V6E)
    assert "whole rows of 32 tokens" in str(bad)


def test_the_absorbed_form_is_attention_to_real_heads():
    """Keys and values of each head, made of the latents, give what the reference gives."""
    problem = make_latent(q_dtype="float32", kv_dtype="float32", sm_scale=0.1)
    heads, latent, rope, nope, v_dim = problem.num_q_heads, 256, 64, 24, 40
    batch = Batch(q_lens=(1, 9, 20), kv_lens=(17, 40, 20), num_decode=1)
    operands = verify.draw_operands(problem, batch)
    rng = np.random.default_rng(1)

    def normal(*shape):
        return jnp.asarray(rng.standard_normal(shape) * 0.2, jnp.float32)

    w_uk, w_uv = normal(heads, nope, latent), normal(heads, v_dim, latent)
    q_nope, q_rope = normal(problem.max_num_tokens, heads, nope), operands.queries[..., latent:]
    exact = {"precision": "highest"}
    absorbed = jnp.einsum("thn,hnl->thl", q_nope, w_uk, **exact)
    out, cache = reference.ragged_paged_attention(
        jnp.concatenate([absorbed, q_rope], axis=2), operands.keys, operands.values,
        operands.kv_cache, operands.arrays, problem,
    )  # fmt: skip
    out = jnp.einsum("thl,hvl->thv", out, w_uv, **exact)
    arrays, rows = operands.arrays, np.asarray(cache).reshape(-1, problem.page_size, 384)
    for seq in range(batch.num_seqs):
        start, stop = (int(arrays.cu_q_lens[i]) for i in (seq, seq + 1))
        pages = arrays.page_indices.reshape(-1, problem.pages_per_seq)[seq]
        own = rows[pages].reshape(-1, 384)[: batch.kv_lens[seq]]
        c, k_rope = own[:, :latent], own[:, 256 : 256 + rope]
        k = jnp.einsum("kl,hnl->khn", c, w_uk, **exact)
        v = jnp.einsum("kl,hvl->khv", c, w_uv, **exact)
        scores = jnp.einsum("qhn,khn->hqk", q_nope[start:stop], k, **exact)
        scores += jnp.einsum("qhr,kr->hqk", q_rope[start:stop], k_rope, **exact)
        last = batch.kv_lens[seq] - (stop - start) + np.arange(stop - start)
        seen = np.arange(len(own))[None] <= last[:, None]
        p = jax.nn.softmax(jnp.where(seen, scores * problem.sm_scale, -jnp.inf), axis=-1)
        wanted = jnp.einsum("hqk,khv->qhv", p, v, **exact)
        np.testing.assert_allclose(out[start:stop], wanted, rtol=0, atol=1e-5)


CALL = make_latent(
    max_num_tokens=32, max_num_seqs=4, pages_per_seq=4, num_pages=24, q_dtype="float32",
    kv_dtype="float32", sm_scale=0.1,
)  # fmt: skip
DISPATCHER = Dispatcher(load_chip("v6e"), Tables(), on_miss="heuristic")
INTERPRET = pltpu.InterpretParams(uninitialized_memory="nan", dma_execution_mode="on_wait")


def arguments(problem, batch, **changes):
    """Arrays of the public call, by name, and the operands that they are made of."""
    operands = verify.draw_operands(problem, batch)
    queries, dim = operands.queries, problem.head_dim
    arrays = operands.arrays
    named = {
        "ql_nope": queries[..., :dim].swapaxes(0, 1), "q_pe": queries[..., dim:],
        "new_kv_c": operands.keys, "new_k_pe": operands.values, "cache_kv": operands.kv_cache,
        "kv_lens": arrays.kv_lens, "page_indices": arrays.page_indices,
        "cu_q_lens": arrays.cu_q_lens, "distribution": arrays.distribution,
    }  # fmt: skip
    return {**named, **changes}, operands


def test_the_call_plans_and_launches_both_families():
    batch = Batch(
        q_lens=(1, 4, 4, 9), kv_lens=(30, 20, 4, 40), num_decode=1, num_prefill=2, page_seed=3
    )
    plan = DISPATCHER.plan(CALL, Step.of_batch(batch))
    assert plan.families == ("mla-decode", "mla-mixed")
    named, operands = arguments(CALL, batch)
    expected, expected_cache = reference.ragged_paged_attention(
        operands.queries, operands.keys, operands.values, operands.kv_cache, operands.arrays, CALL
    )
    out, cache = mla_ragged_paged_attention(
        **named, plan=DISPATCHER, sm_scale=0.1, interpret=INTERPRET, num_kv_pages_per_block=3,
        num_queries_per_block=(1, 8, 8), mixed_q_split=2, chunk_prefill_size=4,
    )  # fmt: skip
    assert named["cache_kv"].is_deleted()
    assert not named["ql_nope"].is_deleted()
    used = slice(0, batch.num_tokens)
    np.testing.assert_allclose(out.swapaxes(0, 1)[used], expected[used], rtol=0, atol=2e-2)
    np.testing.assert_array_equal(
        np.asarray(cache).view(np.uint32), np.asarray(expected_cache).view(np.uint32)
    )


def test_the_problem_of_a_call():
    named, _ = arguments(CALL, Batch(q_lens=(1,), kv_lens=(3,), num_decode=1))
    arrays = LatentArrays(**named)
    assert latent_problem_of(arrays, sm_scale=0.1) == CALL
    drafts = latent_problem_of(arrays, sm_scale=0.1, decode_query_size=4)
    assert drafts == dataclasses.replace(CALL, decode_query_size=4)
    wide = latent_problem_of(arrays, sm_scale=0.1, sliding_window=7, soft_cap=3.0, k_scale=2.0)
    assert wide == dataclasses.replace(CALL, sliding_window=7, soft_cap=3.0, k_scale=2.0)
    assert latent_problem_of(arrays, sm_scale=0.1, sliding_window=1 << 20) == CALL


SMALL = Batch(q_lens=(1,), kv_lens=(3,), num_decode=1)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"q_pe": jnp.zeros((32, 3, 64))}, "heads must agree: ql_nope has 4, q_pe has 3"),
        ({"q_pe": jnp.zeros((31, 4, 64))}, "tokens must agree"),
        ({"new_kv_c": jnp.zeros((32, 128))}, "elements of a latent must agree"),
        ({"new_k_pe": jnp.zeros((32, 32))}, "elements of a rope row must agree"),
        ({"q_pe": jnp.zeros((32, 4, 64), jnp.bfloat16)}, "must have one dtype"),
        ({"new_k_pe": jnp.zeros((32, 64), jnp.bfloat16)}, "must have one dtype; quantise"),
        ({"ql_nope": jnp.zeros((4, 32))}, "ql_nope must have 3 dimensions"),
        ({"cache_kv": jnp.zeros((24, 16, 1, 256))}, r"cache_kv is \(24, 16, 1, 256\)"),
        ({"cache_kv": jnp.zeros((24, 8, 2, 384))}, "kv_packing=2 must be 1, or a power of two"),
        ({"kv_lens": np.zeros(4, np.int64)}, "kv_lens must be int32"),
        ({"distribution": np.zeros(2, np.int32)}, "distribution must have 3 entries"),
        ({"kv_lens": np.full(4, 65, np.int32)}, "kv_len"),
        ({"transpose_kv_cache": True}, "MLA_TRANSPOSE_KV_CACHE"),
        ({"debug_mode": True}, "debug_mode"),
        ({"soft_cap": 0.0}, "soft_cap"),
        ({"sliding_window": 0}, "sliding_window"),
        ({"num_kv_pages_per_block": (1, 2)}, "num_kv_pages_per_block"),
        ({"num_queries_per_block": (1, 8, 9), "mixed_q_split": 2}, "mixed_q_split=2"),
        ({"num_queries_per_block": 0}, "num_queries_per_block=0"),
        ({"vmem_limit_bytes": -1}, "vmem_limit_bytes"),
        ({"k_scale": 0.0}, "k_scale"),
        ({"decode_query_size": 9}, "decode_query_size=9 must be at most 8"),
    ],
)
def test_what_the_call_refuses(changes, said):
    named, _ = arguments(CALL, SMALL)
    with pytest.raises(ValueError, match=said):
        mla_ragged_paged_attention(**{**named, **changes}, plan=DISPATCHER, interpret=INTERPRET)


def test_unknown_arguments_and_plans_of_other_problems():
    named, _ = arguments(CALL, SMALL)
    with pytest.raises(TypeError, match="unknown arguments: use_causal_mask"):
        mla_ragged_paged_attention(**named, plan=DISPATCHER, use_causal_mask=True)
    plan = DISPATCHER.plan(make_problem(), Step.of_batch(SMALL))
    with pytest.raises(ValueError, match="another problem"):
        mla_ragged_paged_attention(**named, plan=plan, interpret=INTERPRET)
    with pytest.raises(ValueError, match="cannot serve this problem; mla-decode, mla-mixed can"):
        dataclasses.replace(plan, problem=CALL)
