"""What a batch needs at least, counted pair by pair and key by key."""

import dataclasses

import numpy as np
import pytest

from rpa_kernels.batch import Batch
from rpa_kernels.problem import Problem
from rpa_kernels.useful import useful_bytes, useful_flops

# Five query heads: their padding, and that of 100 lanes to 128, is of no use.
PROBLEM = Problem(
    num_q_heads=10, num_kv_heads=2, head_dim=100, page_size=16, max_num_tokens=128,
    max_num_seqs=8, pages_per_seq=16, num_pages=128, kv_dtype="float8_e4m3fn",
)  # fmt: skip
BATCH = Batch(
    q_lens=(1, 1, 32, 32, 5, 40), kv_lens=(1, 200, 32, 100, 5, 240), num_decode=2, num_prefill=2
)


@pytest.mark.parametrize("update", [True, False])
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("reach", [{}, {"sliding_window": 1}, {"sliding_window": 30},
                                   {"attention_chunk_size": 30}], ids=str)  # fmt: skip
@pytest.mark.parametrize("family", ["decode", "prefill", "mixed"])
def test_pairs_and_keys_are_counted_one_by_one(family, reach, causal, update):
    causal = causal or "attention_chunk_size" in reach
    problem = dataclasses.replace(PROBLEM, causal=causal, update_kv_cache=update, **reach)
    pairs = keys = queries = 0
    for seq in BATCH.family_seqs(family):
        q_len, kv_len = BATCH.q_lens[seq], BATCH.kv_lens[seq]
        q_pos, k_pos = np.arange(kv_len - q_len, kv_len)[:, None], np.arange(kv_len)[None]
        sees = np.full((q_len, kv_len), fill_value=True)
        if causal:
            sees &= k_pos <= q_pos
        if window := problem.sliding_window:
            sees &= k_pos > q_pos - window
        if chunk := problem.attention_chunk_size:
            sees &= k_pos // chunk == q_pos // chunk
        pairs += int(sees.sum())
        # A seen key is read once, and a new one is written, too.
        keys += int(sees.any(axis=0).sum()) + (q_len if update else 0)
        queries += q_len
    # q @ K and p @ V, a multiplication and an addition for each of 100 elements and 10 heads.
    assert useful_flops(family, problem, BATCH) == pairs * 2 * 2 * 10 * 100
    # K and V are one byte an element; a query and its output two bytes each.
    assert useful_bytes(family, problem, BATCH) == keys * 2 * 2 * 100 + queries * 2 * 10 * 100 * 2
