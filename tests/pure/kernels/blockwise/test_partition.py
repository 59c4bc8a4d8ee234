"""Which query blocks each core serves: disjoint, complete, balanced by the pairs they attend to."""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rpa_kernels.batch import Batch, BatchArrays
from rpa_kernels.blockwise.config import BlockwiseConfig
from rpa_kernels.blockwise.partition import SEQS, boundaries, partition
from rpa_kernels.problem import Problem

CONFIG = BlockwiseConfig(
    bq_sz=32, bq_csz=16, bkv_sz=256, bkv_csz=128, num_buffers=2, mxu_sums=0
)  # fmt: skip
# A decode row, three chunks of one length, and sequences of every kind.
BATCH = Batch(
    q_lens=(1, 64, 64, 64, 1, 70, 500),
    kv_lens=(40, 64, 1000, 200, 9, 3000, 500),
    num_decode=1,
    num_prefill=3,
)


def make_problem(**changes):
    return Problem(
        num_q_heads=8, num_kv_heads=2, head_dim=128, page_size=16, max_num_tokens=1024,
        max_num_seqs=8, pages_per_seq=256, num_pages=1 << 12, **changes,
    )  # fmt: skip


def blocks_of(family, batch, problem):
    """((sequence, query block), cost) of each query block of a family, counted key by key."""
    found = []
    for seq in batch.family_seqs(family):
        q_len, kv_len = batch.q_lens[seq], batch.kv_lens[seq]
        for index, offset in enumerate(range(0, q_len, CONFIG.bq_sz)):
            num_q = min(q_len - offset, CONFIG.bq_sz)
            first = kv_len - q_len + offset
            keys = [k for k in range(kv_len) if not problem.causal or k < first + num_q]
            if problem.sliding_window is not None:
                oldest = max(first + 1 - problem.sliding_window, 0)
                keys = [k for k in keys if k >= oldest // 16 * 16]
            q_tiles, kv_tiles = -(-num_q // CONFIG.bq_csz), -(-len(keys) // CONFIG.bkv_csz)
            found.append(((seq, index), q_tiles * kv_tiles + kv_tiles + q_tiles))
    return found


@pytest.mark.parametrize(
    "features", [{}, {"causal": False}, {"sliding_window": 100}], ids=["causal", "all", "window"]
)
@pytest.mark.parametrize("family", sorted(SEQS))
def test_cores_get_disjoint_runs_of_nearly_equal_cost(family, features):
    problem = make_problem(**features)
    blocks, arrays = blocks_of(family, BATCH, problem), BATCH.arrays(problem)
    for num_cores in (1, 2, 3):
        at = boundaries(family, problem, CONFIG, arrays, num_cores)
        assert at[0] == 0
        assert at[-1] == len(blocks)
        costs = [cost for _, cost in blocks]
        for start, end in itertools.pairwise(at):
            # Each end of a run is off by half a block at most.
            assert abs(sum(costs[start:end]) - sum(costs) / num_cores) <= max(costs)
        # The kernel is told the same as (sequence, query block); the end is the next sequence.
        names = [name for name, _ in blocks] + [(BATCH.distribution[SEQS[family][1]], 0)]
        told = partition(family, problem, CONFIG, arrays, num_cores)
        assert told.dtype == np.int32
        assert told.reshape(-1, 2).tolist() == [list(names[i]) for i in at]


@settings(max_examples=40, derandomize=True, deadline=None)
@given(
    lens=st.lists(st.tuples(st.integers(1, 200), st.integers(0, 500)), max_size=5),
    num_cores=st.integers(1, 4),
)
def test_runs_are_in_order_whatever_the_lengths(lens, num_cores):
    q_lens, kv_lens = [q for q, _ in lens], [q + old for q, old in lens]
    batch = Batch(q_lens=tuple(q_lens), kv_lens=tuple(kv_lens), num_decode=0)
    problem = make_problem()
    told = partition("mixed", problem, CONFIG, batch.arrays(problem), num_cores)
    places = [tuple(place) for place in told.reshape(-1, 2).tolist()]
    assert places == sorted(places)
    assert places[0] == (0, 0)
    assert places[-1] == (len(lens), 0)
    for seq, q_block in places[:-1]:
        assert (seq, q_block) == (len(lens), 0) or q_block * CONFIG.bq_sz < q_lens[seq]


def test_xla_computes_the_same_as_the_account():
    problem = make_problem(sliding_window=100)
    arrays = BATCH.arrays(problem)
    names = ("kv_lens", "page_indices", "cu_q_lens", "distribution")

    @partial(jax.jit, static_argnums=1)
    def by_xla(fields, num_cores):
        return partition("mixed", problem, CONFIG, BatchArrays(**fields), num_cores, xp=jnp)

    np.testing.assert_array_equal(
        by_xla({name: getattr(arrays, name) for name in names}, 3),
        partition("mixed", problem, CONFIG, arrays, 3),
    )
