"""Every feature in every family against the float32 reference, with races and poison looked for."""

import pytest
from interpret.kernel_cases import (
    DECODE_BATCH,
    MIXED_BATCH,
    PREFILL_BATCH,
    V5E,
    V6E,
    V7X,
    blockwise_config,
    decode_config,
    make_problem,
    make_target,
)

from rpa_kernels import load_family
from rpa_kernels.batch import Batch
from rpa_kernels.blockwise import chains as splits
from rpa_kernels.blockwise.chains import all_chains
from rpa_kernels.verify import verify

# Features, several a case where they do not hide one another. Slow ones repeat a path.
CASES = {
    "llama": {},
    "fused_sinks": {"head_dim": 64, "num_q_heads": 6, "has_sinks": True},
    "fp8_scales": {"kv_dtype": "float8_e4m3fn", "q_scale": 0.25, "k_scale": 0.5, "v_scale": 2.0},
    "int8_shared_kv": {
        "kv_dtype": "int8", "k_scale": 0.02, "v_scale": 0.03, "update_kv_cache": False,
    },
}  # fmt: skip
SLOW_CASES = {
    "mha": {"num_q_heads": 2, "sliding_window": 40},
    "odd_ratio_one_head": {"num_q_heads": 5, "num_kv_heads": 1, "causal": False},
    "wide_heads_soft_cap": {"head_dim": 256, "soft_cap": 2.0, "sm_scale": 1.0},
    "float32": {"q_dtype": "float32", "kv_dtype": "float32", "head_dim": 80},
    "ratio_7": {"num_q_heads": 21, "num_kv_heads": 3},
    "fused_odd_heads": {"head_dim": 64, "num_q_heads": 3, "num_kv_heads": 3},
    "fused_fp8": {"head_dim": 64, "kv_dtype": "float8_e4m3fn"},
    "head_96": {"head_dim": 96},
    "head_112": {"head_dim": 112},
    "head_192": {"head_dim": 192},
    "wide_q": {"q_dtype": "float32"},
    "wide_kv": {"kv_dtype": "float32"},
    "e5m2_one_head": {"kv_dtype": "float8_e5m2", "num_kv_heads": 1},
    "int8_q_scale": {"kv_dtype": "int8", "q_scale": 0.03, "k_scale": 0.02, "v_scale": 0.03},
    "window_of_one": {"sliding_window": 1},
    "window_shared_kv": {"sliding_window": 33, "update_kv_cache": False},
    "sinks": {"has_sinks": True},
    "large_pages": {"page_size": 128, "pages_per_seq": 2, "num_pages": 16},
    "float32_out": {"out_dtype": "float32"},
}
ALL = [
    *(pytest.param(case, id=name) for name, case in CASES.items()),
    *(pytest.param(case, id=name, marks=pytest.mark.slow) for name, case in SLOW_CASES.items()),
]
SOME = [pytest.param(CASES[name], id=name) for name in ("llama", "fused_sinks")]


def slow_but(usual, values):
    """Parameters of which all but those in `usual` belong to the slow suite."""
    return [pytest.param(v, marks=() if v in usual else pytest.mark.slow) for v in values]


def check(family, problem, config, batch, target=V6E, **kwargs):
    report = verify(load_family(family), problem, config, batch, target=target, **kwargs)
    assert report.ok, report.problems
    return report


@pytest.mark.parametrize("case", ALL)
def test_decode_is_right(case):
    check("decode", make_problem(**case), decode_config(), DECODE_BATCH)


@pytest.mark.parametrize("case", ALL)
def test_mixed_is_right(case):
    problem = make_problem(**case)
    config = blockwise_config(mxu_sums=int(problem.head_dim <= 128))
    check("mixed", problem, config, MIXED_BATCH)


@pytest.mark.parametrize("case", [pytest.param(CASES["fused_sinks"], id="fused_sinks")])
def test_mixed_without_a_copy_of_v(case):
    check("mixed", make_problem(**case), blockwise_config(mxu_sums=0), MIXED_BATCH)


# Tails and verifications on each path for few queries, which look at two compute blocks of keys.
SHORT_BATCH = Batch(q_lens=(4, 7, 16, 3, 17), kv_lens=(200, 150, 16, 256, 129), num_decode=0)
SHORT_CASES = {
    "llama": {},
    "one_odd_head": {"num_q_heads": 3, "num_kv_heads": 1, "sliding_window": 70},
    "fused_sinks": {"head_dim": 64, "num_q_heads": 6, "has_sinks": True},
    "fp8": {"kv_dtype": "float8_e4m3fn", "k_scale": 0.5, "v_scale": 2.0},
    "wide_q": {"q_dtype": "float32"},
}


