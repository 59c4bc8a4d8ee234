"""The decode family's space: what is refused, and what the default falls back to."""

import dataclasses

import pytest
from pure.kernels.defaults import check_that_it_gives_up_last, configs

from rpa_kernels.decode import fits, space
from rpa_kernels.decode.account import buffers, scratch_bytes
from rpa_kernels.decode.config import DecodeConfig
from rpa_kernels.problem import Problem
from rpa_tune.hw.chip import load_chip

V6E = load_chip("v6e").target
LLAMA = Problem(
    num_q_heads=32, num_kv_heads=8, head_dim=128, page_size=128, max_num_tokens=256,
    max_num_seqs=128, pages_per_seq=64, num_pages=2048,
)  # fmt: skip


@pytest.mark.parametrize("page_size", [48, 2048])
def test_a_config_is_refused_exactly_where_it_breaks_a_rule(page_size):
    problem = dataclasses.replace(LLAMA, page_size=page_size, pages_per_seq=8192 // page_size)
    target = dataclasses.replace(V6E, vmem_bytes=16 << 20)
    refused = {}
    for config in configs(space, DecodeConfig, problem, target):
        rules = {
            "bkv_sz % page_size": config.bkv_sz % page_size == 0 or page_size % config.bkv_sz == 0,
            "bkv_sz % bkv_csz": config.bkv_sz % config.bkv_csz == 0,
            "bkv_csz % 128": config.bkv_csz % 128 == 0 or config.bkv_csz == config.bkv_sz,
            "bq_sz >= seqs_per_step": config.bq_sz >= config.seqs_per_step,
            "vmem_bytes": scratch_bytes(problem, config, target) <= 0.85 * (16 << 20),
        }
        bad = fits.check(problem, config, target)
        assert (bad.limit if bad else None) == next((r for r, ok in rules.items() if not ok), None)
        refused[bad.limit if bad else None] = refused.get(bad.limit if bad else None, 0) + 1
    assert {None, "bkv_sz % bkv_csz", "vmem_bytes"} <= set(refused)


@pytest.mark.parametrize(
    "field", [f.name for f in dataclasses.fields(DecodeConfig) if f.default is dataclasses.MISSING]
)
def test_no_field_may_be_zero_and_one_buffer_is_none(field):
    config = space.default_config(LLAMA, V6E)
    least = 2 if field == "num_buffers" else 1
    bad = fits.check(LLAMA, dataclasses.replace(config, **{field: least - 1}), V6E)
    assert (bad.limit, bad.hint) == (field, "must be positive")


WIDE = {"num_kv_heads": 32, "head_dim": 256}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"page_size": 16, "pages_per_seq": 512},
        {"page_size": 2048, "pages_per_seq": 4},
        WIDE,
    ],
    ids=["usual", "small_pages", "large_pages", "wide"],
)
def test_the_default_gives_up_only_where_nothing_on_the_axes_fits(changes):
    problem = dataclasses.replace(LLAMA, **changes)
    check_that_it_gives_up_last(space, DecodeConfig, problem, V6E, 18)


ONE_HEAD = {"num_q_heads": 8, "num_kv_heads": 1}
ALONG_LANES = {**ONE_HEAD, "kv_dtype": "float8_e4m3fn", "kv_layout": "seq_along_lane"}
LATENT = {**ONE_HEAD, "head_dim": 512, "rope_dim": 64}


@pytest.mark.parametrize(
    ("changes", "chip", "choices", "default"),
    [
        (ONE_HEAD, "v7x", (0, 1), 1),
        ({"num_q_heads": 9, "num_kv_heads": 3}, "v7x", (0, 1), 1),
        (ALONG_LANES, "v7x", (0, 1), 0),
        ({}, "v7x", (0,), 0),  # an even number of words has a gap whatever the config says
        (LATENT, "v7x", (0,), 0),
        (ONE_HEAD, "v6e", (0,), 0),
    ],
)
def test_strided_copies_are_a_choice_where_they_may_be_quicker(changes, chip, choices, default):
    problem, target = dataclasses.replace(LLAMA, **changes), load_chip(chip).target
    assert space.search_axes(problem, target)["strided_copies"] == choices
    assert space.default_config(problem, target).strided_copies == default


def test_strided_copies_are_a_switch_that_latents_do_not_have():
    default = space.default_config(LLAMA, V6E)
    bad = fits.check(LLAMA, dataclasses.replace(default, strided_copies=2), V6E)
    assert (bad.limit, bad.hint) == ("strided_copies", "must be 0 or 1")
    latent = dataclasses.replace(LLAMA, **LATENT)
    config = dataclasses.replace(space.default_config(latent, V6E), strided_copies=1)
    assert fits.check(latent, config, V6E).limit == "strided_copies"
    lanes = dataclasses.replace(LLAMA, **ALONG_LANES)
    config = dataclasses.replace(space.default_config(lanes, V6E), strided_copies=1)
    assert fits.check(lanes, config, V6E) is None


