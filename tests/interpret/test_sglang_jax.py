"""The parts of the sglang-jax stand-in that need no wheel."""

import runpy
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rpa_tune.dispatch.dispatcher import load_dispatcher
from rpa_tune.errors import UsageError
from rpa_tune.interop import sglang_jax
from rpa_tune.interop.guard import Guard


def test_a_ragged_page_list_becomes_rows():
    # 1, 3 and 2 pages of 16 tokens, then a padding sequence: rows of 11 / 4 pages, rounded up.
    pages = np.array([9, 4, 5, 6, 7, 8, 0, 0, 0, 0, 0], np.int32)
    starts = jnp.array([0, 16, 64, 96, 96], jnp.int32)
    table = np.asarray(sglang_jax.page_table(jnp.asarray(pages), starts, 16)).reshape(4, 3)
    assert table[0, 0] == 9
    assert table[1].tolist() == [4, 5, 6]
    assert table[2, :2].tolist() == [7, 8]


@pytest.mark.parametrize(
    ("q_lens", "distribution", "expected"),
    [
        ((1, 1, 1, 0), (0, 0, 3), (3, 3, 3)),  # a decode step
        ((1, 1, 1, 1), (0, 0, 2), (2, 2, 2)),  # what is behind the last sequence is not one
        ((5, 1, 1, 0), (0, 3, 3), (0, 3, 3)),  # an extend step
        ((1, 4, 1, 0), (0, 3, 3), (1, 3, 3)),
        ((0, 0, 0, 0), (0, 0, 0), (0, 0, 0)),
    ],
)
def test_leading_sequences_of_one_token_are_decode(q_lens, distribution, expected):
    cu_q_lens = jnp.asarray(np.cumsum([0, *q_lens]), jnp.int32)
    found = sglang_jax.decode_first(cu_q_lens, jnp.asarray(distribution, jnp.int32))
    assert found.dtype == jnp.int32
    assert tuple(found.tolist()) == expected


def test_a_mask_of_drafts_becomes_words():
    # Two sequences of 3 and 2 drafts, contexts of 20 and 17 in pages of 16; a third has none.
    trees = [np.array([[1, 0, 0], [1, 1, 0], [1, 0, 1]]), np.array([[1, 1], [0, 1]])]
    rows = []
    for tree, kv_len in zip(trees, (20, 17), strict=True):
        row = np.ones((len(tree), 32), np.int32)
        row[:, kv_len - len(tree) : kv_len] = tree
        row[:, kv_len:] = 7  # what is behind a context says nothing, and is no 1
        rows.append(row.reshape(-1))
    words = sglang_jax.tree_words(
        jnp.asarray(np.concatenate([*rows, np.ones(8, np.int32)])),
        jnp.array([20, 17, 0], jnp.int32), jnp.array([0, 3, 5, 5], jnp.int32),
        jnp.array([0, 32, 64, 64], jnp.int32), num_drafts=3, num_tokens=9,
    )  # fmt: skip
    assert words.dtype == jnp.int32
    assert words.tolist() == [0b001, 0b011, 0b101, 0b11, 0b10, 0, 0, 0, 0]


def test_drift_is_refused():
    def known(queries, keys, values, kv_cache_fused, kv_lens, page_indices, cu_q_lens,
              cu_kv_lens, distribution, *, sm_scale=1.0, num_queries_per_block=None):  # fmt: skip
        pass

    def masked(queries, keys, values, kv_cache_fused, kv_lens, page_indices, cu_q_lens,
               cu_kv_lens, distribution, custom_mask):  # fmt: skip
        pass

    def split(queries, keys, values, k_cache, v_cache, kv_lens):
        pass

    released = sglang_jax.RELEASED
    released.check(known)
    for function, text in (
        (masked, r"unknown parameters \['custom_mask'\]"), (split, "arrays are"), (None, "is gone"),
    ):  # fmt: skip
        with pytest.raises(UsageError, match=text) as caught:
            released.check(function)
        assert "sglang-jax 0.0.2" in caught.value.hint


def load_fake(monkeypatch, module, bound, function):
    """An engine whose backend binds a function of a module by some name."""
    for name, members in (
        ("sgl_jax", {}), (module, {sglang_jax.FUNCTION: function}),
        (sglang_jax.BACKEND, {bound: function, "FlashAttention": type("FlashAttention", (), {})}),
    ):  # fmt: skip
        fake = types.ModuleType(name)
        fake.__dict__.update(members)
        monkeypatch.setitem(sys.modules, name, fake)


