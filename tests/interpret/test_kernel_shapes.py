"""Pages, blocks and lengths at their limits: parts of pages, windows, a million tokens, no work."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from interpret.kernel_cases import V6E, blockwise_config, decode_config, make_problem
from jax.experimental.pallas import tpu as pltpu

from rpa_kernels import inputs, load_family
from rpa_kernels.batch import Batch
from rpa_kernels.verify import draw_operands, run_interpreted, verify

FAMILIES = ("decode", "mixed")
ONE_HEAD = {"num_q_heads": 2, "num_kv_heads": 1}


def config_for(family, **changes):
    return (decode_config if family == "decode" else blockwise_config)(**changes)


def batch_of(family, contexts, **changes):
    """Decode sequences, or mixed ones of up to 16 tokens (as in speculative verification)."""
    if family == "decode":
        return Batch(q_lens=(1,) * len(contexts), kv_lens=contexts, num_decode=len(contexts))
    q_lens = tuple(min(n, 2 + 4 * i) for i, n in enumerate(contexts))
    return Batch(q_lens=q_lens, kv_lens=contexts, num_decode=0, **changes)


def check(family, problem, config, batch, **kwargs):
    report = verify(load_family(family), problem, config, batch, target=V6E, **kwargs)
    assert report.ok, report.problems


# (page size, KV block): whole pages, one page, parts of a page. All but one are slow.
PAGES = [
    pytest.param(128, 128, marks=pytest.mark.slow),
    pytest.param(256, 128, marks=pytest.mark.slow),
    pytest.param(256, 256, marks=pytest.mark.slow),
    pytest.param(48, 144, marks=pytest.mark.slow),
    pytest.param(32, 512, marks=pytest.mark.slow),
    (2048, 256),
    pytest.param(2048, 2048, marks=pytest.mark.slow),
]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("page_size", "bkv_sz"), PAGES)
def test_pages_and_parts_of_pages(family, page_size, bkv_sz):
    num_pages = 24 if page_size > 32 else 64
    problem = make_problem(**ONE_HEAD, page_size=page_size, pages_per_seq=32, num_pages=num_pages)
    csz = 128 if bkv_sz % 128 == 0 else bkv_sz
    config = config_for(family, bkv_sz=bkv_sz, bkv_csz=csz)
    edge = max(page_size, bkv_sz)
    batch = batch_of(family, (1, edge, edge + 1, bkv_sz - 1))
    check(family, problem, config, batch)


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("features", [{"sliding_window": 130}, {"causal": False}])
def test_parts_of_pages_with_features(family, features):
    problem = make_problem(**ONE_HEAD, page_size=512, pages_per_seq=4, num_pages=16, **features)
    batch = batch_of(family, (1, 700, 1030, 513))
    check(family, problem, config_for(family), batch, dma_mode="eager")


def test_pages_behind_the_window_are_poison():
    """So that every test with a window fails when the kernel fetches one of them."""
    batch = Batch(q_lens=(1, 20), kv_lens=(100, 100), num_decode=1)
    pages = batch.pages(make_problem())
    for window, first_pages in ((None, (0, 0)), (40, (3, 2))):
        problem = make_problem(sliding_window=window)
        cache = np.asarray(draw_operands(problem, batch).kv_cache, np.float32)
        for row, first in zip(pages, first_pages, strict=True):
            assert np.isnan(cache[list(row[:first])]).all()
            assert not np.isnan(cache[list(row[first:6])]).any()


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_a_million_tokens_behind_a_window(family):
    """Attention through a window does not know where it is: the same answer far out and near."""
    near, far = 1024 + 37, (1 << 20) - 1024 + 37
    seen_pages = (5, 2, 7, 3)  # of 16 tokens each; the window of 40 spans at most this many
    answers = []
    for kv_len in (near, far):
        problem = make_problem(
            **ONE_HEAD, max_num_tokens=16, max_num_seqs=1, pages_per_seq=1 << 16, num_pages=8,
            sliding_window=40 - 7 * (family == "mixed"),
        )  # fmt: skip
        assert load_family(family).check(problem, config_for(family), V6E) is None
        count = -(-kv_len // 16)
        table = ((0,) * (count - len(seen_pages)) + seen_pages,)
        q_len = 1 if family == "decode" else 4
        batch = Batch(
            q_lens=(q_len,), kv_lens=(kv_len,), num_decode=int(q_len == 1), page_table=table
        )
        operands = draw_operands(problem, batch)
        cache = jnp.asarray(np.random.default_rng(1).standard_normal(problem.kv_cache_shape))
        out, cache = run_interpreted(
            load_family(family), problem, config_for(family), V6E,
            dataclasses.replace(operands, kv_cache=cache.astype("bfloat16").at[0].set(jnp.nan)),
            interpret=pltpu.InterpretParams(uninitialized_memory="nan"),
        )  # fmt: skip
        answers.append((np.asarray(inputs.finish(out, problem), np.float32)[:q_len], cache))
    (near_out, near_cache), (far_out, far_cache) = answers
    assert np.isfinite(near_out).all()
    np.testing.assert_array_equal(near_out, far_out)
    np.testing.assert_array_equal(*(np.asarray(c).view(np.uint8) for c in (near_cache, far_cache)))


@pytest.mark.parametrize("family", ["decode", "prefill", "mixed"])
def test_a_batch_of_padding_alone_changes_nothing(family):
    problem, batch = make_problem(**ONE_HEAD), Batch(q_lens=(), kv_lens=(), num_decode=0)
    check(family, problem, config_for(family), batch, dma_mode="eager")
