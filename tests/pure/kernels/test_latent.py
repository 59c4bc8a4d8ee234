"""Problems of multi-head latent attention: shapes of the public function, and what is refused."""

import dataclasses

import pytest

from rpa_kernels import load_family, operands
from rpa_kernels.batch import Batch
from rpa_kernels.blockwise.config import BlockwiseConfig
from rpa_kernels.checks import check_finite
from rpa_kernels.decode.config import DecodeConfig
from rpa_kernels.family import Traffic
from rpa_kernels.infeasible import Infeasible
from rpa_kernels.latent import latent_cache_shape
from rpa_kernels.problem import Problem, problem_from_dict
from rpa_kernels.slots import LATENT_FAMILIES
from rpa_tune.hw.chip import load_chips
from rpa_tune.tables.key import representative, tuning_key

DEEPSEEK = Problem(
    num_q_heads=128, num_kv_heads=1, head_dim=512, rope_dim=64, page_size=1024,
    max_num_tokens=128, max_num_seqs=128, pages_per_seq=16, num_pages=2048, kv_packing=32,
)  # fmt: skip


# Shapes that `get_kv_cache_shape` of tpu-inference 0.32.0, mla/v2, gives for 512 + 128 lanes.
@pytest.mark.parametrize(
    ("dtype", "packing", "shape"),
    [
        ("bfloat16", None, (2048, 512, 2, 640)),
        ("bfloat16", 32, (2048, 32, 32, 640)),
        ("float8_e4m3fn", None, (2048, 256, 4, 640)),
        ("float8_e4m3fn", 32, (2048, 32, 32, 640)),
        ("float32", None, (2048, 1024, 1, 640)),
    ],
)
def test_the_cache_has_the_public_shape(dtype, packing, shape):
    problem = dataclasses.replace(DEEPSEEK, kv_dtype=dtype, kv_packing=packing)
    assert problem.kv_cache_shape == shape
    assert latent_cache_shape(2048, 1024, problem.row_tokens, 640) == shape
    bits = 8 * problem.kv_token_bytes // 640
    assert problem.page_bytes * 8 == 1024 * 640 * bits
    assert str(bits) in dtype or dtype.startswith("float8")


def test_rows_are_padded_one_by_one():
    problem = dataclasses.replace(DEEPSEEK, head_dim=200, rope_dim=65)
    assert problem.k_lanes == 256 + 128
    assert problem.q_shape == (128, 1, 64, 2, 256)
    assert problem.q_rope_shape == (128, 1, 64, 2, 128)
    assert problem.kv_new_shape == (4, 32, 384)


@pytest.mark.parametrize("chip", ["v5p", "v6e", "v7x"])
def test_queries_of_float8_are_multiplied_as_they_are_where_that_is_faster(chip):
    """v7x alone has them at twice the rate; elsewhere their factor is folded into bfloat16."""
    target = load_chips()[chip].target
    problem = dataclasses.replace(DEEPSEEK, q_dtype="float8_e4m3fn", kv_dtype="float8_e4m3fn")
    expected = ("float8_e4m3fn", 320) if chip == "v7x" else ("bfloat16", 640)
    found = operands.query_dtype(problem, target), operands.score_lanes(problem, target)
    assert found == expected
    others = {"kv_dtype": "float8_e4m3fn"}, {}, {"q_dtype": "float32"}
    for fields in others:
        problem = dataclasses.replace(DEEPSEEK, **fields)
        assert operands.query_dtype(problem, target) == operands.matmul_dtype(problem)


def test_blocks_are_longest_with_many_heads_and_long_contexts_on_v7x():
    family = load_family("mla-decode")
    problem = dataclasses.replace(DEEPSEEK, kv_dtype="float8_e4m3fn", q_dtype="float8_e4m3fn")

    def block(chip, heads, pages):
        own = dataclasses.replace(problem, num_q_heads=heads, pages_per_seq=pages)
        return family.default_config(own, load_chips()[chip].target).bkv_sz

    assert [block("v7x", 128, 16), block("v7x", 128, 32)] == [4096, 8192]
    assert [block("v7x", 64, 16), block("v7x", 64, 32)] == [2048, 8192]
    assert block("v7x", 16, 32) == block("v6e", 128, 32) == block("v6e", 16, 16) == 2048


