"""Accounts, checks and default configs of the kernel families. No jax."""

import dataclasses
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rpa_kernels import layout, load_family
from rpa_kernels.batch import Batch
from rpa_kernels.blockwise import account
from rpa_kernels.blockwise.chains import SHORT_SCORES, all_chains
from rpa_kernels.blockwise.config import BlockwiseConfig
from rpa_kernels.decode.config import DecodeConfig
from rpa_kernels.decode.heads import keeps_words
from rpa_kernels.family import Traffic
from rpa_kernels.infeasible import Infeasible
from rpa_kernels.problem import Problem
from rpa_kernels.slots import SLOTS
from rpa_tune.hw.chip import load_chips

LLAMA = Problem(
    num_q_heads=32, num_kv_heads=8, head_dim=128, page_size=128, max_num_tokens=2048,
    max_num_seqs=128, pages_per_seq=64, num_pages=2048,
)  # fmt: skip
TOKEN_BYTES = 2 * 8 * 128 * 2  # K and V of 8 heads in bfloat16
Q_BYTES = 32 * 128 * 2
DECODE = DecodeConfig(bkv_sz=256, bkv_csz=128, seqs_per_step=2, num_buffers=2, bq_sz=2)
BLOCKS = BlockwiseConfig(bq_sz=128, bq_csz=64, bkv_sz=256, bkv_csz=128, num_buffers=2, mxu_sums=0)
V6E = load_chips()["v6e"].target


def test_decode_traffic_counted_by_hand():
    # One token of context is all new: no cached page is read.
    batch = Batch(q_lens=(1, 1, 1), kv_lens=(1, 129, 300), num_decode=3)
    cached_tokens, cached_pages, q_blocks = 0 + 128 + 299, 0 + 1 + 3, 2
    assert load_family("decode").traffic(LLAMA, DECODE, batch) == Traffic(
        read_bytes=(cached_tokens + 3) * TOKEN_BYTES + 3 * Q_BYTES,
        write_bytes=3 * TOKEN_BYTES + 3 * Q_BYTES,
        num_copies=cached_pages + 3 + 3 * q_blocks,
    )


def test_decode_traffic_of_a_few_tokens_counted_by_hand():
    # 4 + 2 + 3 new tokens. The second context ends with one of them in a page of its own, and the
    # page before is no neighbour; the third's new tokens are a whole KV block's last and next.
    problem = dataclasses.replace(LLAMA, decode_query_size=4)
    table = ((0,), (9, 3), (20, 22, 24))
    batch = Batch(q_lens=(4, 2, 3), kv_lens=(4, 129, 258), num_decode=3, page_table=table)
    cached_tokens, cached_pages, q_blocks = 0 + 127 + 255, 0 + 1 + 2, 2
    assert load_family("decode").traffic(problem, DECODE, batch) == Traffic(
        read_bytes=(cached_tokens + 9) * TOKEN_BYTES + 9 * Q_BYTES,
        write_bytes=9 * TOKEN_BYTES + 9 * Q_BYTES,
        num_copies=cached_pages + (1 + 2 + 2) + 3 * q_blocks,
    )
    assert load_family("decode").num_steps(problem, DECODE, batch) == 2


def test_mixed_traffic_counted_by_hand():
    # 100 cached and 150 new tokens: query blocks of 128 and 22 see 228 and 250 keys.
    batch = Batch(q_lens=(1, 150), kv_lens=(1, 250), num_decode=1)
    # First block: 1 page and the new tokens in, 2 pages back; second: the same in, 1 page back.
    copies = (1 + 1 + 2) + (1 + 1 + 1) + 2 * 2
    assert load_family("mixed").traffic(LLAMA, BLOCKS, batch) == Traffic(
        read_bytes=(228 + 250) * TOKEN_BYTES + 150 * Q_BYTES,
        write_bytes=150 * TOKEN_BYTES + 150 * Q_BYTES,
        num_copies=copies,
    )


def test_a_window_leaves_pages_out():
    windowed = dataclasses.replace(LLAMA, sliding_window=100)
    batch = Batch(q_lens=(1,), kv_lens=(1000,), num_decode=1)
    family = load_family("decode")
    read = family.traffic(windowed, DECODE, batch).read_bytes
    # Position 900 is in page 7, which begins at 896.
    assert read == (999 - 896 + 1) * TOKEN_BYTES + Q_BYTES
    assert family.num_steps(windowed, DECODE, batch) == 1


