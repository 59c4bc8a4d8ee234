"""The decode walk on plain values: every key of every sequence once, in order, then nothing."""

import jax.numpy as jnp
import numpy as np
import pytest

from rpa_kernels.decode.config import DecodeConfig
from rpa_kernels.decode.walk import Cursor, Walk
from rpa_kernels.pages import Meta
from rpa_kernels.problem import Problem

KV_LENS = (1, 16, 300, 128, 257)


def make_walk(*, first_seq=0, end_seq=5, seqs_per_step=2, bkv_sz=128, **changes):
    problem = Problem(
        num_q_heads=8, num_kv_heads=2, head_dim=128, page_size=16, max_num_tokens=8,
        max_num_seqs=6, pages_per_seq=32, num_pages=64, **changes,
    )  # fmt: skip
    # The entry past the batch is garbage: no step may be made of it.
    meta = Meta(
        kv_lens=jnp.asarray([*KV_LENS, 9999], jnp.int32),
        page_runs=None, cu_q_lens=None, distribution=None, pages_per_seq=32, num_pages=64,
    )  # fmt: skip
    config = DecodeConfig(
        bkv_sz=bkv_sz, bkv_csz=bkv_sz, seqs_per_step=seqs_per_step, num_buffers=2, bq_sz=8
    )
    return Walk(
        meta=meta, first_seq=first_seq, end_seq=end_seq, problem=problem, config=config
    )  # fmt: skip


def walk_all(walk):
    """Items of all steps up to the first that has none, as (seq, block, positions)."""
    cursor, items = Cursor(jnp.int32(walk.first_seq), jnp.int32(0)), []
    for _ in range(40):
        step, cursor = walk.items_from(cursor)
        assert len(step) == walk.config.seqs_per_step
        items += step
        if not step[-1].is_real:
            return items
    raise AssertionError("the walk does not end")


@pytest.mark.parametrize(("window", "seqs_per_step"), [(None, 3), (1, 1), (200, 3)])
def test_every_visible_key_is_walked_once_and_in_order(window, seqs_per_step):
    walk = make_walk(seqs_per_step=seqs_per_step, sliding_window=window)
    walked = {seq: [] for seq in range(len(KV_LENS))}
    for item in walk_all(walk):
        if item.is_real:
            start, count = int(item.start), int(item.num_tokens)
            assert 1 <= count <= walk.config.bkv_sz
            assert item.owner == item.seq
            assert item.block * walk.config.bkv_sz == start - (walked[int(item.seq)] or [start])[0]
            walked[int(item.seq)] += range(start, start + count)
    for seq, kv_len in enumerate(KV_LENS):
        # The query is the last token; what it sees begins in a page that is fetched from its start.
        oldest = 0 if window is None else max(kv_len - window, 0)
        assert walked[seq] == list(range(oldest // 16 * 16, kv_len))


@pytest.mark.parametrize("update", [True, False])
def test_the_new_token_is_fetched_from_the_cache_only_if_it_is_there(update):
    items = [i for i in walk_all(make_walk(update_kv_cache=update)) if i.is_real]
    for seq, kv_len in enumerate(KV_LENS):
        own = [i for i in items if int(i.seq) == seq]
        cached = sum(max(int(i.num_cached), 0) for i in own)
        assert cached == kv_len - update
        assert all(i.num_cached == i.num_tokens for i in own[:-1])


def test_past_the_last_sequence_items_are_empty_and_name_pages_that_exist():
    walk = make_walk(end_seq=2, seqs_per_step=4)
    cursor = Cursor(jnp.int32(2), jnp.int32(0))
    items, after = walk.items_from(cursor)
    for item in items:
        assert not item.is_real
        assert item.num_tokens == 0
        assert item.num_cached <= 0
        assert (item.owner, item.seq) == (0, 2)
    assert after == cursor


def test_a_core_walks_its_own_sequences_only():
    items = [i for i in walk_all(make_walk(first_seq=2, end_seq=4)) if i.is_real]
    np.testing.assert_array_equal([i.seq for i in items], [2, 2, 2, 3])
    np.testing.assert_array_equal([i.block for i in items], [0, 1, 2, 0])
