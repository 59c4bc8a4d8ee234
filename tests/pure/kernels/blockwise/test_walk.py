"""The blockwise walk on plain values: every pair that sees each other once, and masks where due."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rpa_kernels.blockwise import walk
from rpa_kernels.blockwise.chains import all_chains
from rpa_kernels.blockwise.config import BlockwiseConfig
from rpa_kernels.pages import Meta
from rpa_kernels.problem import Problem
from rpa_tune.hw.chip import load_chip

PROBLEM = Problem(
    num_q_heads=8, num_kv_heads=2, head_dim=128, page_size=16, max_num_tokens=128,
    max_num_seqs=4, pages_per_seq=32, num_pages=128,
)  # fmt: skip
CONFIG = BlockwiseConfig(
    bq_sz=32, bq_csz=16, bkv_sz=128, bkv_csz=128, num_buffers=2, mxu_sums=0
)  # fmt: skip
Q_LENS, KV_LENS = (1, 20, 70, 32), (40, 20, 300, 160)
META = Meta(
    kv_lens=jnp.asarray(KV_LENS, jnp.int32),
    page_runs=None,
    cu_q_lens=jnp.asarray([0, *itertools.accumulate(Q_LENS)], jnp.int32),
    distribution=None,
    pages_per_seq=32,
    num_pages=128,
)
FEATURES = [
    {},
    {"causal": False},
    {"sliding_window": 50},
    {"sliding_window": 1, "causal": False},
    {"attention_chunk_size": 50},
    {"attention_chunk_size": 4},
]


def sees(q_pos, k_pos, problem):
    """Whether a query sees a key, both positions; the definition of causality, window and chunk."""
    window = problem.sliding_window
    seen = np.full(np.broadcast_shapes(q_pos.shape, k_pos.shape), fill_value=True)
    if problem.causal:
        seen &= k_pos <= q_pos
    if window is not None:
        seen &= k_pos > q_pos - window
    if (chunk := problem.attention_chunk_size) is not None:
        seen &= k_pos // chunk == q_pos // chunk
    return seen


@functools.cache
def walk_all(problem):
    """(cursor, block) of every step over all sequences."""
    names = [field.name for field in dataclasses.fields(walk.Block)]

    @jax.jit
    def step(cursor):
        block = walk.block_at(cursor, META, problem, CONFIG)
        return {name: getattr(block, name) for name in names}, walk.after(cursor, block)

    cursor, blocks = walk.Cursor(0, 0, 0), []
    while cursor.seq < len(Q_LENS):
        fields, following = jax.tree.map(int, step(cursor))
        blocks.append((cursor, walk.Block(**fields)))
        cursor = following
        assert len(blocks) < 100, "the walk does not end"
    assert cursor == (len(Q_LENS), 0, 0)
    return blocks


@pytest.mark.parametrize("features", FEATURES, ids=str)
def test_every_pair_that_sees_each_other_is_walked_once(features):
    problem = dataclasses.replace(PROBLEM, **features)
    pairs = [np.zeros((q, kv), int) for q, kv in zip(Q_LENS, KV_LENS, strict=True)]
    rows = []
    for cursor, block in walk_all(problem):
        q_len, kv_len = Q_LENS[cursor.seq], KV_LENS[cursor.seq]
        assert block.seq == cursor.seq
        first = block.q_first - (kv_len - q_len)
        assert block.q_end - block.q_first == block.num_q
        assert 0 < block.num_kv == block.kv_end - block.kv_start <= CONFIG.bkv_sz
        assert block.kv_start % problem.page_size == 0
        pairs[block.seq][first : first + block.num_q, block.kv_start : block.kv_end] += 1
        if block.is_last_kv:
            rows += range(block.token, block.token + block.num_q)
    assert rows == list(range(sum(Q_LENS)))
    for walked, q_len, kv_len in zip(pairs, Q_LENS, KV_LENS, strict=True):
        q_pos, k_pos = np.arange(kv_len - q_len, kv_len)[:, None], np.arange(kv_len)[None]
        assert walked.max() == 1
        assert walked[sees(q_pos, k_pos, problem)].all()
        assert walked[:, -1].any()  # the newest key is seen in every setting


def test_new_keys_come_from_the_operand_unless_the_cache_has_them():
    for update, cached in ((True, [39, 0, 230, 128]), (False, [*KV_LENS])):
        problem = dataclasses.replace(PROBLEM, update_kv_cache=update)
        blocks = [block for cursor, block in walk_all(problem) if cursor[1:] == (0, 0)]
        assert [block.cached_end for block in blocks] == cached
        assert [block.new_token for block in blocks] == [0, 1, 21, 91]


@pytest.mark.parametrize("csz", [32, 128])
@pytest.mark.parametrize("features", FEATURES, ids=str)
def test_tiles_are_those_with_a_visible_key_and_full_ones_need_no_mask(features, csz):
    """`csz` keys a tile, 16 queries; a tile's padding queries take part, as they do in a kernel."""
    problem = dataclasses.replace(PROBLEM, **features)
    for _, block in walk_all(problem):
        q_tiles = jnp.arange(-(-block.num_q // 16))
        found = walk.Tiles(
            *np.broadcast_arrays(*walk.tiles_of(block, q_tiles, 16, csz, problem), q_tiles)[:4]
        )
        for q_tile in range(len(q_tiles)):
            tiles = walk.Tiles(*(bound[q_tile] for bound in found))
            q_pos = block.q_first + 16 * q_tile + np.arange(16)[:, None]
            for tile in range(-(-block.num_kv // csz)):
                k_pos = block.kv_start + tile * csz + np.arange(csz)[None]
                seen = sees(q_pos, k_pos, problem) & (k_pos < block.kv_end)
                assert (tiles.first <= tile < tiles.end) == seen.any()
                if tiles.full_first <= tile < tiles.full_end:
                    assert seen.all()
                elif tiles.first <= tile < tiles.end:
                    assert not seen.all()


def test_few_queries_take_the_shortest_split_that_holds_them():
    paths = all_chains("mixed", PROBLEM, CONFIG, load_chip("v6e").target)
    assert [chains.tokens for chains in paths] == [16, 8, 4]
    block = walk_all(PROBLEM)[0][1]
    for num_q, tokens in ((1, 4), (4, 4), (5, 8), (8, 8), (9, 16), (16, 16), (32, 16)):
        few = dataclasses.replace(block, num_q=np.int32(num_q))
        acted = []
        with jax.disable_jit():  # the branch alone that is taken
            walk.on_path(few, paths, lambda chains, acted=acted: acted.append(chains.tokens))
        assert acted == [tokens]
        assert walk.on_path_value(few, paths, lambda chains: chains.tokens) == tokens
    acted = []
    walk.on_path(block, paths[:1], lambda chains: acted.append(chains.tokens))
    assert acted == [16]
