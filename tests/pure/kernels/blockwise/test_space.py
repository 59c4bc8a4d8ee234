"""The space of the blockwise families: what is refused, and what the default falls back to."""

import dataclasses

import pytest
from pure.kernels.defaults import check_that_it_gives_up_last, configs

from rpa_kernels.blockwise import fits, space
from rpa_kernels.blockwise.account import scratch_bytes
from rpa_kernels.blockwise.config import BlockwiseConfig
from rpa_kernels.problem import Problem
from rpa_tune.hw.chip import load_chip

V6E = load_chip("v6e").target
LLAMA = Problem(
    num_q_heads=32, num_kv_heads=8, head_dim=128, page_size=128, max_num_tokens=2048,
    max_num_seqs=128, pages_per_seq=64, num_pages=2048,
)  # fmt: skip
SMALL = dataclasses.replace(V6E, vmem_bytes=16 << 20)


@pytest.mark.parametrize("page_size", [48])
def test_a_config_is_refused_exactly_where_it_breaks_a_rule(page_size):
    problem = dataclasses.replace(LLAMA, page_size=page_size, pages_per_seq=8192 // page_size)
    refused = set()
    for config in configs(space, BlockwiseConfig, problem, SMALL)[::3]:
        rules = {
            "bkv_sz % page_size": config.bkv_sz % page_size == 0 or page_size % config.bkv_sz == 0,
            "bkv_sz % bkv_csz": config.bkv_sz % config.bkv_csz == 0,
            "bkv_csz % 128": config.bkv_csz % 128 == 0 or config.bkv_csz == config.bkv_sz,
            "bq_sz % bq_csz": config.bq_sz % config.bq_csz == 0,
            "vmem_bytes": scratch_bytes(problem, config, SMALL) <= 0.85 * SMALL.vmem_bytes,
        }
        bad = fits.check(problem, config, SMALL)
        refused.add(bad.limit if bad else None)
        assert (bad.limit if bad else None) == next((r for r, ok in rules.items() if not ok), None)
    assert {None, "bkv_sz % bkv_csz", "bq_sz % bq_csz", "vmem_bytes"} <= refused


@pytest.mark.parametrize(
    ("changes", "limit", "hint"),
    [
        ({"bq_sz": 0}, "bq_sz", "must be positive"),
        ({"num_buffers": 1}, "num_buffers", "must be positive"),
        ({"bq_csz": 8}, "bq_sz % bq_csz", "a power of two from 16 that divides bq_sz"),
        ({"bq_sz": 96, "bq_csz": 48}, "bq_sz % bq_csz", "a power of two from 16"),
        ({"bq_sz": 64, "bq_csz": 128}, "bq_sz % bq_csz", "that divides bq_sz"),
        ({"mxu_sums": -1}, "mxu_sums", "must be 0 or 1"),
    ],
)
def test_values_off_the_axes_are_refused_with_a_hint(changes, limit, hint):
    config = space.default_config(LLAMA, V6E)
    bad = fits.check(LLAMA, dataclasses.replace(config, **changes), V6E)
    assert bad.limit == limit
    assert hint in bad.hint


@pytest.mark.parametrize(
    ("chip", "head_dim", "choices"),
    # A column of ones is free where K's lanes are, or where an MXU is twice as wide as V.
    [("v6e", 128, (0, 1)), ("v5e", 128, (0,)), ("v5e", 64, (0, 1)), ("v6e", 256, (0,))],
)
def test_sums_from_the_mxu_are_tried_only_where_they_are_free(chip, head_dim, choices):
    problem, target = dataclasses.replace(LLAMA, head_dim=head_dim), load_chip(chip).target
    assert space.search_axes(problem, target)["mxu_sums"] == choices
    assert space.default_config(problem, target).mxu_sums == choices[-1]


def test_axes_end_at_the_longest_chunk_and_context():
    short = dataclasses.replace(LLAMA, max_num_tokens=40, pages_per_seq=3)
    axes = space.search_axes(short, V6E)
    assert axes["bq_sz"] == axes["bq_csz"] == (16, 32, 64)
    assert max(axes["bkv_sz"]) == 512  # the power of two from 3 pages of 128 on
    assert max(space.search_axes(LLAMA, V6E)["bq_csz"]) == 256


@pytest.mark.parametrize(
    "changes",
    [{}, {"num_kv_heads": 32, "head_dim": 256}, {"sliding_window": 128},
     {"max_num_tokens": 16, "page_size": 2048, "pages_per_seq": 4}],
    ids=["usual", "wide", "window", "large_pages"],
)  # fmt: skip
def test_the_default_gives_up_only_where_nothing_on_the_axes_fits(changes):
    problem = dataclasses.replace(LLAMA, **changes)
    check_that_it_gives_up_last(space, BlockwiseConfig, problem, V6E, 20)
