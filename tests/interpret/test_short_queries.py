"""Decode of a few new tokens a sequence, and trees of them; races and poison are looked for."""

from dataclasses import replace

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
)  # fmt: skip

from rpa_kernels import load_family, tree
from rpa_kernels.batch import Batch
from rpa_kernels.decode.account import kernel_name
from rpa_kernels.verify import verify

# One to all tokens; contexts that are all new, that end one before, at and behind a page's and a
# block's end, new tokens on both sides of one, and the longest context; a sequence of others.
BATCH = Batch(q_lens=(4, 1, 3, 4, 2, 4, 9), kv_lens=(4, 18, 17, 256, 130, 129, 20), num_decode=6)
LANES = {"kv_layout": "seq_along_lane", "page_size": 128, "pages_per_seq": 2, "num_pages": 16}
CASES = {
    "llama": {},
    "fused_sinks_lse": {
        "head_dim": 64, "num_q_heads": 6, "has_sinks": True, "sliding_window": 20,
        "return_lse": True,
    },
    "lanes_fp8": {**LANES, "kv_dtype": "float8_e4m3fn", "num_kv_heads": 1, "k_scale": 0.5},
}  # fmt: skip
SLOW_CASES = {
    "fp8_scales": {"kv_dtype": "float8_e4m3fn", "q_scale": 0.25, "k_scale": 0.5, "v_scale": 2.0},
    "window_of_less": {"sliding_window": 3, "num_q_heads": 5, "num_kv_heads": 1},
    "chunks": {"attention_chunk_size": 16},
    "lse": {"return_lse": True, "num_q_heads": 6},
    "shared_kv": {"update_kv_cache": False},
    "not_causal": {"causal": False},
    "cache_only": {"causal": False, "update_kv_cache": False, "return_lse": True},
    "fused_fp8": {"head_dim": 64, "kv_dtype": "float8_e4m3fn", "has_sinks": True},
    "fused_odd_heads": {"head_dim": 64, "num_q_heads": 3, "num_kv_heads": 3},
    "wide_heads_soft_cap": {"head_dim": 256, "soft_cap": 2.0, "sm_scale": 1.0},
    "float32": {"q_dtype": "float32", "kv_dtype": "float32", "head_dim": 80},
    "lanes_window": {**LANES, "sliding_window": 40, "has_sinks": True},
    "large_pages": {"page_size": 128, "pages_per_seq": 2, "num_pages": 16},
}  # fmt: skip
SOME = [pytest.param(case, id=name) for name, case in CASES.items()]
ALL = [
    *(pytest.param(case, id=name) for name, case in CASES.items()),
    *(pytest.param(case, id=name, marks=pytest.mark.slow) for name, case in SLOW_CASES.items()),
]


def check(problem, batch, config=None, target=V6E, **kwargs):
    config = config or decode_config()
    report = verify(load_family("decode"), problem, config, batch, target=target, **kwargs)
    assert report.ok, report.problems


@pytest.mark.parametrize("case", ALL)
def test_a_few_tokens_are_right(case):
    check(make_problem(decode_query_size=4, **case), BATCH)


@pytest.mark.slow
@pytest.mark.parametrize("case", SOME)
@pytest.mark.parametrize("size", [2, 3, 8])
def test_every_number_of_tokens_is_right(case, size):
    problem = make_problem(decode_query_size=size, **case)
    # Shorter and longer ones in turn, two blocks of sequences, and ends around page 8's.
    q_lens = tuple(size - i % size for i in range(6))
    kv_lens = tuple(127 + i if i else size for i in range(6))
    batch = Batch(q_lens=(*q_lens, 5), kv_lens=(*kv_lens, 20), num_decode=6)
    check(problem, batch, dma_mode="eager")


@pytest.mark.slow
@pytest.mark.parametrize("target", [V5E, V7X])
@pytest.mark.parametrize("case", SOME)
def test_other_chips_are_right(case, target):
    check(make_problem(decode_query_size=4, **case), BATCH, target=target)


@pytest.mark.slow
@pytest.mark.parametrize("case", SOME)
def test_two_cores_share_the_sequences(case):
    target = make_target(chip="v5p", num_cores=2, has_bf16_vector_units=False)
    check(make_problem(decode_query_size=4, **case), BATCH, target=target)


TREES = {
    "llama": {},
    "fused_lse": {"head_dim": 64, "num_q_heads": 6, "has_sinks": True, "return_lse": True},
    "lanes_fp8": CASES["lanes_fp8"],
    "shared_kv": {"update_kv_cache": False},
    "odd_heads": {"num_q_heads": 5, "num_kv_heads": 1},
}


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if n == "llama" else pytest.mark.slow) for n in TREES]
)
def test_a_tree_of_drafts_sees_what_its_mask_says(name):
    """Masks of any bits: also of later tokens, and of tokens that there are none of."""
    check(make_problem(decode_query_size=4, has_tree_mask=True, **TREES[name]), BATCH)


def test_a_mask_counts_in_decode_alone():
    arrays = BATCH.arrays(make_problem(decode_query_size=4))
    mask, index = np.zeros(48, np.int32), np.arange(9)
    mask[:4] = 0b0000, 0b0001, 0b0001, 0b1101
    of_first, of_last = (tree.sees_new(seq, index, arrays, mask) for seq in (0, 6))
    assert of_first[:4, :4].tolist() == [[1, 0, 0, 0], [1, 1, 0, 0], [1, 0, 1, 0], [1, 0, 1, 1]]
    assert (of_last == np.tri(9, dtype=bool)).all()


@pytest.mark.slow
def test_other_families_have_no_trees():
    problem = make_problem(decode_query_size=4, has_tree_mask=True)
    report = verify(load_family("mixed"), problem, blockwise_config(), BATCH, target=V6E)
    assert report.ok, report.problems


@pytest.mark.parametrize("change", [
    {"decode_query_size": 1}, {"causal": False}, {"sliding_window": 9}, {"attention_chunk_size": 9},
])  # fmt: skip
def test_a_tree_mask_is_refused_where_it_means_nothing(change):
    with pytest.raises(ValueError, match="has_tree_mask needs decode_query_size above 1"):
        make_problem(**{"decode_query_size": 4, "has_tree_mask": True, **change})


@pytest.mark.slow
def test_new_tokens_of_many_sequences_fill_several_lane_tiles():
    problem = make_problem(**LANES, decode_query_size=8, max_num_tokens=512, max_num_seqs=40)
    problem = replace(problem, num_pages=80)
    rng = np.random.default_rng(0)
    q_lens = tuple(rng.integers(1, 9, 40).tolist())
    kv_lens = tuple(int(rng.integers(q, 257)) for q in q_lens)
    batch = Batch(q_lens=q_lens, kv_lens=kv_lens, num_decode=40)
    check(problem, batch, config=decode_config(bq_sz=32, seqs_per_step=4))


def test_sizes_that_are_computed_alike_share_a_key_but_not_a_limit():
    problem = make_problem(decode_query_size=3)
    assert "-t3" in kernel_name(problem, decode_config())
    assert "-t" not in kernel_name(make_problem(), decode_config())
    assert "4 tokens" in BATCH.misfit(problem)
    assert BATCH.misfit(make_problem(decode_query_size=4)) is None
