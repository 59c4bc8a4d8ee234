"""Runs of pages: what entries say, and that copies are counted as a kernel would make them."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rpa_kernels import runs
from rpa_kernels.batch import BatchArrays
from rpa_kernels.problem import Problem

SIZE, PAGES = 16, 40
PROBLEM = Problem(
    num_q_heads=1, num_kv_heads=1, head_dim=128, page_size=SIZE, max_num_tokens=8, max_num_seqs=1,
    pages_per_seq=PAGES, num_pages=64,
)  # fmt: skip
# Tables with runs of both directions, turns (1 2 1), repeats and jumps.
STEPS = st.lists(
    st.sampled_from([1, 1, 1, -1, -1, -1, 0, 5, -9]), min_size=PAGES - 1, max_size=PAGES - 1
)


def arrays_of(table, kv_len=None, q_len=1, problem=PROBLEM):
    """One decode sequence on a whole table, unless told otherwise."""
    kv_len = problem.max_context_tokens if kv_len is None else kv_len
    return BatchArrays(
        kv_lens=np.array([kv_len], np.int32),
        page_indices=np.asarray(table, np.int32),
        cu_q_lens=np.array([0, q_len], np.int32),
        distribution=np.array([0, 0, 1], np.int32),
    )


def table_of(steps):
    return np.cumsum([20, *steps]).clip(0, 63).astype(np.int32)


def entries_of(table, num_pages, **options):
    problem = dataclasses.replace(PROBLEM, pages_per_seq=len(table), num_pages=num_pages)
    packed = runs.pack(arrays_of(table, problem=problem, **options), problem)
    return [tuple(runs.read(int(entry), num_pages)) for entry in packed]


def walk(entries, start, end):
    """The pages of each copy that fetches positions [start, end), in their order."""
    index, copies = start // SIZE, []
    while index * SIZE < end:
        page, count = entries[index]
        assert count >= 1
        copies.append([page + i for i in range(min(count, -(-end // SIZE) - index))])
        index += count
    return copies


def test_the_example_of_the_module():
    assert entries_of([7, 8, 9, 4, 21, 20, 19, 30], 32) == [
        (7, 3), (8, 2), (9, 1), (4, 1), (19, 3), (20, 2), (21, 1), (30, 1)
    ]  # fmt: skip
    assert entries_of([1, 2, 1, 0, 9], 10) == [(1, 1), (0, 3), (1, 2), (2, 1), (9, 1)]


@settings(max_examples=150, deadline=None)
@given(
    steps=STEPS, kv_len=st.integers(1, PAGES * SIZE), q_len=st.integers(1, 200),
    window=st.sampled_from([None, 1, 40, 300]), chunk=st.sampled_from([None, 40, 64]),
    causal=st.booleans(), updates=st.booleans(),
)  # fmt: skip
def test_pages_stay_unless_every_query_sees_all_of_them_in_the_cache(
    steps, kv_len, q_len, window, chunk, causal, updates
):
    table, q_len = table_of(steps), min(q_len, kv_len)
    causal, window = causal or chunk is not None, window if chunk is None else None
    problem = dataclasses.replace(
        PROBLEM, sliding_window=window, attention_chunk_size=chunk, causal=causal,
        update_kv_cache=updates,
    )  # fmt: skip
    entries = runs.read(runs.pack(arrays_of(table, kv_len, q_len), problem), 64)
    positions = np.arange(PAGES * SIZE)
    seen = positions < (kv_len - q_len if updates else kv_len)
    for query in range(kv_len - q_len, kv_len):
        seen &= (positions <= query) | (not causal)
        seen &= positions > query - (window or PAGES * SIZE)
        seen &= positions >= query // (chunk or PAGES * SIZE) * (chunk or 0)
    may_move = seen.reshape(PAGES, SIZE).all(axis=1)
    np.testing.assert_array_equal(entries.page[~may_move], table[~may_move])
    np.testing.assert_array_equal(np.sort(entries.page[may_move]), np.sort(table[may_move]))


@settings(max_examples=100, deadline=None)
@given(steps=STEPS, kv_len=st.integers(2, PAGES * SIZE), block=st.sampled_from([1, 2, 3, 8, 40]))
def test_copies_bring_every_page_once_and_are_counted(steps, kv_len, block):
    table, end = table_of(steps), kv_len - 1
    arrays = arrays_of(table, kv_len)
    entries = [tuple(runs.read(int(entry), 64)) for entry in runs.pack(arrays, PROBLEM)]
    starts = np.arange(0, end, block * SIZE)
    ends = np.minimum(starts + block * SIZE, end)
    copies = [copy for a, b in zip(starts, ends, strict=True) for copy in walk(entries, a, b)]
    arrived = [page for copy in copies for page in copy]
    count = -(-end // SIZE)
    assert sorted(arrived) == sorted(table[:count].tolist())
    if end % SIZE:
        assert arrived[-1] == table[count - 1]
    counted = runs.SeqRuns.of(arrays, PROBLEM).count_copies(0, starts, ends)
    assert counted == len(copies)


def test_runs_are_found_whole():
    up, down = list(range(20, 30)), list(range(19, 9, -1))
    table = [*up, *down, 50]
    assert [count for _, count in entries_of(table, 64)][::10] == [10, 10, 1]


@pytest.mark.parametrize("num_pages", [1, 2, 64, 1 << 22, 1 << 24, 1 << 30])
def test_a_page_and_its_run_share_an_entry_whatever_the_cache(num_pages):
    longest = runs.longest_run(num_pages)
    assert longest == min(128, 2**30 // num_pages)
    count = min(600, num_pages)
    table = np.arange(num_pages - count, num_pages)
    # The last page of a descending run has the new token, and stays the last.
    for shape, most in ((table, count), (table[::-1], max(count - 1, 1))):
        entries = entries_of(shape, num_pages)
        assert sorted(page for page, _ in entries) == table.tolist()
        assert max(count for _, count in entries) == min(longest, most)


def test_unused_entries_may_be_anything():
    table = [6, 5, -1, 2**31 - 1, -(2**31), 64, 7]
    assert entries_of(table, 64, kv_len=33)[:2] == [(5, 2), (6, 1)]
    # A run may seem to go on into them; no more of it is copied than a context has.
    assert entries_of([5, 63, 64, 65], 64, kv_len=20)[:2] == [(5, 1), (63, 3)]


@pytest.mark.parametrize("num_pages", [64, 1 << 28])
@pytest.mark.parametrize("pages_per_seq", [1, 100, 300])
@pytest.mark.parametrize("reach", [{}, {"sliding_window": 100}, {"attention_chunk_size": 100}])
def test_xla_and_numpy_pack_alike(num_pages, pages_per_seq, reach):
    rng = np.random.default_rng(0)
    problem = dataclasses.replace(
        PROBLEM, max_num_seqs=3, pages_per_seq=pages_per_seq, num_pages=num_pages,
        **reach,
    )  # fmt: skip
    steps = rng.choice([1, -1, -1, 1, 1, -1, 7], 3 * pages_per_seq)
    arrays = BatchArrays(
        kv_lens=rng.integers(1, pages_per_seq * SIZE + 1, 3).astype(np.int32),
        page_indices=np.cumsum(steps).astype(np.int32) % 64,
        cu_q_lens=np.array([0, 1, 2, 2], np.int32),
        distribution=np.array([2, 2, 2], np.int32),
    )
    fields = (field.name for field in dataclasses.fields(arrays))
    traced = BatchArrays(**{name: jnp.asarray(getattr(arrays, name)) for name in fields})
    packed = jax.jit(lambda: runs.pack(traced, problem, jnp))()
    np.testing.assert_array_equal(packed, runs.pack(arrays, problem))


def test_no_run_goes_from_one_sequence_to_the_next():
    problem = dataclasses.replace(PROBLEM, max_num_seqs=2, pages_per_seq=2)
    arrays = dataclasses.replace(
        arrays_of(np.arange(4)), kv_lens=np.array([32, 32]), cu_q_lens=np.arange(3)
    )
    entries = runs.read(runs.pack(arrays, problem), 64)
    assert entries.count.tolist() == [2, 1, 2, 1]


def test_nothing_follows_the_last_page_of_a_table():
    # A neighbour of 0, which is what would be read behind it.
    assert entries_of([5, 1], 64)[1] == (1, 1)
    assert entries_of([5, -1], 64, kv_len=5)[1][1] == 1