def test_pages_of_other_chunks_are_not_fetched():
    chunked = dataclasses.replace(LLAMA, attention_chunk_size=512)
    decode, mixed = load_family("decode"), load_family("mixed")
    # The newest token alone in its chunk; the last of one; one in the middle.
    for kv_len, cached in ((1025, 0), (1024, 511), (1000, 487)):
        batch = Batch(q_lens=(1,), kv_lens=(kv_len,), num_decode=1)
        read = decode.traffic(chunked, DECODE, batch).read_bytes
        assert read == (cached + 1) * TOKEN_BYTES + Q_BYTES
        assert decode.useful_flops(chunked, batch) == (cached + 1) * 4 * 32 * 128
    # 64 queries before an edge and 64 behind it, in one query block, then a block behind it.
    batch = Batch(q_lens=(192,), kv_lens=(1152,), num_decode=0)
    account = mixed.traffic(chunked, BLOCKS, batch)
    first, second = 1088 - 512, 1152 - 1024
    assert account.read_bytes == (first + second) * TOKEN_BYTES + 192 * Q_BYTES
    whole = mixed.mxu_flops(LLAMA, BLOCKS, batch, V6E)
    # The second compute block of queries needs only keys from 1024 on: a twelfth of the pairs.
    assert mixed.mxu_flops(chunked, BLOCKS, batch, V6E) < whole / 3


def test_a_log_sum_exp_is_one_more_copy_of_each_block_of_queries():
    with_lse = dataclasses.replace(LLAMA, return_lse=True)
    # Two rows of 128 lanes a token: 16 of them hold 2 query heads each.
    assert with_lse.lse_shape == (2048, 2, 1, 128)
    for name, config, num_blocks in (("decode", DECODE, 2), ("mixed", BLOCKS, 3)):
        family = load_family(name)
        q_lens = (1, 1, 1) if name == "decode" else (129, 1)
        batch = Batch(
            q_lens=q_lens, kv_lens=(300,) * len(q_lens), num_decode=3 * (name == "decode")
        )
        plain, more = (family.traffic(p, config, batch) for p in (LLAMA, with_lse))
        assert more.write_bytes - plain.write_bytes == sum(q_lens) * 2 * 128 * 4
        assert more.num_copies - plain.num_copies == num_blocks
        assert more.read_bytes == plain.read_bytes
        useful = [family.useful_bytes(p, batch) for p in (LLAMA, with_lse)]
        assert useful[1] - useful[0] == sum(q_lens) * 32 * 4


def test_an_empty_part_of_a_context_is_a_step_and_moves_queries_only():
    part = dataclasses.replace(LLAMA, return_lse=True, causal=False, update_kv_cache=False)
    batch = Batch(q_lens=(1, 1), kv_lens=(0, 0), num_decode=2, cache_only=True)
    queries = Traffic(
        read_bytes=2 * Q_BYTES, write_bytes=2 * (Q_BYTES + part.lse_token_bytes), num_copies=3
    )
    decode, mixed = load_family("decode"), load_family("mixed")
    assert decode.traffic(part, DECODE, batch) == queries
    assert (decode.num_steps(part, DECODE, batch), decode.mxu_flops(part, DECODE, batch, V6E)) == (
        1, 0,
    )  # fmt: skip
    batch = dataclasses.replace(batch, num_decode=0)
    assert mixed.traffic(part, BLOCKS, batch) == dataclasses.replace(queries, num_copies=6)
    assert (mixed.num_steps(part, BLOCKS, batch), mixed.mxu_flops(part, BLOCKS, batch, V6E)) == (
        2, 0,
    )  # fmt: skip
    assert "queries are part of contexts" in batch.misfit(LLAMA)
    with pytest.raises(ValueError, match="q_len >= 1 and kv_len >= 0"):
        Batch(q_lens=(1,), kv_lens=(-1,), num_decode=1, cache_only=True)


