"""Log-sum-exp as an output, attention to the cache alone, and parts of a context merged."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from interpret.kernel_cases import (
    DECODE_BATCH,
    MIXED_BATCH,
    PREFILL_BATCH,
    V6E,
    V7X,
    blockwise_config,
    decode_config,
    make_problem,
    make_target,
)

from rpa_kernels import inputs, load_family, reference
from rpa_kernels.batch import Batch
from rpa_kernels.blockwise.q_blocks import QBlocks
from rpa_kernels.decode.attend import Attend
from rpa_kernels.merge import merge_attention
from rpa_kernels.verify import draw_operands, run_interpreted, spoil_unused, verify
from rpa_kernels.watch import interpreter

BATCHES = {"decode": DECODE_BATCH, "prefill": PREFILL_BATCH, "mixed": MIXED_BATCH}
CONFIGS = {
    "decode": decode_config(),
    "prefill": blockwise_config(bkv_sz=256),
    "mixed": blockwise_config(bq_sz=32, bq_csz=16),
}
CASES = {
    "odd_ratio": {"num_q_heads": 10, "soft_cap": 5.0, "sm_scale": 1.0},
    "fused_sinks": {"head_dim": 64, "num_q_heads": 18, "num_kv_heads": 3, "has_sinks": True},
    "fp8_window": {"kv_dtype": "float8_e4m3fn", "k_scale": 0.5, "sliding_window": 40},
    "wide_q_chunk": {"q_dtype": "float32", "attention_chunk_size": 40},
}  # fmt: skip
# Contexts of which a device has nothing, less than the queries, or much.
PARTS = {
    "decode": Batch(
        q_lens=(1,) * 7, kv_lens=(0, 17, 0, 0, 256, 1, 0), num_decode=7, cache_only=True
    ),
    "prefill": Batch(
        q_lens=(1, 9, 9, 9), kv_lens=(3, 0, 150, 5), num_decode=1, num_prefill=3, cache_only=True
    ),
    "mixed": Batch(
        q_lens=(1, 1, 20, 4, 17), kv_lens=(0, 0, 128, 3, 0), num_decode=1, cache_only=True
    ),
}  # fmt: skip
PART = {"return_lse": True, "causal": False, "update_kv_cache": False}


def slow_but(usual, names):
    return [pytest.param(n, marks=() if n in usual else pytest.mark.slow) for n in names]


def check(family, problem, batch, target=V6E, **options):
    report = verify(load_family(family), problem, CONFIGS[family], batch, target=target, **options)
    assert report.ok, report.problems
    assert 0 < report.lse_error < 0.1


LAYOUTS = [
    {"num_q_heads": 10},
    {"num_q_heads": 10, "q_dtype": "float32"},
    {"num_q_heads": 18, "num_kv_heads": 3, "head_dim": 64},
    {"num_q_heads": 132, "num_kv_heads": 132},
]


@pytest.mark.parametrize("changes", LAYOUTS, ids=str)
def test_both_kernels_lay_out_what_the_host_reads(changes):
    """More heads than lanes, too; every token and head has a number of its own."""
    problem = make_problem(max_num_tokens=16, **changes)
    _, heads, words, pack, _ = problem.q_shape
    group, tokens = problem.q_heads_per_kv_head, problem.max_num_tokens
    lse = jnp.arange(tokens * problem.num_q_heads, dtype=jnp.float32).reshape(tokens, -1)
    prepared = inputs.prepare_lse(lse, problem)
    assert prepared.shape == problem.lse_shape
    np.testing.assert_array_equal(inputs.finish_lse(prepared, problem), lse)
    # Rows of a head: word, token, part of the word; those of a query past the last are anything.
    rows = np.full((tokens, heads, words * pack), -5.0, np.float32)
    rows[:, :, :group] = lse.reshape(tokens, heads, group)
    q_blocks = QBlocks(refs=None, scratch=None, paths=(), problem=problem, on_chip=False)
    by_block = jnp.zeros((tokens * pack, problem.lse_shape[-1]), jnp.float32)
    for head in range(heads):
        own = rows[:, head].reshape(tokens, words, pack).swapaxes(0, 1).reshape(-1, 1)
        by_block = q_blocks._with_lse(by_block, head, jnp.tile(own, (1, 128)))
    found = by_block.reshape(problem.lse_shape)
    np.testing.assert_array_equal(inputs.finish_lse(found, problem), lse)
    maths = Attend(scratch=None, meta=None, problem=problem, config=None, target=V6E, on_chip=False)
    for token in (0, 7):
        found = 0.0
        for one in maths.groups:
            own = rows[token, one.first : one.first + one.count].reshape(-1, 1)
            found += maths.spread_lse(one.first, jnp.tile(own, (1, 128)))
        whole = jnp.zeros(problem.lse_shape).at[token, :, 0].set(found)
        np.testing.assert_array_equal(inputs.finish_lse(whole, problem)[token], lse[token])


@pytest.mark.parametrize("family", BATCHES)
@pytest.mark.parametrize("name", slow_but({"fused_sinks"}, CASES))
def test_the_log_sum_exp_is_right_and_other_rows_are_left_alone(family, name):
    check(family, make_problem(return_lse=True, **CASES[name]), BATCHES[family])


@pytest.mark.parametrize("family", slow_but({"decode", "mixed"}, PARTS))
@pytest.mark.parametrize("target", slow_but({"v7x"}, ["v7x", "v4"]))
def test_contexts_may_be_empty_or_shorter_than_their_queries(family, target):
    """A query that sees nothing is zero, and minus infinity; its pages are never touched."""
    target = V7X if target == "v7x" else make_target(chip="v4", num_cores=2, mxu_size=128)
    check(family, make_problem(**PART), PARTS[family], target=target, dma_mode="eager")


def attend(family, problem, operands, **changes):
    """(output, log-sum-exp) of a launch, float32 of public shapes."""
    operands = dataclasses.replace(operands, **changes)
    out, _, lse = run_interpreted(
        load_family(family), problem, CONFIGS[family], V6E, operands,
        interpret=interpreter("on_wait", 1),
    )  # fmt: skip
    out = inputs.finish(out, problem).astype(jnp.float32)
    return out, inputs.finish_lse(lse, problem)


def parts_of(pages, cached_pages, page_size):
    """Page tables and cached tokens of two devices, which have every other page each."""
    tables = [[row[i:n:2] for row, n in zip(pages, cached_pages, strict=True)] for i in (0, 1)]
    return [(table, [len(row) * page_size for row in table]) for table in tables]


@pytest.mark.parametrize("family", slow_but({"decode"}, ["decode", "mixed"]))
def test_parts_of_a_context_merge_into_the_whole(family):
    """Two parts of what is cached, and the new tokens themselves, which see each other."""
    whole = make_problem(return_lse=True, has_sinks=True)
    size, cached_pages = whole.page_size, (9, 0, 1, 4)
    q_lens = (1,) * 4 if family == "decode" else (3, 20, 1, 16)
    kv_lens = tuple(n * size + q for n, q in zip(cached_pages, q_lens, strict=True))
    num_decode = 4 if family == "decode" else 0
    batch = Batch(q_lens=q_lens, kv_lens=kv_lens, num_decode=num_decode)
    operands, pages = draw_operands(whole, batch), batch.pages(whole)
    expected, expected_lse = attend(family, whole, operands)
    part = dataclasses.replace(whole, **PART)
    # A sink counts once: for the new tokens, which every query sees at least one of.
    no_sink = jnp.full_like(operands.sinks, -jnp.inf)
    found = []
    for table, lengths in parts_of(pages, cached_pages, size):
        own = Batch(
            q_lens=q_lens, kv_lens=tuple(lengths), num_decode=num_decode, cache_only=True,
            page_table=tuple(map(tuple, table)),
        )  # fmt: skip
        assert 0 in lengths
        arrays = spoil_unused(own.arrays(part), part)
        found.append(attend(family, part, operands, arrays=arrays, sinks=no_sink))
    new = dataclasses.replace(
        batch, kv_lens=q_lens,
        page_table=tuple(row[n:] for row, n in zip(pages, cached_pages, strict=True)),
    )  # fmt: skip
    found.append(attend(family, whole, operands, arrays=new.arrays(whole)))
    used = slice(0, batch.num_tokens)
    out, lse = merge_attention(*(jnp.stack(x)[:, used] for x in zip(*found, strict=True)))
    np.testing.assert_allclose(lse, expected_lse[used], atol=2.0**-6)
    np.testing.assert_allclose(out, expected[used], atol=2.0**-6, rtol=2.0**-6)
    # Of the sequence without cached tokens the parts saw nothing.
    first = q_lens[0]
    for out, lse in found[:2]:
        assert (lse[first : first + q_lens[1]] == -jnp.inf).all()
        assert not out[first : first + q_lens[1]].any()


def test_merging_is_exact_whatever_the_size_of_the_scores():
    rng = np.random.default_rng(0)
    scores = np.concatenate([rng.normal(size=(3, 5, 2, 7)), 1e4 + rng.normal(size=(1, 5, 2, 7))])
    scores[2], scores[:, 4] = -np.inf, -np.inf  # a part, and a query, that sees nothing
    values = rng.normal(size=(4, 7, 8))
    most = np.where(np.isinf(scores).all(-1), 0, scores.max(-1))
    p = np.exp(scores - most[..., None])
    with np.errstate(divide="ignore"):
        lse = most + np.log(p.sum(-1))
    out = np.einsum("nqhk,nkd->nqhd", p, values) / np.maximum(p.sum(-1), 1e-30)[..., None]
    merged, total = merge_attention(jnp.float32(out), jnp.float32(lse))
    np.testing.assert_allclose(merged[:4], out[3][:4], rtol=1e-6)  # 10,000 above all others
    np.testing.assert_allclose(total[:4], lse[3][:4], rtol=1e-6)
    assert not merged[4].any()
    assert (total[4] == -jnp.inf).all()
    near, near_lse = merge_attention(jnp.float32(out[:3]), jnp.float32(lse[:3]))
    joined = np.concatenate([*p[:2] * np.exp(most[:2])[..., None]], axis=-1)[:4]
    wanted = np.einsum("qhk,kd->qhd", joined, np.concatenate([*values[:2]]))
    np.testing.assert_allclose(near[:4], wanted / joined.sum(-1)[..., None], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(near_lse[:4], np.log(joined.sum(-1)), rtol=1e-5, atol=1e-6)


def test_the_reference_says_what_a_softmax_weighs():
    problem = make_problem(return_lse=True, num_q_heads=2, num_kv_heads=1)
    batch = Batch(q_lens=(2,), kv_lens=(5,), num_decode=0)
    ops = draw_operands(problem, batch)
    _, cache, lse = reference.ragged_paged_attention(
        ops.queries, ops.keys, ops.values, ops.kv_cache, ops.arrays, problem
    )
    (page, *_) = batch.pages(problem)[0]
    k = np.asarray(cache[page, :5, 0, 0], np.float32)
    q = np.asarray(ops.queries[:2], np.float32)
    scores = np.einsum("qhd,kd->qhk", q, k) * problem.sm_scale
    scores[0, :, 4] = -np.inf
    np.testing.assert_allclose(lse[:2], np.log(np.exp(scores).sum(-1)), rtol=1e-5)
    assert (lse[2:] == -np.inf).all()
