"""Limits that all families share: which blocks fit pages, and what is said when they do not."""

import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rpa_kernels import kv_blocks, limits
from rpa_kernels.problem import Problem
from rpa_tune.hw.chip import load_chip

PROBLEM = Problem(
    num_q_heads=8, num_kv_heads=2, head_dim=128, page_size=16, max_num_tokens=64, max_num_seqs=100,
    pages_per_seq=20, num_pages=4096,
)  # fmt: skip
V6E = load_chip("v6e").target
# Powers of two, and pages that no power of two from 128 on divides.
pages = st.sampled_from([2, 16, 48, 128, 192, 256, 2048])


def paged(page_size, pages_per_seq=20):
    return dataclasses.replace(PROBLEM, page_size=page_size, pages_per_seq=pages_per_seq)


def test_scalar_prefetch_is_padded_to_rows_of_128_words():
    # kv_lens 100 -> 128, page_indices 2000 -> 2048, cu_q_lens 101 -> 128, distribution 3 -> 128.
    assert limits.smem_bytes(PROBLEM) == 4 * (128 + 2048 + 128 + 128)


@settings(max_examples=30, derandomize=True, deadline=None)
@given(page_size=pages, pages_per_seq=st.integers(1, 300), size=st.integers(1, 4096))
def test_a_fitted_block_fits_and_is_the_least_that_does(page_size, pages_per_seq, size):
    problem = paged(page_size, pages_per_seq)

    def fits(n):
        return n % page_size == 0 or page_size % n == 0

    block = kv_blocks.fit_block(size, problem)
    assert fits(block)
    assert size <= block < size + page_size
    assert limits.check_blocks(bkv_sz=block, bkv_csz=block, problem=problem) is None
    # A part of a page is a block if it is what was asked for, and no other one.
    assert not [n for n in range(size, block) if n % page_size == 0 or (n == size and fits(n))]


@settings(max_examples=30, derandomize=True, deadline=None)
@given(
    page_size=pages,
    pages_per_seq=st.integers(1, 300),
    sizes=st.lists(st.integers(7, 13).map(lambda n: 1 << n), min_size=1, max_size=4),
)
def test_block_sizes_rise_and_none_is_beyond_the_longest_context(page_size, pages_per_seq, sizes):
    problem = paged(page_size, pages_per_seq)
    found = kv_blocks.block_sizes(problem, tuple(sizes))
    assert found
    assert list(found) == sorted(set(found))
    longest = kv_blocks.longest_block(problem)
    assert longest >= max(problem.max_context_tokens, 128)
    assert longest % page_size == 0
    for block in found:
        assert block <= longest
        assert limits.check_blocks(bkv_sz=block, bkv_csz=block, problem=problem) is None


@settings(max_examples=30, derandomize=True, deadline=None)
@given(page_size=pages, size=st.integers(2, 5000))
def test_halving_ends_at_a_block_that_fits(page_size, size):
    problem, seen = paged(page_size), []
    block = kv_blocks.fit_block(size, problem)
    while block is not None:
        seen.append(block)
        block = kv_blocks.smaller_block(block, problem)
    assert seen == sorted(set(seen), reverse=True)
    for block in seen:
        assert limits.check_blocks(bkv_sz=block, bkv_csz=block, problem=problem) is None
    # Down to a register of keys, unless a page is more, and not far below.
    assert seen[-1] <= max(128, page_size)
    assert len(seen) == 1 or seen[-1] >= 64


@settings(max_examples=30, derandomize=True, deadline=None)
@given(page_size=pages, size=st.integers(1, 5000), most=st.sampled_from([128, 256, 512]))
def test_the_compute_block_is_the_largest_that_is_accepted(page_size, size, most):
    problem = paged(page_size)
    block = kv_blocks.fit_block(size, problem)
    csz = kv_blocks.compute_size(block, most)
    assert limits.check_blocks(bkv_sz=block, bkv_csz=csz, problem=problem) is None
    larger = range(csz + 1, min(block, most) + 1)
    assert all(limits.check_blocks(bkv_sz=block, bkv_csz=n, problem=problem) for n in larger)
    assert csz <= most or csz == block


@pytest.mark.parametrize(
    ("page_size", "blocks", "said"),
    [
        (64, (100, 100), ("bkv_sz % page_size", 100, 64, "use a multiple of 64, or a size that")),
        (64, (256, 96), ("bkv_sz % bkv_csz", 256, 96, "bkv_csz must divide bkv_sz")),
        (64, (192, 64), ("bkv_csz % 128", 64, 128, "use a multiple of 128, or bkv_sz")),
        (64, (64, 64), None),  # less than a register of keys, and the whole block
        (256, (128, 128), None),  # half a page
        (192, (384, 128), None),  # compute blocks need not be pages
    ],
)
def test_blocks_that_do_not_fit_say_which_limit(page_size, blocks, said):
    bkv_sz, bkv_csz = blocks
    bad = limits.check_blocks(bkv_sz=bkv_sz, bkv_csz=bkv_csz, problem=paged(page_size))
    assert (bad is None) == (said is None)
    if said:
        limit, need, have, hint = said
        assert (bad.limit, bad.need, bad.have, bad.unit) == (limit, need, have, "tokens")
        assert bad.hint.startswith(hint)


def test_memory_is_refused_from_the_first_byte_beyond_the_share():
    def check(scratch, problem=PROBLEM):
        return limits.check_memory(
            scratch=scratch, problem=problem, target=V6E, vmem_share=0.5
        )  # fmt: skip

    half = V6E.vmem_bytes // 2
    assert check(half) is None
    bad = check(half + 1)
    assert (bad.limit, bad.need, bad.have) == ("vmem_bytes", half + 1, half)
    assert bad.hint == "50% of v6e's VMEM; use smaller blocks"
    # SMEM has a share of its own, and is asked for when VMEM is no limit.
    many = dataclasses.replace(PROBLEM, pages_per_seq=V6E.smem_bytes // 400)
    bad = check(half, many)
    assert (bad.limit, bad.need) == ("smem_bytes", limits.smem_bytes(many))
    assert bad.have == int(V6E.smem_bytes * 0.9)
    assert check(half + 1, many).limit == "vmem_bytes"


def test_the_first_field_that_is_not_positive_is_named():
    assert limits.check_positive(a=1, b=2) is None
    bad = limits.check_positive(a=1, b=0, c=-1)
    assert (bad.limit, bad.need, bad.have, bad.hint) == ("b", 0, 1, "must be positive")