def test_sequences_of_other_families_cost_nothing():
    batch = Batch(q_lens=(1, 64, 64, 5), kv_lens=(9, 64, 70, 8), num_decode=1, num_prefill=2)
    whole = [load_family(f) for f in SLOTS]
    configs = [DECODE if f.name == "decode" else BLOCKS for f in whole]
    q_rows = [sum(batch.q_lens[i] for i in batch.family_seqs(f.name)) * Q_BYTES for f in whole]
    for family, config, rows in zip(whole, configs, q_rows, strict=True):
        seqs = batch.family_seqs(family.name)
        written = sum(batch.q_lens[i] for i in seqs)
        assert family.traffic(LLAMA, config, batch).write_bytes == rows + written * TOKEN_BYTES
    empty = Batch(q_lens=(), kv_lens=(), num_decode=0)
    for family, config in zip(whole, configs, strict=True):
        assert family.traffic(LLAMA, config, empty).total_bytes == 0
        assert family.num_steps(LLAMA, config, empty) == 0
        assert family.mxu_flops(LLAMA, config, empty, V6E) == 0


def test_words_of_two_heads_are_multiplied_as_they_lie():
    narrow_heads = dataclasses.replace(LLAMA, head_dim=64)
    assert keeps_words(narrow_heads)
    assert not keeps_words(LLAMA)  # a word holds K and V of one head
    assert not keeps_words(dataclasses.replace(narrow_heads, kv_dtype="float8_e4m3fn"))
    batch = Batch(q_lens=(1,), kv_lens=(128,), num_decode=1)
    rows = {p.head_dim: load_family("decode").mxu_flops(p, DECODE, batch, V6E)
            for p in (LLAMA, narrow_heads)}  # fmt: skip
    assert rows[64] == 2 * rows[128]  # the other head's rows; as many lanes


def test_only_mixed_has_paths_for_few_queries():
    flops = {}
    config = dataclasses.replace(BLOCKS, bkv_csz=BLOCKS.bkv_sz)
    for name, q_len in (("prefill", 4), ("mixed", 4), ("mixed", 5), ("mixed", 16), ("mixed", 17)):
        batch = Batch(
            q_lens=(q_len,), kv_lens=(256,), num_decode=0, num_prefill=int(name == "prefill")
        )
        flops[name, q_len] = load_family(name).mxu_flops(LLAMA, config, batch, V6E)
    # A compute block of 64 tokens, or 4, 8 or 16 of them; two products with keys of 128 lanes.
    whole = flops["prefill", 4]
    assert whole == 2 * 2 * 64 * config.bkv_sz * 32 * 128
    assert [flops["mixed", n] for n in (4, 5, 16, 17)] == [
        whole // 16,
        whole // 8,
        whole // 4,
        whole,
    ]


def test_few_queries_look_at_more_keys():
    whole, *short = all_chains("mixed", LLAMA, BLOCKS, V6E)
    assert [chains.tokens for chains in short] == [16, 8, 4]
    for chains in short:
        assert chains.keys % whole.keys == 0
        assert BLOCKS.bkv_sz % chains.keys == 0
        assert chains.keys == whole.keys or chains.rows * chains.keys <= SHORT_SCORES
    # One query head takes one word of a token: only eight tokens fill a tile.
    narrow = dataclasses.replace(LLAMA, num_q_heads=LLAMA.num_kv_heads)
    assert [chains.tokens for chains in all_chains("mixed", narrow, BLOCKS, V6E)[1:]] == [16, 8]


def test_edges_of_half_a_compute_block_where_mxus_are_wide_and_passes_long():
    config = BlockwiseConfig(
        bq_sz=128, bq_csz=128, bkv_sz=1024, bkv_csz=512, num_buffers=2, mxu_sums=0
    )
    # The first 128 queries of a prompt see the first quarter of a KV compute block.
    batch = Batch(q_lens=(128,), kv_lens=(128,), num_decode=0)
    narrow = dataclasses.replace(V6E, mxu_size=128)
    flops = [load_family("mixed").mxu_flops(LLAMA, config, batch, t) for t in (V6E, narrow)]
    assert flops == [4 * 128 * keys * 32 * 128 for keys in (256, 512)]
    few_heads = dataclasses.replace(LLAMA, num_q_heads=8, num_kv_heads=2)
    short_passes = dataclasses.replace(config, bq_csz=64)
    for problem, blocks in ((few_heads, config), (LLAMA, short_passes)):
        whole, *_ = all_chains("mixed", problem, blocks, V6E)
        assert whole.num_edges == 1


