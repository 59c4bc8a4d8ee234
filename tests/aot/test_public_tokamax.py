"""tokamax's kernel, out of its wheel: bound, compiled, and its scalars for a batch.

Needs Python 3.12 and jax 0.11.1 or newer; elsewhere its families say so.
"""

import os
from dataclasses import replace

import numpy as np
import pytest
from table_rows import PROBLEM

from rpa_kernels.batch import Batch
from rpa_tune.candidate import Candidate, Status
from rpa_tune.compile.paths import default_cache_dir
from rpa_tune.errors import UsageError
from rpa_tune.evaluate.simulated import SimulatedEvaluator
from rpa_tune.hw.chip import load_chip
from rpa_tune.interop.public.batched import BatchedConfig
from rpa_tune.interop.public.launches import ScheduleTooLongError
from rpa_tune.interop.public.tokamax.families import TOKAMAX
from rpa_tune.interop.public.tokamax.package import PACKAGE, WHEEL
from rpa_tune.workload.workload import WeightedBatch, Workload

pytestmark = [
    pytest.mark.aot,
    pytest.mark.skipif(PACKAGE.unavailable != "", reason=PACKAGE.unavailable or "it runs here"),
    pytest.mark.usefixtures("tokamax_root"),
]
PAGED = replace(
    PROBLEM, page_size=128, pages_per_seq=16, num_pages=128, max_num_tokens=64, max_num_seqs=8
)
DECODE = BatchedConfig(bq_sz=1, bq_c_sz=1, bkv_sz=256, batch_size=2, n_buffer=2)
MIXED = BatchedConfig(bq_sz=16, bq_c_sz=16, bkv_sz=256, batch_size=1, n_buffer=2)
CONFIGS = {"public-tokamax-decode": DECODE, "public-tokamax-mixed": MIXED}
BATCH = Batch(q_lens=(1, 1, 1, 30), kv_lens=(700, 30, 1, 900), num_decode=3)
V6E = load_chip("v6e")


@pytest.fixture(scope="module")
def tokamax_root():
    try:
        return WHEEL.use(default_cache_dir())
    except UsageError as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(f"no tokamax wheel: {error}")


def operands(name, batch, **blocks):
    family = TOKAMAX[name]
    return family.scalar_operands(PAGED, replace(CONFIGS[name], **blocks), V6E, batch)


def test_each_case_gets_the_lengths_of_the_batch_and_a_schedule_of_its_own():
    decode, mixed = (operands(name, BATCH) for name in CONFIGS)
    arrays = BATCH.arrays(PAGED)
    for found in (decode, mixed):
        np.testing.assert_array_equal(found[0], arrays.cu_q_lens)
        cached = found[2][: len(BATCH.q_lens)]
        assert cached.tolist() == [k - q for k, q in zip(BATCH.kv_lens, BATCH.q_lens, strict=True)]
    # Two sequences at a time in blocks of 256 tokens: 3 blocks of the first and 1 of the second
    # are 2 steps or more; 2 query blocks of 16 see 4 KV blocks each.
    steps = {name: steps_of(found) for name, found in zip(CONFIGS, (decode, mixed), strict=True)}
    assert steps == {"public-tokamax-decode": 3, "public-tokamax-mixed": 8}


def steps_of(found):
    (steps,) = [int(a[0]) for i, a in found.items() if i > 4 and a.size == 1]
    return steps


def test_what_a_batch_does_not_have_is_an_empty_schedule():
    only_mixed = Batch(q_lens=(30,), kv_lens=(900,), num_decode=0)
    assert steps_of(operands("public-tokamax-decode", only_mixed)) == 0
    prefill = Batch(
        q_lens=(30,), kv_lens=(900,), num_decode=0, num_prefill=1
    )  # handed over as a mixed one
    assert steps_of(operands("public-tokamax-mixed", prefill)) == 8


def test_a_schedule_that_its_windows_do_not_hold_is_refused():
    long = replace(PAGED, pages_per_seq=1 << 14, num_pages=3 << 14, max_num_seqs=3)
    batch = Batch(q_lens=(1,) * 3, kv_lens=(1 << 21,) * 3, num_decode=3)
    family = TOKAMAX["public-tokamax-decode"]
    with pytest.raises(ScheduleTooLongError, match="room for"):
        family.scalar_operands(long, replace(DECODE, bkv_sz=128, batch_size=1), V6E, batch)


@pytest.mark.parametrize("head_dim", [128, pytest.param(64, marks=pytest.mark.slow)])
def test_both_cases_compile_and_read_the_whole_cache(head_dim):
    problem = replace(PAGED, head_dim=head_dim)
    workload = Workload(
        name="one", source="made up", batches=(WeightedBatch(batch=BATCH, weight=1.0),)
    )
    asked = [
        Candidate(
            family=TOKAMAX[name],
            problem=problem,
            config=config,
            chip=V6E,
            workload=workload.digest,
        )
        for name, config in CONFIGS.items()
    ]
    evaluator = SimulatedEvaluator(num_workers=1, cache_dir=default_cache_dir(), deadline_s=300)
    try:
        answers = list(evaluator.evaluate_all(asked, workload))
    finally:
        evaluator.close()
    for answer in answers:
        assert answer.status is Status.OK, answer.detail
        assert answer.time_us > 0
    assert {a.candidate.family.name for a in answers} == set(CONFIGS)