@pytest.mark.parametrize("name", slow_but({"llama", "fused_sinks"}, SHORT_CASES))
@pytest.mark.parametrize("target", slow_but([V6E], [V6E, V5E]))
def test_mixed_of_few_queries_is_right(name, target):
    problem = make_problem(**SHORT_CASES[name])
    config = blockwise_config(
        bq_sz=32, bq_csz=32, bkv_sz=256, mxu_sums=int(target is V6E or problem.fuses_kv)
    )
    whole, *short = all_chains("mixed", problem, config, target)
    assert len(short) >= 2
    assert short[-1].keys == 2 * whole.keys
    check("mixed", problem, config, SHORT_BATCH, target=target)


@pytest.mark.parametrize("case", SOME)
def test_prefill_is_right(case):
    config = blockwise_config(bkv_sz=256, num_buffers=3)
    check("prefill", make_problem(**case), config, PREFILL_BATCH)


# Queries on both sides of a chunk's edge, blocks of many chunks, contexts that end with one.
CHUNK_BATCHES = {
    "decode": Batch(
        q_lens=(1,) * 6 + (9,), kv_lens=(40, 41, 80, 256, 129, 1, 20), num_decode=6
    ),
    "prefill": Batch(q_lens=(1, 20, 20), kv_lens=(20, 131, 80), num_decode=1, num_prefill=2),
    "mixed": Batch(q_lens=(1, 1, 22, 4, 17), kv_lens=(20, 121, 30, 83, 256), num_decode=1),
}  # fmt: skip
CHUNK_CASES = {
    "part_of_a_page": {"attention_chunk_size": 40},
    "fused_sinks": {
        "attention_chunk_size": 64, "head_dim": 64, "has_sinks": True, "num_q_heads": 6,
    },
    "shared_fp8": {
        "attention_chunk_size": 16, "kv_dtype": "float8_e4m3fn", "update_kv_cache": False,
    },
    "chunks_of_one": {"attention_chunk_size": 1},
    "one_odd_head": {"attention_chunk_size": 129, "num_q_heads": 3, "num_kv_heads": 1},
}  # fmt: skip


@pytest.mark.parametrize("family", CHUNK_BATCHES)
@pytest.mark.parametrize("name", slow_but({"part_of_a_page"}, CHUNK_CASES))
def test_queries_see_their_own_chunk(family, name):
    problem = make_problem(**CHUNK_CASES[name])
    config = decode_config() if family == "decode" else blockwise_config(bq_sz=32, bq_csz=16)
    check(family, problem, config, CHUNK_BATCHES[family])


def test_mixed_of_query_blocks_of_several_compute_blocks():
    # Too many queries for any of the paths for few, and for one turn of the path for many.
    batch = Batch(q_lens=(1, 33, 17, 3), kv_lens=(20, 150, 17, 63), num_decode=1)
    problem = make_problem(max_num_tokens=64)
    check("mixed", problem, blockwise_config(bq_sz=48, bq_csz=16), batch)


def test_prefill_of_chunks_that_leave_compute_blocks_partly_filled():
    batch = Batch(q_lens=(1, 7, 7), kv_lens=(20, 160, 7), num_decode=1, num_prefill=2)
    check("prefill", make_problem(), blockwise_config(bq_sz=32, bq_csz=32), batch)


@pytest.mark.parametrize("family", ["decode", "mixed"])
def test_right_without_bf16_vector_units_and_with_early_copies(family):
    config = decode_config() if family == "decode" else blockwise_config()
    batch = DECODE_BATCH if family == "decode" else MIXED_BATCH
    check(family, make_problem(), config, batch, target=V5E, dma_mode="eager")


@pytest.mark.parametrize("family", slow_but({"mixed"}, ["prefill", "mixed"]))
def test_blockwise_that_weighs_the_last_chain_of_a_pass_in_the_next_one(family):
    config = blockwise_config(bq_sz=32, bq_csz=32, bkv_sz=256, mxu_sums=1)
    batch = PREFILL_BATCH if family == "prefill" else MIXED_BATCH
    check(family, make_problem(sliding_window=70), config, batch, target=V7X)


@pytest.mark.parametrize("target", slow_but([V7X], [V5E, V6E, V7X]), ids=lambda t: t.chip)
def test_sums_by_lane_start_with_the_sinks(target):
    # Passes with masks and without, blocks filled in part, and paths for few queries.
    problem = make_problem(head_dim=256, num_q_heads=6, has_sinks=True)
    config = blockwise_config(bq_sz=32, bq_csz=32, bkv_sz=256, bkv_csz=256)
    batch = Batch(q_lens=(20, 3, 9), kv_lens=(256, 140, 9), num_decode=0)
    check("mixed", problem, config, batch, target=target)