@pytest.mark.parametrize(("heads", "words", "more"), [(1, 1, 2), (3, 3, 2), (8, 9, 0)])
def test_a_gap_takes_vmem_where_copies_are_strided_by_it_alone(heads, words, more):
    problem = dataclasses.replace(LLAMA, num_q_heads=24, num_kv_heads=heads)
    config = dataclasses.replace(space.default_config(problem, V6E), strided_copies=0)
    strided = dataclasses.replace(config, strided_copies=1)
    shapes = [buffers(problem, c, V6E)["kv"][0] for c in (config, strided)]
    assert [shape[2] for shape in shapes] == [words, words + more]


@pytest.mark.parametrize(
    ("chip", "changes", "steps"),
    [
        # A copy has a price: two blocks of 2048 tokens, less where they are more than 4 MiB.
        ("v6e", {"num_q_heads": 8, "num_kv_heads": 1}, (2048, 2048, 2)),
        ("v5e", {"num_q_heads": 8, "num_kv_heads": 2}, (2048, 1024, 2)),
        ("v6e", {"num_q_heads": 32, "num_kv_heads": 1}, (2048, 1024, 2)),  # more rows, fewer keys
        ("v6e", {"num_kv_heads": 4}, (2048, 512, 1)),
        ("v6e", {"num_kv_heads": 8, "page_size": 16, "pages_per_seq": 512}, (1024, 512, 1)),
        ("v6e", {"num_kv_heads": 16}, (512, 512, 1)),
        ("v6e", WIDE, (256, 256, 2)),
        ("v6e", {"num_kv_heads": 1, "pages_per_seq": 8}, (1024, 1024, 2)),  # the longest context
        # A window is not shorter than a block.
        ("v6e", {"num_q_heads": 8, "num_kv_heads": 1, "sliding_window": 1024}, (1024, 1024, 2)),
        ("v6e", {"num_q_heads": 8, "num_kv_heads": 1, "sliding_window": 500}, (512, 512, 4)),
        ("v6e", {"num_kv_heads": 4, "attention_chunk_size": 256}, (256, 256, 4)),
        # None to speak of: 512 tokens, 2 MiB.
        ("v7x", {"num_kv_heads": 1}, (512, 512, 8)),
        # Of small pages a block is many copies.
        ("v7x", {"num_kv_heads": 1, "page_size": 64, "head_dim": 64}, (512, 512, 8)),
        ("v7x", {"num_kv_heads": 2, "page_size": 64}, (512, 512, 4)),
        ("v7x", {"num_kv_heads": 2}, (512, 512, 4)),
        ("v7x", {"num_kv_heads": 8}, (512, 512, 1)),
        ("v7x", {"num_kv_heads": 16}, (256, 256, 2)),
        # A window is a few blocks: eight sequences, 4 Mi elements, blocks of an eighth at most.
        ("v7x", {"num_kv_heads": 2, "sliding_window": 1024}, (512, 512, 8)),
        ("v7x", {"num_kv_heads": 8, "sliding_window": 1024}, (256, 256, 8)),
        (
            "v7x",
            {"num_kv_heads": 8, "sliding_window": 1024, "kv_dtype": "float8_e4m3fn"},
            (256, 256, 8),
        ),
        ("v7x", {"num_kv_heads": 16, "attention_chunk_size": 2048}, (256, 256, 4)),
        ("v7x", {"num_kv_heads": 16, "sliding_window": 2049}, (256, 256, 2)),  # many blocks
        ("v7x", {"num_kv_heads": 8, "head_dim": 64, "sliding_window": 128}, (256, 256, 8)),
        ("v7x", {"num_kv_heads": 4, "head_dim": 64, "sliding_window": 128}, (256, 256, 8)),
        ("v7x", {"num_kv_heads": 1, "head_dim": 64, "sliding_window": 128}, (512, 512, 8)),
    ],
)
def test_default_steps(chip, changes, steps):
    target = load_chip(chip).target
    config = space.default_config(dataclasses.replace(LLAMA, **changes), target)
    assert (config.bkv_sz, config.bkv_csz, config.seqs_per_step) == steps
    assert config.num_buffers == 4


def test_long_blocks_of_small_pages_have_three_buffers():
    problem = dataclasses.replace(LLAMA, num_q_heads=8, num_kv_heads=1, page_size=64)
    config = space.default_config(problem, load_chip("v7x").target)
    assert (config.bkv_sz, config.bkv_csz, config.seqs_per_step) == (2048, 2048, 4)
    assert (config.num_buffers, config.strided_copies) == (3, 1)
