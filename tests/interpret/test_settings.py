"""A caller's own settings of jax change no answer of a call inside its jit; see tests/aot/ too."""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from interpret.kernel_cases import make_problem
from jax.experimental.pallas import tpu as pltpu

import rpa_tune
from rpa_kernels.batch import Batch
from rpa_kernels.verify import draw_operands

PROBLEM = make_problem(max_num_tokens=24, max_num_seqs=4, pages_per_seq=8, num_pages=24)
# Decode, prefill and mixed sequences.
BATCH = Batch(q_lens=(1, 8, 9), kv_lens=(40, 8, 40), num_decode=1, num_prefill=1)


def attend(settings, chip):
    """Output and cache of a program that derives its metadata, as an engine does."""
    operands = draw_operands(PROBLEM, BATCH, seed=0)
    arrays = BATCH.arrays(PROBLEM)
    dispatcher = rpa_tune.load_dispatcher(chip, on_miss="heuristic")
    q_lens = np.diff(arrays.cu_q_lens)

    @jax.jit
    def program(q, k, v, cache, kv_lens, page_indices, q_lens, distribution):
        starts = jnp.concatenate([jnp.zeros(1, jnp.int32), jnp.cumsum(q_lens).astype(jnp.int32)])
        out, cache = rpa_tune.ragged_paged_attention(
            q, k, v, cache, kv_lens, page_indices, starts, distribution, plan=dispatcher,
            sm_scale=PROBLEM.sm_scale, chunk_prefill_size=8, interpret=pltpu.InterpretParams(),
        )  # fmt: skip
        return out, cache, jnp.sum(kv_lens * 0.5)

    with settings():
        out, cache, total = program(
            operands.queries, operands.keys, operands.values, operands.kv_cache, arrays.kv_lens,
            arrays.page_indices, q_lens, arrays.distribution,
        )  # fmt: skip
        rows = np.asarray(out.astype(jnp.float32))[: BATCH.num_tokens]
        return rows, np.asarray(cache.astype(jnp.float32)), total.dtype


@contextlib.contextmanager
def wide_and_precise():
    with jax.enable_x64(True), jax.default_matmul_precision("highest"):
        yield


@pytest.mark.slow
def test_a_callers_settings_change_no_answer():
    """On two cores, whose split XLA computes from the caller's arrays."""
    wanted, found = attend(contextlib.nullcontext, "v5p"), attend(wide_and_precise, "v5p")
    np.testing.assert_array_equal(found[0], wanted[0])
    np.testing.assert_array_equal(found[1], wanted[1])
    # The caller's own arithmetic is as wide as it asked for.
    assert (found[2], wanted[2]) == (jnp.float64, jnp.float32)
