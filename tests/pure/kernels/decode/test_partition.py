"""Which decode sequences each core serves."""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from rpa_kernels.batch import Batch, BatchArrays
from rpa_kernels.decode.config import DecodeConfig
from rpa_kernels.decode.partition import partition
from rpa_kernels.problem import Problem

CONFIG = DecodeConfig(bkv_sz=256, bkv_csz=128, seqs_per_step=2, num_buffers=2, bq_sz=8)


def make_problem(window=None):
    return Problem(
        num_q_heads=8, num_kv_heads=2, head_dim=128, page_size=16, max_num_tokens=64,
        max_num_seqs=16, pages_per_seq=256, num_pages=1 << 13, sliding_window=window,
    )  # fmt: skip


def split(kv_lens, num_cores, *, window=None, num_mixed=0):
    problem = make_problem(window)
    lens = tuple(kv_lens)
    batch = Batch(q_lens=(1,) * len(lens), kv_lens=lens, num_decode=len(lens) - num_mixed)
    return partition(problem, CONFIG, batch.arrays(problem), num_cores)


@settings(max_examples=30, derandomize=True, deadline=None)
@given(
    kv_lens=st.lists(st.integers(1, 4096), max_size=14),
    num_cores=st.integers(1, 4),
    window=st.sampled_from([None, 1, 500]),
)
def test_ranges_are_disjoint_cover_all_and_differ_by_less_than_a_sequence(
    kv_lens, num_cores, window
):
    bounds = split(kv_lens, num_cores, window=window)
    assert bounds.dtype == np.int32
    assert bounds[0] == 0
    assert bounds[-1] == len(kv_lens)
    assert (np.diff(bounds) >= 0).all()
    # KV compute blocks of a sequence: those of its tokens, from the page of the oldest one seen.
    tokens = [kv if window is None else kv - max(kv - window, 0) // 16 * 16 for kv in kv_lens]
    blocks = [-(-n // CONFIG.bkv_csz) for n in tokens]
    for start, end in itertools.pairwise(bounds):
        # Each end of a range is off by half a sequence at most.
        assert abs(sum(blocks[start:end]) - sum(blocks) / num_cores) <= max(blocks, default=0)


def test_a_long_sequence_has_a_core_of_its_own():
    assert split((4096, 100, 100, 100), 2).tolist() == [0, 1, 4]
    # In a window all four are as much work.
    assert split((4096, 100, 100, 100), 2, window=100).tolist() == [0, 2, 4]


def test_sequences_of_other_families_count_for_nothing():
    assert split((200, 200, 4096), 2, num_mixed=1).tolist() == [0, 1, 2]


def test_xla_computes_the_same_as_the_account():
    problem = make_problem(window=100)
    batch = Batch(q_lens=(1,) * 5, kv_lens=(700, 1, 129, 4000, 16), num_decode=5)
    arrays = batch.arrays(problem)
    names = ("kv_lens", "page_indices", "cu_q_lens", "distribution")

    @partial(jax.jit, static_argnums=1)
    def by_xla(fields, num_cores):
        return partition(problem, CONFIG, BatchArrays(**fields), num_cores, xp=jnp)

    np.testing.assert_array_equal(
        by_xla({name: getattr(arrays, name) for name in names}, 3),
        partition(problem, CONFIG, arrays, 3),
    )
