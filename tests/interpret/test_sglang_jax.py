"""The parts of the sglang-jax stand-in that need no wheel."""

import sys

import jax.numpy as jnp
import numpy as np
import pytest

from rpa_tune.dispatch.dispatcher import load_dispatcher
from rpa_tune.errors import UsageError
from rpa_tune.interop import sglang_jax


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


def test_drift_is_refused():
    def known(queries, keys, values, kv_cache_fused, kv_lens, page_indices, cu_q_lens,
              cu_kv_lens, distribution, *, sm_scale=1.0, num_queries_per_block=None):  # fmt: skip
        pass

    def masked(queries, keys, values, kv_cache_fused, kv_lens, page_indices, cu_q_lens,
               cu_kv_lens, distribution, custom_mask):  # fmt: skip
        pass

    def split(queries, keys, values, k_cache, v_cache, kv_lens):
        pass

    sglang_jax.check_signature(known)
    for function, text in (
        (masked, r"unknown parameters \['custom_mask'\]"), (split, "arrays are"), (None, "is gone"),
    ):  # fmt: skip
        with pytest.raises(UsageError, match=text) as caught:
            sglang_jax.check_signature(function)
        assert "sglang-jax 0.0.2" in caught.value.hint


def test_without_the_engine_it_says_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "sgl_jax", None)
    with pytest.raises(UsageError, match="sglang-jax does not import"):
        sglang_jax.install(load_dispatcher(chip="v6e"))
