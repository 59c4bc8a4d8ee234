"""Lower bounds: the contract, and how they follow the account and the chip."""

import dataclasses

import pytest
from pure.evaluate.builders import PROBLEM, WORKLOAD, candidate
from pure.evaluate.contract import EvaluatorContract

from rpa_kernels.batch import Batch
from rpa_tune.candidate import Status
from rpa_tune.evaluate.account import account_of
from rpa_tune.evaluate.analytical import AnalyticalEvaluator, Terms, rates_of
from rpa_tune.hw.chip import load_chip
from rpa_tune.llo.machine import load_machine
from rpa_tune.workload.workload import WeightedBatch, Workload

CHIPS = ("v4", "v5e", "v5p", "v6e", "v7x")


class TestAnalyticalIsAnEvaluator(EvaluatorContract):
    def make(self, tmp_path):
        return AnalyticalEvaluator()


def terms(batch, chip="v6e", **config):
    asked = candidate(chip=chip, **config)
    own = Workload(name="one", source="", batches=(WeightedBatch(batch=batch, weight=1.0),))
    account, rates = account_of(asked, own), rates_of(asked.problem, load_chip(chip))
    ((moved, *_),), ((flops, *_),) = account.traffic(asked.config), account.mxu_flops(asked.config)
    return rates.terms(moved, flops)


def test_the_longest_term_bounds_and_the_launch_is_added():
    made = Terms(hbm_us=5.0, copies_us=7.0, mxu_us=2.0, fixed_us=1.0)
    assert made.total_us == 8.0
    assert made.bound_by == "copies"


def test_hbm_time_is_the_bytes_of_the_busier_direction():
    batch = Batch(q_lens=(1,), kv_lens=(128,), num_decode=1)
    kv_token, q_token = 2 * 2 * 128 * 2, 8 * 128 * 2  # bytes: K and V of 2 heads; 8 query heads
    read = 127 * kv_token + kv_token + q_token
    rate = load_machine("v6e").value("read_strided_bytes_per_s")
    assert terms(batch).hbm_us == pytest.approx(1e6 * read / rate)


@pytest.mark.parametrize("chip", CHIPS)
def test_more_context_never_takes_less(chip):
    times = [
        terms(Batch(q_lens=(1,), kv_lens=(kv,), num_decode=1), chip).total_us
        for kv in range(1, 128, 3)
    ]
    assert times == sorted(times)


def test_a_guess_behind_the_bound_is_named():
    (v4,) = AnalyticalEvaluator().evaluate_all([candidate(chip="v4")], WORKLOAD)
    assert "read_linear_bytes_per_s" in v4.metrics["guesses"]
    (v6e,) = AnalyticalEvaluator().evaluate_all([candidate(chip="v6e")], WORKLOAD)
    assert "read_linear_bytes_per_s" not in v6e.metrics["guesses"]


def test_batches_that_do_not_fit_the_problem_are_infeasible_with_the_reason():
    small = dataclasses.replace(PROBLEM, pages_per_seq=4)
    (evaluation,) = AnalyticalEvaluator().evaluate_all([candidate(problem=small)], WORKLOAD)
    assert evaluation.status is Status.INFEASIBLE
    assert "context of 70 tokens" in evaluation.detail


def test_a_family_that_is_never_launched_is_infeasible():
    batch = Batch(q_lens=(4,), kv_lens=(4,), num_decode=0)
    mixed_only = Workload(
        name="mixed only", source="", batches=(WeightedBatch(batch=batch, weight=1.0),)
    )
    (evaluation,) = AnalyticalEvaluator().evaluate_all([candidate(workload=mixed_only)], mixed_only)
    assert evaluation.status is Status.INFEASIBLE
    assert "never launches" in evaluation.detail


def test_a_whole_workload_and_its_share_of_one_family_give_the_same_time():
    both = Workload(
        name="both",
        source="",
        batches=(
            *(dataclasses.replace(wb, weight=wb.weight / 2) for wb in WORKLOAD.batches),
            WeightedBatch(batch=Batch(q_lens=(4,), kv_lens=(4,), num_decode=0), weight=0.5),
        ),
    )
    (whole,) = AnalyticalEvaluator().evaluate_all([candidate(workload=both)], both)
    (share,) = AnalyticalEvaluator().evaluate_all([candidate()], WORKLOAD)
    assert whole.time_us == pytest.approx(share.time_us)
    assert len(whole.batch_us) == 2