def test_a_third_buffer_where_it_fits_and_no_window_is():
    family, target = load_family("mixed"), load_chips()["v7x"].target
    few_heads = dataclasses.replace(LLAMA, num_q_heads=8, num_kv_heads=1)
    for problem, num_buffers in (
        (few_heads, 3),
        (dataclasses.replace(few_heads, sliding_window=1024), 2),
    ):
        assert family.default_config(problem, target).num_buffers == num_buffers
    # All of a small VMEM goes into longer blocks first.
    config = family.default_config(LLAMA, target)
    third = dataclasses.replace(config, num_buffers=3)
    assert (config.num_buffers == 3) == (family.check(LLAMA, third, target) is None)


@pytest.mark.parametrize("chip", ["v4", "v6e"])
def test_float8_is_kept_where_the_mxu_takes_it(chip):
    target = load_chips()[chip].target
    problem = dataclasses.replace(LLAMA, kv_dtype="float8_e4m3fn")
    unpacked = account.buffers(problem, BLOCKS, target)["k"][1]
    assert unpacked == ("float8_e4m3fn" if target.has_fp8_mxu else "bfloat16")
    wide = dataclasses.replace(problem, q_dtype="float32")
    assert account.buffers(wide, BLOCKS, target)["k"][1] == "float32"


lengths = st.integers(1, 4096)


@settings(max_examples=60, derandomize=True, deadline=None)
@given(
    kv_lens=st.lists(lengths, min_size=1, max_size=12),
    q_len=st.integers(1, 300),
    reach=st.sampled_from(
        [{}, *({"sliding_window": n} for n in (1, 100, 1000)),
         *({"attention_chunk_size": n} for n in (1, 100, 1024))]
    ),
    causal=st.booleans(),
)  # fmt: skip
def test_kernels_do_at_least_what_is_useful(kv_lens, q_len, reach, causal):
    causal = causal or "attention_chunk_size" in reach
    problem = dataclasses.replace(LLAMA, causal=causal, max_num_tokens=4096, **reach)
    q_lens = tuple(min(q_len, kv) for kv in kv_lens)
    batches = {
        "decode": Batch(
            q_lens=(1,) * len(kv_lens), kv_lens=tuple(kv_lens), num_decode=len(kv_lens)
        ),
        "mixed": Batch(q_lens=q_lens, kv_lens=tuple(kv_lens), num_decode=0),
    }
    for name, batch in batches.items():
        family, config = load_family(name), DECODE if name == "decode" else BLOCKS
        traffic = family.traffic(problem, config, batch)
        useful = family.useful_flops(problem, batch)
        if causal:  # a query of a decode batch is its sequence's last key, so causal or not is one
            assert family.mxu_flops(problem, config, batch, V6E) >= useful
        assert traffic.total_bytes >= family.useful_bytes(problem, batch)
        assert family.num_steps(problem, config, batch) >= 1


@pytest.mark.parametrize("chip", sorted(load_chips()))
@pytest.mark.parametrize("name", SLOTS)
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"num_q_heads": 8, "num_kv_heads": 1},
        {"head_dim": 64, "num_q_heads": 64, "kv_dtype": "float8_e4m3fn"},
        {"head_dim": 256, "num_q_heads": 16, "num_kv_heads": 16, "sliding_window": 1024},
        {"page_size": 16, "pages_per_seq": 512},
        {"page_size": 256, "pages_per_seq": 32},
        {"page_size": 2048, "pages_per_seq": 4, "num_pages": 64},
        {"num_q_heads": 5, "num_kv_heads": 1, "attention_chunk_size": 8192, "pages_per_seq": 1024},
        {"page_size": 48, "pages_per_seq": 170},
        {"max_num_tokens": 8, "max_num_seqs": 8, "pages_per_seq": 1},
    ],
)
def test_default_config_exists_and_is_in_reach_of_the_search(chip, name, changes):
    target, family = load_chips()[chip].target, load_family(name)
    problem = dataclasses.replace(LLAMA, **changes)
    config = family.default_config(problem, target)
    assert not isinstance(config, Infeasible), str(config)
    assert family.check(problem, config, target) is None
    assert family.config_from_dict(family.config_to_dict(config)) == config
    axes = family.search_axes(problem, target)
    assert set(axes) == set(family.config_type.__dataclass_fields__)
    for values in axes.values():
        assert list(values) == sorted(set(values))
        assert values
    assert config.bkv_sz in axes["bkv_sz"]