def test_a_loaded_engine_whose_module_was_renamed_is_noticed_at_import(monkeypatch):
    def attention(queries, keys, values):
        pass

    load_fake(monkeypatch, "sgl_jax.srt.kernels.rpa_v4", "ragged_paged_attention_v4", attention)
    for notice in (
        lambda: runpy.run_path(sglang_jax.__file__),
        lambda: sglang_jax.install(load_dispatcher(chip="v6e")),
    ):
        with pytest.raises(UsageError, match="ragged_paged_attention_v4 of test") as caught:
            notice()
        assert sglang_jax.MAIN_BRANCH.module in caught.value.where


def main_function(queries, keys, values, kv_cache_fused, kv_lens, page_indices, cu_q_lens,
                  cu_kv_lens, distribution, custom_mask, attention_sink=None, *, causal=1,
                  sm_scale=1.0, xai_temperature_len=None):  # fmt: skip
    return queries, kv_cache_fused


@pytest.mark.parametrize(
    ("mask", "keywords", "name"),
    [(jnp.ones(8, jnp.int32), {"causal": 0}, "custom_mask"),
     (None, {"xai_temperature_len": 10.0}, "xai_temperature_len")],
)  # fmt: skip
def test_what_is_not_served_is_refused_by_name_or_left_to_the_engine(
    monkeypatch, caplog, mask, keywords, name
):
    main = sglang_jax.MAIN_BRANCH
    int32 = lambda *shape: jnp.zeros(shape, jnp.int32)  # noqa: E731
    new = jnp.zeros((16, 2, 128), jnp.bfloat16)
    arrays = (
        jnp.zeros((16, 4, 128), jnp.bfloat16), new, new,
        jnp.zeros((8, 16, 2, 2, 128), jnp.bfloat16),
        int32(4), int32(8), int32(5), int32(5), int32(3), mask,
    )  # fmt: skip
    load_fake(monkeypatch, main.module, main.bound, main_function)
    backend = sys.modules[sglang_jax.BACKEND]
    stand_in = sglang_jax.install(load_dispatcher(chip="v6e"))
    with pytest.raises(UsageError, match=f"{name}: not served"):
        backend.ragged_paged_attention_v3(*arrays, **keywords)
    assert stand_in.calls == 0
    stand_in.uninstall()
    guard = Guard()
    stand_in = sglang_jax.install(load_dispatcher(chip="v6e"), guard=guard)
    for _ in range(2):
        out, _ = backend.ragged_paged_attention_v3(*arrays, **keywords)
    assert out is arrays[0]  # the engine's own
    assert [name in key for key in guard.refused] == [True]
    lines = [one for one in caplog.records if "the engine's own kernel serves" in one.message]
    assert len(lines) == 1
    stand_in.uninstall()


def test_page_lists_of_the_pools_size_are_refused_on_the_host(monkeypatch):
    main = sglang_jax.MAIN_BRANCH
    load_fake(monkeypatch, main.module, main.bound, main_function)
    owner = sys.modules[sglang_jax.BACKEND].FlashAttention
    owner.get_eagle_forward_metadata = original = lambda self, batch, **rest: batch
    stand_in = sglang_jax.install(load_dispatcher(chip="v6e"))
    assert owner().get_eagle_forward_metadata(7) == 7
    with pytest.raises(UsageError, match="page_indices_capacity=64 is not served"):
        owner().get_eagle_forward_metadata(7, page_indices_capacity=64)
    stand_in.uninstall()
    assert owner.get_eagle_forward_metadata is original


def test_page_lists_that_pathways_cuts_are_refused(monkeypatch):
    main = sglang_jax.MAIN_BRANCH
    load_fake(monkeypatch, main.module, main.bound, main_function)
    before = jax.config.jax_platforms
    jax.config.update("jax_platforms", "proxy,cpu")
    try:
        with pytest.raises(UsageError, match="cuts its page list at the pool's"):
            sglang_jax.install(load_dispatcher(chip="v6e"))
    finally:
        jax.config.update("jax_platforms", before)


def test_without_the_engine_it_says_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "sgl_jax", None)
    with pytest.raises(UsageError, match="sglang-jax does not import"):
        sglang_jax.install(load_dispatcher(chip="v6e"))