@pytest.mark.parametrize("target", slow_but([V7X], [V6E, V7X]), ids=lambda t: t.chip)
@pytest.mark.parametrize("num_kv_heads", slow_but([5], [5, 17]))
def test_a_last_chain_in_the_slot_of_the_first(num_kv_heads, target):
    # Five heads are one pass of five chains, seventeen as many passes of one.
    problem = make_problem(num_q_heads=num_kv_heads, num_kv_heads=num_kv_heads)
    config = blockwise_config(bq_sz=32, bq_csz=32)
    (chains,) = all_chains("prefill", problem, config, target)
    assert not chains.is_short
    assert (chains.width - 1) % chains.num_slots == 0
    batch = Batch(q_lens=(20,), kv_lens=(150,), num_decode=0, num_prefill=1)
    check("prefill", problem, config, batch, target=target)


EDGE_CASES = {
    "llama": {},
    "window": {"sliding_window": 170},
    "chunk": {"attention_chunk_size": 170},
    "not_causal": {"causal": False, "update_kv_cache": False, "soft_cap": 2.0},
    "fused_sinks": {"head_dim": 64, "has_sinks": True},
}


# Two cases run by default, on v7x with sums from the MXU; the rest is slow.
USUAL_EDGES = (("llama", V6E),)


@pytest.mark.parametrize(
    ("case", "target"),
    [
        pytest.param(
            case, target, id=f"{name}-{target.chip}",
            marks=() if (name, target) in USUAL_EDGES else pytest.mark.slow,
        )
        for name, case in EDGE_CASES.items()
        for target in (V6E, V7X)
    ],
)  # fmt: skip
def test_passes_of_half_the_keys_at_edges(monkeypatch, case, target):
    monkeypatch.setattr(splits, "PASS_ROWS", 256)
    monkeypatch.setattr(splits, "EDGE_KEYS", 128)
    problem = make_problem(
        num_q_heads=8, num_kv_heads=4, max_num_tokens=128, pages_per_seq=32, **case
    )
    config = blockwise_config(
        bq_sz=64,
        bq_csz=32,
        bkv_sz=512,
        bkv_csz=256,
        mxu_sums=int(target is V7X or problem.fuses_kv),
    )
    whole, *_ = all_chains("mixed", problem, config, target)
    assert (whole.num_edges, whole.num_masks, whole.width) == (2, 1, 4)
    # Ends and windows in the first and in the second half of a compute block.
    batch = Batch(q_lens=(1, 40, 20, 17), kv_lens=(20, 390, 130, 300), num_decode=1)
    check("mixed", problem, config, batch, target=target)


@pytest.mark.slow
@pytest.mark.parametrize("num_kv_heads", [1, 3])
def test_decode_of_words_that_are_not_full_and_an_mxu_without_float8(num_kv_heads):
    # One and three heads leave rows of the last word empty; what lies there must not matter.
    case = {"kv_dtype": "float8_e4m3fn", "num_q_heads": 3, "sliding_window": 40}
    problem = make_problem(**case, num_kv_heads=num_kv_heads)
    target = make_target(chip="v4", has_bf16_vector_units=False, has_fp8_mxu=False)
    check("decode", problem, decode_config(), DECODE_BATCH)
    check("decode", problem, decode_config(), DECODE_BATCH, target=target)


@pytest.mark.parametrize(
    ("num_tokens", "bq_sz"),
    [(8, 4), *(pytest.param(*sizes, marks=pytest.mark.slow) for sizes in ((8, 8), (3, 8)))],
)
def test_decode_in_as_few_rows_as_there_are_sequences(num_tokens, bq_sz):
    # The copy of the block past the last must not start past the last row either.
    problem = make_problem(max_num_tokens=num_tokens, max_num_seqs=num_tokens)
    config = decode_config(bq_sz=bq_sz)
    assert load_family("decode").check(problem, config, V6E) is None
    for num_seqs in (num_tokens, 1):
        kv_lens = (17, 1, 130, 2, 16, 3, 4, 5)[:num_seqs]
        batch = Batch(q_lens=(1,) * num_seqs, kv_lens=kv_lens, num_decode=num_seqs)
        check("decode", problem, config, batch, dma_mode="eager")


@pytest.mark.parametrize("family", ["decode", "prefill", "mixed"])
def test_a_family_without_sequences_changes_nothing(family):
    others = {
        "decode": Batch(q_lens=(5,), kv_lens=(9,), num_decode=0),
        "prefill": Batch(q_lens=(1,), kv_lens=(9,), num_decode=1),
        "mixed": Batch(q_lens=(), kv_lens=(), num_decode=0),
    }
    config = decode_config() if family == "decode" else blockwise_config()
    report = check(family, make_problem(), config, others[family])
    assert report.max_error == 0.0


def test_verify_refuses_a_config_that_cannot_exist():
    with pytest.raises(ValueError, match="bkv_sz % page_size"):
        check("decode", make_problem(), decode_config(bkv_sz=100, bkv_csz=100), DECODE_BATCH)