@pytest.mark.parametrize(
    ("config", "limit"),
    [
        (dataclasses.replace(DECODE, bkv_sz=100), "bkv_sz % page_size"),
        (dataclasses.replace(DECODE, bkv_csz=96), "bkv_sz % bkv_csz"),
        (dataclasses.replace(DECODE, bkv_csz=64), "bkv_csz % 128"),
        (dataclasses.replace(DECODE, seqs_per_step=4), "bq_sz >= seqs_per_step"),
        (dataclasses.replace(DECODE, num_buffers=1), "num_buffers"),
        (dataclasses.replace(DECODE, bkv_sz=1 << 14, bkv_csz=1 << 14), "vmem_bytes"),
        (dataclasses.replace(BLOCKS, bq_csz=48), "bq_sz % bq_csz"),
        (dataclasses.replace(BLOCKS, mxu_sums=2), "mxu_sums"),
    ],
)
def test_check_names_the_limit(config, limit):
    name = "decode" if isinstance(config, DecodeConfig) else "mixed"
    blocked = load_family(name).check(LLAMA, config, V6E)
    assert blocked is not None
    assert blocked.limit == limit


def test_a_page_table_beyond_smem_is_infeasible():
    long = dataclasses.replace(LLAMA, page_size=16, pages_per_seq=1 << 16, num_pages=1 << 17)
    for name in SLOTS:
        blocked = load_family(name).default_config(long, V6E)
        assert isinstance(blocked, Infeasible)
        assert blocked.limit == "smem_bytes"
    # A million tokens fit with large pages and few sequences.
    million = dataclasses.replace(
        LLAMA, page_size=256, pages_per_seq=4096, num_pages=1 << 15, max_num_seqs=16
    )
    assert not isinstance(load_family("decode").default_config(million, V6E), Infeasible)


def test_tiled_bytes():
    assert layout.tiled_bytes((3, 8, 128), "float32") == 3 * 4096
    assert layout.tiled_bytes((3, 9, 100), "float32") == 3 * 2 * 4096
    assert layout.tiled_bytes((5, 2, 128), "bfloat16") == 5 * 512
    assert layout.tiled_bytes((4, 1, 128), "float32") == 4 * 512
    assert layout.tiled_bytes((1, 4, 256), "int8") == 1024


def test_fused_layout_is_half_the_padded_one():
    def token_bytes(head_dim):
        return dataclasses.replace(LLAMA, head_dim=head_dim).kv_token_bytes

    assert token_bytes(64) * 2 == token_bytes(96) == token_bytes(128)


