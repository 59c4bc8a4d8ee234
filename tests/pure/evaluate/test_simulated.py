"""The simulated evaluator with a stand-in for the compiler: faults, means, the account check."""

import dataclasses

import pytest
from pure.evaluate.builders import (
    WORKLOAD,
    answer,
    candidate,
    mxu_flops_of,
    timeline,
    traffic_of,
)
from pure.evaluate.contract import EvaluatorContract

from rpa_tune.candidate import Status
from rpa_tune.evaluate import simulated
from rpa_tune.evaluate.simulate_task import SimulateTask, find_mismatch, scalar_operands
from rpa_tune.evaluate.simulated import SimulatedEvaluator, summarize

BATCHES = tuple(wb.batch for wb in WORKLOAD.batches)


@pytest.fixture(autouse=True)
def fake_task(monkeypatch):
    monkeypatch.setattr(simulated, "TASK", "pure.evaluate.fake_tasks:simulate")


class TestSimulatedIsAnEvaluator(EvaluatorContract):
    def make(self, tmp_path):
        return SimulatedEvaluator(num_workers=1, cache_dir=tmp_path, scratch_dir=tmp_path)


def test_every_fault_costs_its_candidate_only_and_is_recorded_as_what_it_was(tmp_path):
    expected = {
        2: (Status.OK, ""),
        3: (Status.CRASHED, "SIGABRT"),
        4: (Status.COMPILE_TIMEOUT, "'compile' after 6 s"),
        5: (Status.COMPILE_FAILED, "ZeroDivisionError"),
        6: (Status.RUN_FAILED, "IndexError"),
        7: (Status.RUN_TIMEOUT, "'simulate' after 6 s"),
        8: (Status.CRASHED, "SIGKILL"),
        9: (Status.OUT_OF_MEMORY, "vmem: the compiler needs 9 bytes"),
    }
    evaluator = SimulatedEvaluator(
        num_workers=2, cache_dir=tmp_path, scratch_dir=tmp_path, deadline_s=6.0
    )
    asked = [candidate(num_buffers=n) for n in expected]
    answers = {e.candidate.config.num_buffers: e for e in evaluator.evaluate_all(asked, WORKLOAD)}
    evaluator.close()
    assert {n: e.status for n, e in answers.items()} == {n: s for n, (s, _) in expected.items()}
    for n, (_, said) in expected.items():
        assert said in answers[n].detail
        assert "\n" not in answers[n].detail
    assert answers[9].metrics["compile_s"] == 1.5
    assert "vmem_bytes" not in answers[9].metrics  # the compiler reported none


def test_metrics_say_what_the_compiler_laid_out_and_what_the_account_moves(tmp_path):
    evaluator = SimulatedEvaluator(num_workers=1, cache_dir=tmp_path, scratch_dir=tmp_path)
    (evaluation,) = evaluator.evaluate_all([candidate()], WORKLOAD)
    evaluator.close()
    assert evaluation.metrics["vmem_bytes"] == 4096
    moved = [traffic_of(candidate(), batch).total_bytes for batch in BATCHES]
    assert evaluation.metrics["hbm_bytes"] == pytest.approx(0.75 * moved[0] + 0.25 * moved[1])
    assert evaluation.metrics["total_cycles"] == 2 * 128 + 10


def test_means_are_weighted_and_owners_add_up_to_the_total():
    timelines = [
        timeline(owners={"issue": 100, "launch": 7}, time_us=1.0, bound_by="vector"),
        timeline(
            owners={"issue": 301, "launch": 7},
            time_us=4.0,
            bound_by="hbm",
            unknown={"opcode vfoo": 3},
            guesses=("clock_hz",),
        ),
    ]
    metrics = summarize(timelines, [0.75, 0.25])
    assert metrics["cycles_by_owner"] == {"issue": 150, "launch": 7}
    assert metrics["total_cycles"] == 157
    assert metrics["bound_by"] == "hbm"  # 1.0 us of the mean against 0.75
    assert metrics["unknown"] == {"opcode vfoo": 3}
    assert metrics["guesses"] == ["clock_hz"]


def test_a_schedule_that_moves_what_the_account_says_is_trusted(tmp_path):
    task = SimulateTask(candidate=candidate(), batches=BATCHES, cache_dir=tmp_path)
    assert find_mismatch(candidate(), BATCHES, answer(task).timelines) == ""


@pytest.mark.parametrize("field", ["read_bytes", "write_bytes", "num_copies"])
def test_one_byte_or_copy_more_than_the_account_is_not(tmp_path, field):
    task = SimulateTask(candidate=candidate(), batches=BATCHES, cache_dir=tmp_path)
    first, second = answer(task).timelines
    value = getattr(second, field)
    wrong = dataclasses.replace(second, **{field: value + 1})
    mismatch = find_mismatch(candidate(), BATCHES, (first, wrong))
    assert mismatch.startswith("batch 1: schedule moves ")
    assert f"{value + 1:,}" in mismatch
    assert f"account says {traffic_of(candidate(), BATCHES[1]).read_bytes:,} bytes" in mismatch


def test_copies_alone_are_no_proof_that_a_batch_was_attended(tmp_path):
    task = SimulateTask(candidate=candidate(), batches=BATCHES, cache_dir=tmp_path)
    first, second = answer(task).timelines
    least = mxu_flops_of(candidate(), BATCHES[1])
    # On v6e an MXU does 2 rows a cycle, each with 256 x 256 weights.
    assert second.mxu_busy_cycles == least / (4 * 256**2)
    lazy = dataclasses.replace(second, mxu_busy_cycles=second.mxu_busy_cycles - 1)
    assert find_mismatch(candidate(), BATCHES, (first, lazy)) == (
        f"batch 1: schedule multiplies at most {least - 4 * 256**2:,} FLOPs, "
        f"account says {least:,}: work is skipped"
    )


def test_scalar_operands_are_the_four_arrays_in_launch_order():
    operands = scalar_operands(candidate(), BATCHES[1])
    assert operands[0].tolist() == [100, 9, 0, 0, 0, 0, 0, 0]
    assert operands[1].shape == (64,)
    assert operands[2].tolist() == [0, 1, 10, 10, 10, 10, 10, 10, 10]
    assert operands[3].tolist() == [1, 1, 2]
    assert len(operands) == 4


def test_two_cores_get_the_split_behind_the_four_arrays():
    operands = scalar_operands(candidate(chip="v5p"), BATCHES[1])
    assert operands[4].tolist() == [0, 1, 1]  # one decode sequence: one core has no work
