"""Entries of the page table past a sequence's last page have no effect, whatever they are.

A serving engine leaves there what it likes: -1, one past the end, pages of another time. The
interpreter refuses addresses past the end, but lets index -1 through (jax 0.10.2 and 0.12.0.1), so
these tests look at the address of every copy themselves.
"""

import contextlib
from dataclasses import replace
from unittest import mock

import jax
import numpy as np
import pytest
from interpret.kernel_cases import V6E, blockwise_config, decode_config, make_problem, make_target

from rpa_kernels import load_family
from rpa_kernels.batch import Batch
from rpa_kernels.verify import verify

# What may lie past the last page of a sequence, by turns; the cache has 64 pages.
PADDING = (-1, 64, 2**31 - 1, -(2**31))
TWO_CORES = make_target(chip="v5p", mxu_size=128, num_cores=2, has_bf16_vector_units=False)


class Hostile(Batch):
    """A batch with `PADDING` in its unused entries, and in the rows of sequences that are not."""

    def arrays(self, problem):
        arrays = Batch.arrays(self, problem)
        table = arrays.page_indices.reshape(problem.max_num_seqs, -1)
        counts = -(-arrays.kv_lens // problem.page_size)
        is_used = np.arange(table.shape[1]) < counts[:, None]
        padding = np.resize(np.asarray(PADDING, np.int32), table.shape)
        return replace(arrays, page_indices=np.where(is_used, table, padding).reshape(-1))


@contextlib.contextmanager
def recorded_addresses():
    """Lists the least index, start, size or stride in the address of every copy."""
    from jax._src.pallas.mosaic.interpret import interpret_pallas_call

    least = []
    start = interpret_pallas_call.dma_start

    def recording(*args, **kwargs):
        # Positions of both jax versions: source and destination transforms.
        numbers = [int(leaf) for leaf in jax.tree.leaves((args[5], args[8]))]
        least.append(min(numbers, default=0))
        return start(*args, **kwargs)

    with mock.patch.object(interpret_pallas_call, "dma_start", recording):
        yield least


# Ends of contexts at page edges and inside; with three items a step, the last step is not full.
BATCHES = {
    "decode": Hostile(q_lens=(1,) * 5, kv_lens=(1, 16, 17, 240, 129), num_decode=5),
    "prefill": Hostile(
        q_lens=(1, 16, 16, 16, 5), kv_lens=(20, 160, 16, 241, 29), num_decode=1, num_prefill=3
    ),
    "mixed": Hostile(q_lens=(1, 1, 20, 4, 17), kv_lens=(20, 128, 20, 63, 150), num_decode=1),
}
CONFIGS = {
    "decode": decode_config(seqs_per_step=3),
    "prefill": blockwise_config(),
    "mixed": blockwise_config(),
}
# Copies one after another and in a loop, whole pages and parts of one; with a window; shared KV.
CASES = {
    "plain": ({}, {}),
    "page_loop": ({}, {"bkv_sz": 256}),
    "parts_of_a_page": ({"page_size": 256, "pages_per_seq": 3}, {}),
    "window": ({"sliding_window": 40}, {}),
    "shared_kv": ({"update_kv_cache": False, "causal": False}, {}),
    "fused": ({"head_dim": 64, "has_sinks": True}, {}),
}


def check(family, case, target=V6E, **kwargs):
    shape, fields = CASES[case]
    config = replace(CONFIGS[family], **fields)
    problem = make_problem(**shape, max_num_tokens=64)
    with recorded_addresses() as least:
        report = verify(
            load_family(family), problem, config, BATCHES[family], target=target, **kwargs
        )
    assert report.ok, report.problems
    assert len(least) > 5
    assert min(least) >= 0


@pytest.mark.parametrize("family", BATCHES)
def test_padding_of_the_page_table_has_no_effect(family):
    check(family, "plain")


@pytest.mark.slow
@pytest.mark.parametrize("family", BATCHES)
@pytest.mark.parametrize("case", [case for case in CASES if case != "plain"])
def test_nor_where_pages_are_walked_another_way(family, case):
    check(family, case, dma_mode="eager")


@pytest.mark.slow
@pytest.mark.parametrize("family", BATCHES)
def test_nor_on_two_cores(family):
    check(family, "plain", target=TWO_CORES)
