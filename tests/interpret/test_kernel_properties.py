"""What must not change an answer: block sizes, page order, strangers in the batch."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from interpret.kernel_cases import (
    DECODE_BATCH,
    MIXED_BATCH,
    V6E,
    blockwise_config,
    decode_config,
    make_problem,
)
from jax.experimental.pallas import tpu as pltpu

from rpa_kernels import inputs, load_family
from rpa_kernels.verify import draw_operands, run_interpreted

# One KV head: what these properties are about does not depend on heads.
PROBLEM = make_problem(num_q_heads=2, num_kv_heads=1, page_size=32, pages_per_seq=8)
FAMILY_OF = {"decode": DECODE_BATCH, "mixed": MIXED_BATCH}
CONFIGS = {
    "decode": [
        decode_config(),
        decode_config(seqs_per_step=1, num_buffers=2, bq_sz=1),
        decode_config(bkv_sz=256, seqs_per_step=3, num_buffers=4, bq_sz=32),
    ],
    "mixed": [
        blockwise_config(),
        blockwise_config(bq_sz=32, bq_csz=32, bkv_sz=256, mxu_sums=1),
        blockwise_config(bq_sz=64, bkv_sz=256, bkv_csz=256, num_buffers=4),
    ],
}


def run(family, batch, operands, config, problem=PROBLEM):
    interpret = pltpu.InterpretParams(uninitialized_memory="nan")
    out, _ = run_interpreted(
        load_family(family), problem, config, V6E, operands, interpret=interpret
    )
    out = np.asarray(inputs.finish(out, problem).astype(jnp.float32))
    starts = np.concatenate([[0], np.cumsum(batch.q_lens)])
    return [out[starts[i] : starts[i + 1]] for i in batch.family_seqs(family)]


def assert_same(one, other):
    """Equal up to the rounding of bfloat16 probabilities and outputs."""
    for a, b in zip(one, other, strict=True):
        np.testing.assert_allclose(a, b, atol=2.0**-6, rtol=2.0**-6)


@pytest.mark.parametrize("family", ["decode", pytest.param("mixed", marks=pytest.mark.slow)])
def test_block_sizes_do_not_matter(family):
    batch = FAMILY_OF[family]
    operands = draw_operands(PROBLEM, batch)
    first, *others = (run(family, batch, operands, config) for config in CONFIGS[family])
    for other in others:
        assert_same(first, other)


@pytest.mark.slow  # by default test_runs.py draws permutations
@pytest.mark.parametrize("family", ["decode", "mixed"])
def test_page_order_does_not_matter(family):
    batch = FAMILY_OF[family]
    operands = draw_operands(PROBLEM, batch)
    order = np.random.default_rng(3).permutation(PROBLEM.num_pages)
    table = tuple(tuple(int(order[p]) for p in row) for row in batch.pages(PROBLEM))
    moved = dataclasses.replace(batch, page_table=table)
    cache = jnp.zeros_like(operands.kv_cache).at[order].set(operands.kv_cache)
    shuffled = dataclasses.replace(operands, kv_cache=cache, arrays=moved.arrays(PROBLEM))
    config = CONFIGS[family][0]
    one, other = run(family, batch, operands, config), run(family, moved, shuffled, config)
    for a, b in zip(one, other, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("family", ["decode", pytest.param("mixed", marks=pytest.mark.slow)])
def test_a_batch_is_its_sequences(family):
    batch = FAMILY_OF[family]
    operands = draw_operands(PROBLEM, batch)
    config = CONFIGS[family][0]
    together = run(family, batch, operands, config)
    starts = np.concatenate([[0], np.cumsum(batch.q_lens)])
    pages = batch.pages(PROBLEM)
    for place, i in list(enumerate(batch.family_seqs(family)))[1::3]:
        alone = dataclasses.replace(
            batch, q_lens=batch.q_lens[i : i + 1], kv_lens=batch.kv_lens[i : i + 1],
            num_decode=int(family == "decode"), page_table=(pages[i],),
        )  # fmt: skip
        rolled = {
            name: jnp.roll(getattr(operands, name), -int(starts[i]), axis=0)
            for name in ("queries", "keys", "values")
        }
        single = dataclasses.replace(operands, arrays=alone.arrays(PROBLEM), **rolled)
        assert_same([together[place]], run(family, alone, single, config))