def test_accounts_import_no_jax():
    code = (
        "import sys; from rpa_kernels import FAMILIES, load_family\n"
        "for name in FAMILIES: load_family(name)\n"
        "assert 'jax' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_default_blocks_follow_the_mxu_the_window_and_the_cores():
    """The rules of thumb that `default_config` states, where memory is no limit."""
    default = load_family("mixed").default_config
    assert (V6E.mxu_size, V6E.num_cores) == (256, 1)
    v5 = dataclasses.replace(V6E, mxu_size=128)
    assert default(LLAMA, V6E).bkv_csz == 2 * default(LLAMA, v5).bkv_csz == 512
    # 4096 query rows of 8 KV heads with 4 query heads each are one pass; half of them where chunks
    # may be short, and on small MXUs.
    assert default(LLAMA, V6E).bq_csz == 128
    assert default(dataclasses.replace(LLAMA, max_num_tokens=1024), V6E).bq_csz == 64
    assert default(LLAMA, v5).bq_csz == 64
    assert (
        default(LLAMA, V6E).bq_sz == 2 * default(LLAMA, dataclasses.replace(V6E, num_cores=2)).bq_sz
    )
    for window, blocks in ((128, (1024, 256)), (1024, (1280, 256)), (4096, (1536, 512))):
        config = default(dataclasses.replace(LLAMA, sliding_window=window), V6E)
        assert (config.bkv_sz, config.bkv_csz) == blocks
    # Few heads: latency costs more than the edges of a window, but for a narrow one.
    few = dataclasses.replace(LLAMA, num_q_heads=4, num_kv_heads=2)
    for window, blocks in ((128, (1024, 256)), (1024, (1536, 512))):
        config = default(dataclasses.replace(few, sliding_window=window), V6E)
        assert (config.bkv_sz, config.bkv_csz) == blocks


def test_default_blocks_of_long_chunks_of_wide_heads():
    """Query blocks of 512 and passes of 4096 rows on v7x; only they take more than 75 % of VMEM."""
    family, target = load_family("mixed"), load_chips()["v7x"].target
    long = {"max_num_seqs": 1, "pages_per_seq": 272}
    wide = dataclasses.replace(LLAMA, num_q_heads=16, head_dim=256, **long)
    usual = dataclasses.replace(LLAMA, **long)
    config = family.default_config(wide, target)
    assert (config.bq_sz, config.bq_csz, config.bkv_sz) == (512, 256, 512)

    def share(problem):
        blocks = family.default_config(problem, target)
        return family.scratch_bytes(problem, blocks, target) / target.vmem_bytes

    assert share(usual) <= 0.75 < share(wide) <= 0.85


LANES = dataclasses.replace(
    LLAMA, num_kv_heads=1, num_q_heads=12, kv_dtype="float8_e4m3fn", kv_layout="seq_along_lane"
)
LANE_TILE = 128 * 2 * 128  # K and V of 128 tokens


def test_decode_traffic_along_lanes_counted_by_hand():
    """Whole pages come, with the place of the new token, and a lane tile a sequence goes."""
    batch = Batch(q_lens=(1, 1, 1), kv_lens=(1, 129, 300), num_decode=3)
    pages, q_blocks, q_bytes = 1 + 2 + 3, 2, 12 * 128 * 2
    assert load_family("decode").traffic(LANES, DECODE, batch) == Traffic(
        read_bytes=(pages + q_blocks) * LANE_TILE + 3 * q_bytes,
        write_bytes=3 * LANE_TILE + 3 * q_bytes,
        num_copies=pages + 3 + 3 * q_blocks,
    )


def test_mixed_traffic_along_lanes_counted_by_hand():
    # 100 cached and 150 new tokens: query blocks of 128 and 22 see 228 and 250 keys.
    batch = Batch(q_lens=(1, 150), kv_lens=(1, 250), num_decode=1)
    # The first fetches the page that has cached tokens, the last one all pages, and writes them;
    # new tokens 1 to 128 and 1 to 150 are in two tiles.
    pages, new, written, q_bytes = 1 + 2, 2 + 2, 2, 12 * 128 * 2
    assert load_family("mixed").traffic(LANES, BLOCKS, batch) == Traffic(
        read_bytes=(pages + new) * LANE_TILE + 150 * q_bytes,
        write_bytes=written * LANE_TILE + 150 * q_bytes,
        num_copies=pages + 2 + written + 2 * 2,
    )


@pytest.mark.parametrize(("changes", "message"), [
    ({"page_size": 64}, "page_size=64 must be a multiple of 128 tokens with kv_layout"),
    ({"kv_dtype": "int8"}, "kv_dtype=int8 is not one of .* with kv_layout=seq_along_lane"),
    ({"kv_layout": "lanes"}, "kv_layout='lanes' is not one of"),
])  # fmt: skip
def test_what_the_layout_along_lanes_does_not_take(changes, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(LANES, **changes)


@pytest.mark.parametrize("family", SLOTS)
def test_blocks_along_lanes_are_whole_lane_tiles(family):
    """Every chip has a default, and a block of part of a tile is refused."""
    kernel = load_family(family)
    for chip in load_chips().values():
        default = kernel.default_config(LANES, chip.target)
        assert kernel.check(LANES, default, chip.target) is None
        small = dataclasses.replace(default, bkv_sz=64, bkv_csz=64)
        bad = kernel.check(LANES, small, chip.target)
        assert isinstance(bad, Infeasible)
        assert "128" in bad.hint