def test_queries_and_output_of_float8():
    problem = dataclasses.replace(DEEPSEEK, q_dtype="float8_e4m3fn", kv_dtype="float8_e4m3fn")
    assert problem.q_shape == (128, 1, 32, 4, 512)
    assert problem.resolved_out_dtype == "float8_e4m3fn"
    with pytest.raises(ValueError, match="q_dtype"):
        dataclasses.replace(problem, rope_dim=None, kv_packing=None)


def test_json_leaves_out_what_others_do_not_have():
    assert problem_from_dict(DEEPSEEK.to_dict()) == DEEPSEEK
    gqa = dataclasses.replace(DEEPSEEK, rope_dim=None, kv_packing=None)
    assert not {"rope_dim", "kv_packing"} & set(gqa.to_dict())
    assert problem_from_dict(gqa.to_dict()) == gqa


def test_one_layout_is_one_problem():
    usual = dataclasses.replace(DEEPSEEK, kv_packing=None)
    assert dataclasses.replace(DEEPSEEK, kv_packing=2) == usual
    assert usual.row_tokens == 2


def test_a_key_gives_its_problem_back():
    key = tuning_key(DEEPSEEK, "v7x", "mla-decode")
    again = representative(key)
    assert tuning_key(again, "v7x", "mla-decode") == key
    assert (again.rope_dim, again.row_tokens) == (64, 32)
    other = tuning_key(dataclasses.replace(DEEPSEEK, kv_packing=None), "v7x", "mla-decode")
    assert other != key
    assert "latents 512+64" in str(key)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"num_kv_heads": 2}, "num_kv_heads=2 must be 1"),
        ({"causal": False}, "causal=False must be True"),
        ({"update_kv_cache": False}, "update_kv_cache"),
        ({"has_sinks": True}, "has_sinks"),
        ({"return_lse": True}, "return_lse"),
        ({"attention_chunk_size": 64}, "attention_chunk_size"),
        ({"kv_layout": "seq_along_lane"}, "kv_layout"),
        ({"kv_dtype": "int8"}, "int8"),
        ({"out_dtype": "float32"}, "out_dtype"),
        ({"rope_dim": 0}, "rope_dim=0"),
        ({"rope_dim": 64.0}, "rope_dim"),
        ({"rope_dim": None}, "kv_packing=32 is a layout of latents"),
        ({"decode_query_size": 9}, "decode_query_size=9 must be at most 8"),
        ({"decode_query_size": 4, "has_tree_mask": True}, "has_tree_mask=True must be False"),
        ({"kv_packing": 8}, "kv_packing=8 must be 2, or a power of two from 16 on"),
        ({"kv_packing": 48}, "kv_packing=48"),
        ({"kv_packing": 64, "page_size": 32}, "page_size=32 must be a multiple of kv_packing=64"),
        ({"kv_packing": 0}, "kv_packing=0"),
        ({"page_size": 3}, "page_size=3"),
    ],
)
def test_what_latents_have_not_is_refused(changes, said):
    with pytest.raises(ValueError, match=said):
        dataclasses.replace(DEEPSEEK, **changes)


def test_numbers_that_float32_cannot_hold():
    check_finite("sm_scale", 0.1)
    with pytest.raises(ValueError, match="sm_scale=inf must be a finite number"):
        check_finite("sm_scale", float("inf"))


Q_BYTES, ROPE_BYTES, TOKEN_BYTES = 128 * 512 * 2, 128 * 128 * 2, 640 * 2


def test_decode_traffic_counted_by_hand():
    """Per token a latent and a rope row, in rows of 32; a new token's row comes in and goes out."""
    config = DecodeConfig(bkv_sz=512, bkv_csz=512, seqs_per_step=2, num_buffers=2, bq_sz=2)
    batch = Batch(q_lens=(1, 1, 1), kv_lens=(1, 1025, 1500), num_decode=3)
    rows = 1 + 33 + 47  # of 32 tokens: the new one is in the last
    new_rows, q_blocks, fetches = 2, 2, 1 + 3 + 3
    assert load_family("mla-decode").traffic(DEEPSEEK, config, batch) == Traffic(
        read_bytes=(rows + new_rows) * 32 * TOKEN_BYTES + 3 * (Q_BYTES + ROPE_BYTES),
        write_bytes=3 * 32 * TOKEN_BYTES + 3 * Q_BYTES,
        num_copies=fetches + 3 + 4 * q_blocks,
    )


