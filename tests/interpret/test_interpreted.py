"""The evaluator a sweep asks before it promotes, with the real interpreter and small blocks."""

import dataclasses

import pytest
from interpret.kernel_cases import decode_config, make_problem

from rpa_kernels.batch import Batch
from rpa_tune.candidate import Candidate, Correctness, Status
from rpa_tune.evaluate.interpreted import InterpretedEvaluator, stand_in
from rpa_tune.families.registry import load_family
from rpa_tune.hw.chip import load_chip
from rpa_tune.workload.workload import WeightedBatch, Workload

BATCH = Batch(q_lens=(1, 1), kv_lens=(1, 130), num_decode=2)
WORKLOAD = Workload(
    name="two", source="test", batches=(WeightedBatch(batch=BATCH, weight=1.0),)
)  # fmt: skip


@pytest.fixture(scope="module")
def evaluator():
    made = InterpretedEvaluator(num_workers=1, deadline_s=300)
    yield made
    made.close()


def candidate(**config):
    return Candidate(
        family=load_family("decode"), problem=make_problem(num_q_heads=2, num_kv_heads=1),
        config=decode_config(**config), chip=load_chip("v6e"), workload=WORKLOAD.digest,
    )  # fmt: skip


def test_a_right_config_is_ok_and_a_bad_one_infeasible(evaluator):
    asked = [candidate(), candidate(bkv_sz=100, bkv_csz=100)]
    good, bad = evaluator.evaluate_all(asked, WORKLOAD)
    assert (good.fidelity, good.status, good.time_us) == (Correctness.INTERPRETED, Status.OK, None)
    assert 0 < good.metrics["error_of_tolerance"] <= 1
    assert "2/1 heads, 2 sequences, contexts to 130 tokens" in good.metrics["how"]
    assert bad.status is Status.INFEASIBLE


def test_a_stand_in_has_the_features_and_few_heads():
    problem = make_problem(num_q_heads=40, num_kv_heads=8, has_sinks=True, sliding_window=9)
    used, workload = stand_in(dataclasses.replace(candidate(), problem=problem))
    assert (used.problem.num_q_heads, used.problem.num_kv_heads) == (10, 2)
    assert (used.problem.has_sinks, used.problem.sliding_window) == (True, 9)
    assert used.config == candidate().config
    for weighted in workload.batches:
        assert weighted.batch.misfit(used.problem) is None


def test_a_stand_in_of_latents_has_few_query_heads():
    latent = {"num_kv_heads": 1, "head_dim": 256, "rope_dim": 64}
    for heads, fewer in ((128, 32), (8, 8)):
        problem = make_problem(num_q_heads=heads, **latent)
        changed = dataclasses.replace(
            candidate(), family=load_family("mla-decode"), problem=problem
        )
        used, _ = stand_in(changed)
        assert (used.problem.num_q_heads, used.problem.num_kv_heads) == (fewer, 1)


@pytest.mark.parametrize("name", ["sliding_window", "attention_chunk_size"])
def test_a_stand_in_has_keys_behind_a_window_or_chunk_however_long(name):
    problem = make_problem(**{name: 8192})
    used, workload = stand_in(dataclasses.replace(candidate(), problem=problem))
    assert 1 < getattr(used.problem, name) < workload.max_context_tokens
