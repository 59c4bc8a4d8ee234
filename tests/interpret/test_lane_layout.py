"""Kernels on caches with tokens along lanes, against the reference, with races and poison."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from interpret.kernel_cases import (
    V5E,
    V6E,
    V7X,
    blockwise_config,
    decode_config,
    make_problem,
    make_target,
)
from jax.experimental.pallas import tpu as pltpu

import rpa_tune
from rpa_kernels import layout, load_family, reference
from rpa_kernels.batch import Batch
from rpa_kernels.verify import draw_operands, verify
from rpa_tune.dispatch.call import Arrays, problem_of
from rpa_tune.dispatch.plan import Launch, LaunchPlan

INTERPRET = pltpu.InterpretParams(uninitialized_memory="nan")
FP8 = {"kv_dtype": "float8_e4m3fn", "num_kv_heads": 1}
V5P = make_target(chip="v5p", mxu_size=128, num_cores=2, has_bf16_vector_units=False)
# Around the edges of pages and lane tiles of 128 tokens; a sequence of another family behind.
BATCH = Batch(q_lens=(1, 1, 1, 1, 1, 1, 9), kv_lens=(1, 128, 129, 512, 385, 127, 20), num_decode=6)
# Neighbouring pages, rising and falling, and others.
RUNS = Batch(
    q_lens=(1, 1, 1), kv_lens=(500, 512, 257), num_decode=3,
    page_table=((4, 5, 6, 7), (15, 14, 13, 12), (9, 3, 2)),
)  # fmt: skip


def lane_problem(**changes):
    fields = {
        "page_size": 128, "pages_per_seq": 4, "num_pages": 32,
        "kv_layout": layout.SEQ_ALONG_LANE,
    }  # fmt: skip
    return make_problem(**{**fields, **changes})


def check(family, problem, config, batch, target=V6E, **kwargs):
    report = verify(load_family(family), problem, config, batch, target=target, **kwargs)
    assert report.ok, report.problems


# (problem, config, chip)
CASES = {
    # A gap behind each head of a page in VMEM, of which nothing may be read.
    "fp8_strided": (FP8, {"bkv_sz": 256, "strided_copies": 1}, V6E),
    # Pages of four lane tiles, fetched by halves; heads narrower than their lanes.
    "large_pages": (
        {"page_size": 512, "pages_per_seq": 1, "num_kv_heads": 2, "head_dim": 80},
        {"bkv_sz": 256, "bkv_csz": 256}, V7X),
    "two_cores": ({**FP8, "has_sinks": True, "sliding_window": 200}, {"bq_sz": 2}, V5P),
}  # fmt: skip
SLOW_CASES = {
    "fp8": (FP8, {"bkv_sz": 256}, V6E),
    "strided_parts": (
        {"page_size": 512, "pages_per_seq": 1, "num_kv_heads": 2},
        {"bkv_sz": 256, "bkv_csz": 256, "strided_copies": 1}, V7X),
    "bfloat16": ({}, {"bkv_sz": 256}, V6E),
    "float32": ({"q_dtype": "float32", "kv_dtype": "float32", "head_dim": 64}, {}, V6E),
    "wide_kv": ({"kv_dtype": "float32"}, {}, V6E),
    "e5m2_scales": (
        {"kv_dtype": "float8_e5m2", "q_scale": 0.25, "k_scale": 0.5, "v_scale": 2.0}, {}, V5E),
    "head_256": ({**FP8, "head_dim": 256, "num_q_heads": 5}, {"bkv_sz": 512}, V6E),
    "shared_kv": ({**FP8, "update_kv_cache": False}, {}, V6E),
    "window_of_one": ({**FP8, "sliding_window": 1}, {}, V6E),
    "chunks": ({**FP8, "attention_chunk_size": 200}, {}, V6E),
    "pages_of_two_tiles": ({**FP8, "page_size": 256, "pages_per_seq": 2}, {"bkv_sz": 512}, V6E),
    "block_over_pages": (
        {**FP8, "page_size": 384, "pages_per_seq": 2}, {"bkv_sz": 768, "bkv_csz": 256}, V6E),
    "one_at_a_time": (FP8, {"seqs_per_step": 1, "num_buffers": 2, "bq_sz": 1}, V6E),
    "whole_tiles_of_sequences": (FP8, {"seqs_per_step": 4, "bq_sz": 32}, V5P),
}  # fmt: skip
ALL = [
    *(pytest.param(*case, id=name) for name, case in CASES.items()),
    *(pytest.param(*case, id=name, marks=pytest.mark.slow) for name, case in SLOW_CASES.items()),
]


@pytest.mark.parametrize(("case", "config", "target"), ALL)
def test_decode_is_right(case, config, target):
    check("decode", lane_problem(**case), decode_config(**config), BATCH, target)


@pytest.mark.parametrize("changes", [
    {"dma_mode": "eager"}, pytest.param({}, marks=pytest.mark.slow),
])  # fmt: skip
def test_decode_copies_runs_of_pages(changes):
    check("decode", lane_problem(**FP8), decode_config(bkv_sz=512), RUNS, **changes)


@pytest.mark.slow
@pytest.mark.parametrize("over", range(-1, 2))
@pytest.mark.parametrize("tokens", [128, 256, 512])
def test_decode_at_the_edges_of_pages_and_blocks(tokens, over):
    problem = lane_problem(**FP8, pages_per_seq=5)
    batch = Batch(q_lens=(1, 1), kv_lens=(tokens + over, tokens), num_decode=2, page_seed=over + 1)
    check("decode", problem, decode_config(bkv_sz=256), batch)


@pytest.mark.slow
def test_new_tokens_of_more_than_one_lane_tile():
    """Sequences past the 128th: their new tokens are in the second tile of the operand."""
    problem = lane_problem(
        **FP8, max_num_tokens=140, max_num_seqs=140, pages_per_seq=1, num_pages=160
    )
    lengths = tuple(1 + i % 128 for i in range(140))
    batch = Batch(q_lens=(1,) * 140, kv_lens=lengths, num_decode=140)
    for target in (V6E, V5P):
        check("decode", problem, decode_config(bq_sz=16), batch, target)


# A decode-like row, one that fills a page, verification across a page's edge, chunks of several
# query blocks: behind a prefix within a tile, at a page's edge, and without a prefix.
MIXED = Batch(
    q_lens=(1, 1, 4, 40, 20, 33), kv_lens=(20, 128, 258, 290, 148, 33), num_decode=1, page_seed=3
)
PREFILL = Batch(q_lens=(1, 40, 40, 5), kv_lens=(20, 300, 40, 29), num_decode=1, num_prefill=2)
# As `MIXED`, its chunks on pages that follow each other.
ON_RUNS = Batch(
    q_lens=(20, 36), kv_lens=(500, 400), num_decode=0, page_table=((14, 13, 12, 11), (4, 5, 6, 7))
)
BLOCKS = {"bkv_sz": 256, "mxu_sums": 1}
MIXED_CASES = {"fp8": (FP8, BLOCKS, V6E)}
SLOW_MIXED_CASES = {
    "bfloat16": ({}, BLOCKS, V6E),
    "float32": ({"q_dtype": "float32", "kv_dtype": "float32", "head_dim": 64}, {}, V6E),
    "e5m2_scales": (
        {"kv_dtype": "float8_e5m2", "q_scale": 0.25, "k_scale": 0.5, "v_scale": 2.0}, {}, V5E),
    "head_256": ({**FP8, "head_dim": 256, "num_q_heads": 5}, {"bkv_sz": 512}, V6E),
    "head_80_sinks": ({**FP8, "head_dim": 80, "has_sinks": True}, BLOCKS, V7X),
    "shared_kv": ({**FP8, "update_kv_cache": False}, BLOCKS, V6E),
    "bidirectional": ({**FP8, "causal": False}, BLOCKS, V6E),
    "bidirectional_window": ({**FP8, "causal": False, "sliding_window": 30}, {}, V6E),
    "window_of_one": ({**FP8, "sliding_window": 1}, {}, V6E),
    "chunks": ({**FP8, "attention_chunk_size": 24}, {}, V6E),
    "two_cores": (FP8, BLOCKS, V5P),
    "window_two_cores": ({**FP8, "sliding_window": 20}, {"bkv_sz": 128}, V5P),
    "part_of_a_page": (
        {**FP8, "page_size": 512, "pages_per_seq": 1}, {"bkv_sz": 256, "bkv_csz": 256}, V6E),
    "pages_of_two_tiles": (
        {**FP8, "page_size": 256, "pages_per_seq": 2, "sliding_window": 40}, {"bkv_sz": 512}, V7X),
}  # fmt: skip
ALL_MIXED = [
    *(pytest.param(*case, id=name) for name, case in MIXED_CASES.items()),
    *(
        pytest.param(*case, id=name, marks=pytest.mark.slow)
        for name, case in SLOW_MIXED_CASES.items()
    ),
]


def blocks_problem(**changes):
    return lane_problem(**{"max_num_tokens": 160, **changes})


@pytest.mark.parametrize(("case", "config", "target"), ALL_MIXED)
def test_mixed_is_right(case, config, target):
    check("mixed", blocks_problem(**case), blockwise_config(**config), MIXED, target)


@pytest.mark.slow
@pytest.mark.parametrize(("batch", "changes"), [(MIXED, {}), (ON_RUNS, {}), (ON_RUNS, FP8)])
def test_mixed_with_copies_as_early_as_may_be(batch, changes):
    problem = blocks_problem(**changes)
    check("mixed", problem, blockwise_config(**BLOCKS), batch, dma_mode="eager")


def test_prefill_copies_as_early_as_may_be():
    check("prefill", blocks_problem(**FP8), blockwise_config(), PREFILL, dma_mode="eager")


def test_the_public_call_takes_the_layout():
    """Its problem is read off the cache; what is no cache of the layout is refused."""
    batch = Batch(q_lens=(1, 1), kv_lens=(129, 70), num_decode=2)
    drawn = lane_problem(**FP8, head_dim=80, max_num_tokens=2, max_num_seqs=2, pages_per_seq=2)
    ops = draw_operands(drawn, batch)
    metadata = (getattr(ops.arrays, name) for name in Arrays._fields[4:8])
    arrays = Arrays(ops.queries, ops.keys, ops.values, ops.kv_cache, *map(jnp.asarray, metadata))
    features = {"sm_scale": drawn.sm_scale, "kv_layout": "seq_along_lane"}
    assert problem_of(arrays, **features) == dataclasses.replace(drawn, out_dtype=None)
    for name, message in (
        ("head_along_sublane", "must be .* with head_along_sublane"), ("lanes", "is not one of"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            problem_of(arrays, kv_layout=name)
    expected, cache = reference.ragged_paged_attention(*arrays[:4], ops.arrays, drawn)
    plan = LaunchPlan(
        problem=drawn, target=V6E, launches=(Launch(family="decode", config=decode_config()),)
    )
    expected_bits = np.asarray(cache).view(np.uint8)
    out, cache = rpa_tune.ragged_paged_attention(
        *arrays[:9], plan=plan, interpret=INTERPRET, **features
    )
    np.testing.assert_array_equal(np.asarray(cache).view(np.uint8), expected_bits)
    np.testing.assert_allclose(out.astype(jnp.float32), expected, atol=0.05)