def test_decode_traffic_of_a_few_tokens_counted_by_hand():
    problem = dataclasses.replace(DEEPSEEK, decode_query_size=4)
    config = DecodeConfig(bkv_sz=512, bkv_csz=512, seqs_per_step=2, num_buffers=2, bq_sz=2)
    batch = Batch(q_lens=(4, 4, 3), kv_lens=(4, 1026, 1500), num_decode=3)
    rows, new_rows, q_blocks, fetches = 1 + 33 + 47, 2, 2, 1 + 3 + 3
    written = 1 + 2 + 1  # the second's new tokens lie in the last row of a page and in the next
    assert load_family("mla-decode").traffic(problem, config, batch) == Traffic(
        read_bytes=(rows + new_rows) * 32 * TOKEN_BYTES + 11 * (Q_BYTES + ROPE_BYTES),
        write_bytes=written * 32 * TOKEN_BYTES + 11 * Q_BYTES,
        num_copies=fetches + written + 4 * q_blocks,
    )


def test_mixed_traffic_counted_by_hand():
    # 1000 cached and 100 new tokens: query blocks of 64 and 36. Only the last fetches rows of new
    # tokens from the cache, to write them whole.
    config = BlockwiseConfig(
        bq_sz=64, bq_csz=64, bkv_sz=2048, bkv_csz=512, num_buffers=2, mxu_sums=0
    )
    batch = Batch(q_lens=(1, 100), kv_lens=(1, 1100), num_decode=1)
    first, last = 32 + 3, 35 + 4  # rows from the cache, and of new tokens: 1 to 64, 1 to 100
    assert load_family("mla-mixed").traffic(DEEPSEEK, config, batch) == Traffic(
        read_bytes=(first + last) * 32 * TOKEN_BYTES + 100 * (Q_BYTES + ROPE_BYTES),
        write_bytes=(35 - 31) * 32 * TOKEN_BYTES + 100 * Q_BYTES,
        num_copies=2 * 3 + (1 + 1) + (2 + 1) + 4,
    )


def test_useful_work():
    batch = Batch(q_lens=(1, 2), kv_lens=(10, 20), num_decode=1)
    decode = load_family("mla-decode")
    row, q = 576 * 2, 128 * (2 * 512 + 64) * 2
    assert decode.useful_bytes(DEEPSEEK, batch) == 10 * row + row + q
    assert decode.useful_flops(DEEPSEEK, batch) == 10 * 2 * 128 * (576 + 512)
    assert load_family("mla-mixed").useful_flops(DEEPSEEK, batch) == 39 * 2 * 128 * (576 + 512)


@pytest.mark.parametrize("chip", sorted(load_chips()))
@pytest.mark.parametrize("name", LATENT_FAMILIES)
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"num_q_heads": 8, "kv_packing": None, "page_size": 64},
        {"num_q_heads": 64, "decode_query_size": 8},
        {"q_dtype": "float8_e4m3fn", "kv_dtype": "float8_e4m3fn"},
        {"num_q_heads": 32, "head_dim": 256, "sliding_window": 1024},
        {"num_q_heads": 16, "max_num_tokens": 4096, "page_size": 128, "pages_per_seq": 128},
        {"max_num_tokens": 16, "max_num_seqs": 8, "pages_per_seq": 1, "num_pages": 8},
    ],
)
def test_every_chip_has_a_default_in_reach_of_the_search(chip, name, changes):
    target, family = load_chips()[chip].target, load_family(name)
    problem = dataclasses.replace(DEEPSEEK, **changes)
    config = family.default_config(problem, target)
    if (chip, name, problem.num_q_heads) == ("v4", "mla-mixed", 128):
        # 16 tokens of 128 heads, in and out, are more than its VMEM.
        assert isinstance(config, Infeasible)
        assert config.limit == "vmem_bytes"
        assert config.hint == "with the smallest blocks; fewer query heads on a device need less"
        return
    assert not isinstance(config, Infeasible), str(config)
    assert family.check(problem, config, target) is None
    axes = family.search_axes(problem, target)
    assert config.bkv_sz in axes["bkv_sz"]
    assert config.bkv_csz in axes["bkv_csz"]
    assert config.bq_sz in axes["bq_sz"]
