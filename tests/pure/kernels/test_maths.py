"""The maths of the kernels on plain values, without Pallas: what a change to a kernel rests on."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rpa_kernels import ints, lane_ops, online_softmax, window
from rpa_kernels.layout import LANES
from rpa_kernels.mask import mask_scores
from rpa_kernels.online_softmax import MASKED
from rpa_kernels.problem import Problem
from rpa_kernels.stagger import pass_order, staggered
from rpa_tune.hw.chip import load_chip

V6E = load_chip("v6e").target
F32 = jnp.dtype(jnp.float32)
PROBLEM = Problem(
    num_q_heads=8, num_kv_heads=2, head_dim=128, page_size=16, max_num_tokens=64, max_num_seqs=8,
    pages_per_seq=8, num_pages=64,
)  # fmt: skip


def draw(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


def equal_lanes(column):
    return jnp.broadcast_to(column, (column.shape[0], LANES))


def attend(scores, values, split):
    """(m, row_sum, acc) over `scores` in blocks that end at `split`."""
    rows = scores.shape[0]
    m = jnp.full((rows, LANES), MASKED)
    row_sum, acc = jnp.zeros((rows, LANES)), jnp.zeros((rows, values.shape[1]))
    for start, end in zip([0, *split], [*split, scores.shape[1]], strict=True):
        p, m, alpha = online_softmax.softmax_step(scores[:, start:end], m, V6E, F32)
        row_sum = alpha * row_sum + equal_lanes(jnp.sum(p, axis=1, keepdims=True))
        acc = lane_ops.widen(alpha, acc.shape[1]) * acc + p @ values[start:end]
    return m, row_sum, acc


def merge(state, other):
    (m, row_sum, acc), (other_m, other_sum, other_acc) = state, other
    m, alpha, beta = online_softmax.merge_factors(m, other_m)
    acc = alpha[:, :1] * acc + beta[:, :1] * other_acc
    return m, alpha * row_sum + beta * other_sum, acc


def softmax_2(scores, values):
    weights = np.exp2(np.asarray(scores, np.float64))
    return weights @ np.asarray(values, np.float64) / weights.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("split", [[], [128], [128, 256, 384], [1, 2, 511]])
def test_blocks_of_keys_add_up_to_the_softmax(split):
    scores, values = 4 * draw(16, 512), draw(512, 256, seed=1)
    _, row_sum, acc = attend(scores, values, split)
    np.testing.assert_allclose(acc / row_sum[:, :1], softmax_2(scores, values), atol=1e-5)


def test_a_block_that_no_row_sees_changes_nothing():
    scores, values = draw(8, 128), draw(128, 128, seed=1)
    before = attend(scores, values, [])
    p, m, alpha = online_softmax.softmax_step(jnp.full((8, 128), MASKED), before[0], V6E, F32)
    assert not np.any(p)
    assert np.all(alpha == 1)
    np.testing.assert_array_equal(m, before[0])


def test_a_maximum_at_hand_takes_the_place_of_the_scores():
    scores = draw(8, 512)
    m_old = jnp.zeros((8, LANES))
    most = lane_ops.max_by_lane(scores)
    for a, b in zip(
        online_softmax.softmax_step(scores, m_old, V6E, F32),
        online_softmax.softmax_step(scores, m_old, V6E, F32, most=most),
        strict=True,
    ):
        np.testing.assert_array_equal(a, b)


def test_states_of_two_halves_merge_to_that_of_the_whole():
    scores, values = 6 * draw(8, 512), draw(512, 256, seed=1)
    whole = attend(scores, values, [])
    halves = (
        attend(scores[:, :200], values[:200], []), attend(scores[:, 200:], values[200:], [])
    )  # fmt: skip
    for merged, right in zip(merge(*halves), whole, strict=True):
        np.testing.assert_allclose(merged, right, rtol=1e-5, atol=1e-5)


def test_an_empty_state_merges_to_the_other():
    state = attend(draw(8, 128), draw(128, 128, seed=1), [])
    empty = (jnp.full((8, LANES), MASKED), jnp.zeros((8, LANES)), jnp.zeros((8, 128)))
    for merged, right in zip(merge(empty, state), state, strict=True):
        np.testing.assert_array_equal(merged, right)


@pytest.mark.parametrize("keys", [128, 384, 640, 100])
def test_lane_by_lane_comes_to_the_same(keys):
    x = draw(8, keys)
    by_lane = lane_ops.sum_by_lane(x)
    assert by_lane.shape == lane_ops.max_by_lane(x).shape == (8, LANES)
    total = lane_ops.over_lanes(by_lane)
    np.testing.assert_allclose(total, equal_lanes(jnp.sum(x, 1, keepdims=True)), atol=1e-4)
    np.testing.assert_array_equal(jnp.max(lane_ops.max_by_lane(x), axis=1), jnp.max(x, axis=1))


@pytest.mark.parametrize("width", [64, 128, 200, 512])
def test_widened_lanes_are_equal(width):
    column = draw(8, 1)
    wide = lane_ops.widen(equal_lanes(column), width)
    np.testing.assert_array_equal(wide, np.broadcast_to(column, (8, width)))


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize(
    ("window", "chunk"), [(None, None), (1, None), (40, None), (None, 1), (None, 24), (None, 32)]
)
def test_masks_are_what_they_say_for_each_pair(causal, window, chunk):
    problem = dataclasses.replace(PROBLEM, causal=causal, sliding_window=window)
    if chunk is not None:
        problem = dataclasses.replace(problem, causal=True, attention_chunk_size=chunk)
    q_pos, k_start, k_end = np.arange(30, 62)[:, None], 16, 60
    seen = mask_scores(jnp.ones((32, 64)), jnp.asarray(q_pos), k_start, k_end, problem) == 1
    k_pos = k_start + np.arange(64)[None, :]
    right = np.broadcast_to(k_pos < k_end, seen.shape).copy()
    if problem.causal:
        right &= k_pos <= q_pos
    if window is not None:
        right &= k_pos > q_pos - window
    if chunk is not None:
        right &= k_pos // chunk == q_pos // chunk
    np.testing.assert_array_equal(seen, right)


@pytest.mark.parametrize("lag", [0, 1, 4])
@pytest.mark.parametrize("count", [1, 3, 8])
def test_stages_of_a_chain_keep_their_order_and_are_a_lag_apart(count, lag):
    log = []

    def stage(k):
        def run(chain, carried):
            assert carried == (None if k == 0 else (chain, k - 1))
            log.append((chain, k))
            return chain, k

        return run

    staggered(count, tuple(stage(k) for k in range(3)), lag)
    assert sorted(log) == [(chain, k) for chain in range(count) for k in range(3)]
    for chain in range(count):
        assert log.index((chain, 0)) < log.index((chain, 1)) < log.index((chain, 2))
    if lag:
        # A chain's stage waits while `lag` other chains begin, as long as there are any.
        for chain in range(count):
            begun = [c for c, k in log[: log.index((chain, 1))] if k == 0]
            assert len(begun) >= min(chain + lag, count)


@pytest.mark.parametrize("delays_pv", [False, True])
@pytest.mark.parametrize(
    ("width", "lag", "num_slots"), [(1, 1, 1), (2, 1, 2), (5, 1, 4), (16, 1, 4), (4, 2, 4)]
)
def test_passes_follow_each_other_and_no_slot_is_written_before_it_is_read(
    width, lag, num_slots, delays_pv
):
    order = pass_order(
        width, lag=lag, num_slots=num_slots, num_masks=0, delays_pv=delays_pv and lag == 1
    )
    passes = 3
    log = [("qk", chain) for chain in range(lag)]  # what the first pass is given
    log += [(stage, chain + i * width) for i in range(passes) for stage, chain in order]
    done, scores, probabilities = {}, {}, {}
    for stage, chain in log:
        if chain < 0:
            continue  # the pass before the first
        done.setdefault(chain, []).append(stage)
        slot = chain % width % num_slots
        if stage == "qk":
            assert slot not in scores
            scores[slot] = chain
        elif stage == "softmax":
            assert scores.pop(slot) == chain
            assert slot not in probabilities
            probabilities[slot] = chain
        else:
            assert probabilities.pop(slot) == chain
    for chain in range(passes * width - 1):
        assert done[chain] == ["qk", "softmax", "pv"]


def test_a_mask_is_made_before_the_first_softmax_that_needs_it():
    order = pass_order(8, lag=1, num_slots=4, num_masks=2, delays_pv=True)
    for mask in range(2):
        assert order.index(("mask", mask)) < order.index(("softmax", mask))
    assert order.count(("mask", 0)) == 1


@pytest.mark.parametrize("size", [1, 16, 48, 128])
def test_division_is_the_same_for_python_numpy_and_traced_values(size):
    values = np.arange(0, 500, 7, dtype=np.int32)
    for function in (ints.div, ints.rem, ints.cdiv):
        right = [function(int(v), size) for v in values]
        np.testing.assert_array_equal(function(values, size), right)
        np.testing.assert_array_equal(jax.jit(function, static_argnums=1)(values, size), right)
    assert ints.cdiv(17, 16) == 2
    assert ints.rem(17, 16) == 1


REACHES = [
    {}, *({"sliding_window": n} for n in (1, 16, 100)),
    *({"attention_chunk_size": n} for n in (1, 16, 24, 100)),
]  # fmt: skip


@pytest.mark.parametrize("reach", REACHES, ids=str)
def test_how_far_a_query_looks_back_is_one_definition_for_all_who_ask(reach):
    problem = dataclasses.replace(PROBLEM, **reach)
    q_pos, k_pos = np.arange(128)[:, None], np.arange(160)[None]
    sees = np.full((128, 160), fill_value=True)
    if size := problem.sliding_window:
        sees &= k_pos > q_pos - size
    if size := problem.attention_chunk_size:
        sees &= k_pos // size >= q_pos // size
    oldest = sees.argmax(axis=1)
    queries = jnp.arange(128, dtype=jnp.int32)
    np.testing.assert_array_equal(
        np.broadcast_to(window.first_seen(queries, problem, maximum=jnp.maximum), 128), oldest
    )
    assert [window.first_seen(n, problem) for n in range(128)] == oldest.tolist()
    if not reach:
        assert window.last_hidden(5, problem) is None
        assert window.newest_sees_from(5, problem) is None
        assert window.end_of_sight(5, problem) is None
        return
    np.testing.assert_array_equal(np.maximum(window.last_hidden(queries, problem) + 1, 0), oldest)
    newest = window.newest_sees_from(queries + 1, problem)
    np.testing.assert_array_equal(np.maximum(newest, 0), oldest)
    # The first query that is too late, of those that are not before the key.
    for key, too_late in enumerate(window.end_of_sight(queries, problem)):
        seen_by = sees[key:, key]
        assert seen_by[: too_late - key].all()
        assert not seen_by[too_late - key :].any()


@pytest.mark.parametrize("reach", REACHES, ids=str)
@pytest.mark.parametrize("page_size", [16, 48])
def test_a_window_starts_at_the_page_of_its_first_key(reach, page_size):
    problem = dataclasses.replace(PROBLEM, page_size=page_size, **reach)
    for q_pos in (0, 15, 16, 99, 100, 127):
        start = window.window_start(q_pos, problem)
        assert start % page_size == 0
        assert start <= window.first_seen(q_pos, problem) < start + page_size
    q = np.arange(128)
    by_numpy = window.window_start(q, problem, maximum=np.maximum)
    np.testing.assert_array_equal(
        np.broadcast_to(by_numpy, q.shape), [window.window_start(int(x), problem) for x in q]
    )
