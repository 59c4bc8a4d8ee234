"""Page tables with runs of neighbours, which are copied whole: right, whatever the runs."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from interpret.kernel_cases import (
    DECODE_BATCH,
    MIXED_BATCH,
    PREFILL_BATCH,
    V6E,
    blockwise_config,
    decode_config,
    make_problem,
)
from jax.experimental.pallas import tpu as pltpu

from rpa_kernels import inputs, load_family
from rpa_kernels.ints import cdiv
from rpa_kernels.verify import draw_operands, run_interpreted, verify

BATCHES = {"decode": DECODE_BATCH, "mixed": MIXED_BATCH, "prefill": PREFILL_BATCH}
# Blocks of 8 pages, copied without a branch, and of 16, copied in a loop.
CONFIGS = {"decode": decode_config, "mixed": blockwise_config, "prefill": blockwise_config}


def ascending(count, first):
    return list(range(first, first + count))


def descending(count, first):
    return ascending(count, first)[::-1]


def alternating(count, first):
    """Runs of 3 to 5 pages in turn up and down, in the order 2 1 4 3 ... of where they lie."""
    pages, parts = ascending(count, first), []
    for length in (3, 4, 5, 3, 1):
        part, pages = pages[:length], pages[length:]
        parts.append(part[::-1] if len(parts) % 2 else part)
    order = [1, 0, 3, 2, 4]
    return [page for i in order for page in parts[i]]


def with_table(batch, problem, shape):
    table, first = [], 0
    for kv_len in batch.kv_lens:
        count = cdiv(kv_len, problem.page_size)
        table.append(tuple(shape(count, first)))
        first += count
    return dataclasses.replace(batch, page_table=tuple(table))


# Blocks of whole pages; a gap behind each token in VMEM makes the copies' descriptors strided.
HALF, WHOLE = {"bkv_sz": 128}, {"bkv_sz": 256}
CASES = [
    ("decode", {}, HALF, descending),
    ("decode", {"sliding_window": 40}, {**WHOLE, "strided_copies": 1}, alternating),
    ("mixed", {}, WHOLE, descending),
    ("mixed", {"sliding_window": 70, "causal": False}, HALF, alternating),
    ("mixed", {"update_kv_cache": False, "sliding_window": 100}, WHOLE, descending),
    ("prefill", {"update_kv_cache": False}, HALF, alternating),
]


@pytest.mark.parametrize(("family", "features", "blocks", "shape"), CASES)
def test_runs_are_right(family, features, blocks, shape):
    problem = make_problem(num_q_heads=2, num_kv_heads=1, **features)
    batch = with_table(BATCHES[family], problem, shape)
    config = CONFIGS[family](**blocks)
    report = verify(load_family(family), problem, config, batch, target=V6E, dma_mode="eager")
    assert report.ok, report.problems


@pytest.mark.parametrize("family", [pytest.param("decode", marks=pytest.mark.slow), "mixed"])
def test_any_permutation_of_pages_gives_the_same_output(family):
    problem = make_problem(num_q_heads=2, num_kv_heads=1, sliding_window=90)
    batch, config = BATCHES[family], CONFIGS[family](bkv_sz=256)
    first = with_table(batch, problem, ascending)
    operands, outputs = draw_operands(problem, first), []
    rng = np.random.default_rng(0)
    shapes = [ascending, descending, alternating, lambda n, at: rng.permutation(ascending(n, at))]
    for shape in shapes:
        moved = with_table(batch, problem, lambda n, at, shape=shape: map(int, shape(n, at)))
        order = np.arange(problem.num_pages)
        order[np.concatenate(first.page_table)] = np.concatenate(moved.page_table)
        cache = jnp.zeros_like(operands.kv_cache).at[order].set(operands.kv_cache)
        own = dataclasses.replace(operands, kv_cache=cache, arrays=moved.arrays(problem))
        interpret = pltpu.InterpretParams(uninitialized_memory="nan")
        out, cache = run_interpreted(
            load_family(family), problem, config, V6E, own, interpret=interpret
        )
        outputs.append((np.asarray(inputs.finish(out, problem), np.float32), cache[order]))
    for out, cache in outputs[1:]:
        # Sums of the same terms in another order, rounded to bfloat16.
        np.testing.assert_allclose(out, outputs[0][0], atol=2.0**-6, rtol=2.0**-6)
        # The tokens that were written, and no others.
        np.testing.assert_array_equal(
            np.asarray(cache).view(np.uint8), np.asarray(outputs[0][1]).view(np.uint8)
        )
