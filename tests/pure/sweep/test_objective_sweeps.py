"""Whole sweeps by other objectives, over weighted workloads, and stopped at every answer."""

import math
from dataclasses import replace

import pytest
from fake_sweep import FormulaEvaluator, make_evaluators, make_study, true_us

from rpa_tune.candidate import Fidelity
from rpa_tune.decide.objective import WORST_REGRET
from rpa_tune.store.journal import Journal
from rpa_tune.sweep.sweep import Sweep
from rpa_tune.sweep.watch import Watch
from rpa_tune.workload.workload import WeightedBatch

SIMULATED = Fidelity.SIMULATED


def batch_us(config):
    """Two batches that want opposite blocks: the second one small ones."""
    small = 10.0 + 4.0 * (math.log2(config.bkv_sz) - 7) ** 2
    return (true_us(config), small)


class TwoBatches(FormulaEvaluator):
    """Answers with a time of each batch, and their mean by the workload's weights."""

    def __init__(self, fidelity, weights, *, scale=1.0):
        super().__init__(fidelity, scale=scale)
        self._weights = weights

    def answer(self, candidate, num_batches=2):
        times = tuple(self.scale * us for us in batch_us(candidate.config))
        mean = sum(w * us for w, us in zip(self._weights, times, strict=True))
        return replace(super().answer(candidate), time_us=mean, batch_us=times)


def weighted_study(first, *, objective="expected_time", simulate=1000):
    study = make_study(simulate=simulate)
    weights = (first, 1 - first)
    batches = tuple(
        WeightedBatch(batch=known.batch, weight=weight)
        for known, weight in zip(study.workload.batches, weights, strict=True)
    )
    return replace(
        study,
        workload=replace(study.workload, batches=batches),
        search=replace(study.search, objective=objective),
    ), weights


def run(path, study, weights):
    evaluators = {
        Fidelity.ANALYTICAL: TwoBatches(Fidelity.ANALYTICAL, weights, scale=0.8),
        SIMULATED: TwoBatches(SIMULATED, weights),
    }
    with Journal(path) as journal:
        sweep = Sweep(evaluators=evaluators, journal=journal, watch=Watch())
        return next(sweep.run([study])), evaluators[SIMULATED].asked


def everything(study):
    return dict.fromkeys([study.heuristic(), *study.space().configs])


@pytest.mark.parametrize("first", [0.02, 0.5, 0.98])
def test_weights_decide_what_is_best(tmp_path, first):
    study, weights = weighted_study(first)
    result, _ = run(tmp_path / "store", study, weights)

    def mean(config):
        return sum(w * us for w, us in zip(weights, batch_us(config), strict=True))

    assert result.decision.best.candidate.config == min(everything(study), key=mean)


def test_the_weights_above_matter():
    """Otherwise the test before could not tell a sweep that ignores them."""
    best = set()
    for first in (0.02, 0.98):
        study, (a, b) = weighted_study(first)
        best.add(min(everything(study), key=lambda c: a * batch_us(c)[0] + b * batch_us(c)[1]))
    assert len(best) == 2


def test_worst_regret_is_least_by_brute_force(tmp_path):
    study, weights = weighted_study(0.5, objective=WORST_REGRET)
    result, _ = run(tmp_path / "store", study, weights)
    configs = everything(study)
    best_us = [min(batch_us(config)[i] for config in configs) for i in range(2)]

    def regret(config):
        return max(us / best for us, best in zip(batch_us(config), best_us, strict=True))

    best = result.decision.best.candidate.config
    assert best == min(configs, key=regret)
    assert best != min(configs, key=lambda c: sum(batch_us(c)))
    assert result.decision.objective == WORST_REGRET
    assert result.row().evidence.workload.endswith("by worst_regret")


@pytest.mark.parametrize("objective", ["expected_time", WORST_REGRET])
def test_a_small_budget_comes_near_the_best_by_either_objective(tmp_path, objective):
    study, weights = weighted_study(0.5, objective=objective, simulate=16)
    whole, _ = weighted_study(0.5, objective=objective)
    result, asked = run(tmp_path / "few", study, weights)
    truth, _ = run(tmp_path / "all", whole, weights)
    assert len(asked) <= 16

    def of(answer):
        times = batch_us(answer.candidate.config)
        if objective == "expected_time":
            return sum(times)
        best = [min(batch_us(c)[i] for c in everything(study)) for i in range(2)]
        return max(us / least for us, least in zip(times, best, strict=True))

    assert of(result.decision.best) <= 1.05 * of(truth.decision.best)


class Killed(BaseException):
    """The power goes."""


class Mortal(FormulaEvaluator):
    """Ends the run at its n-th question."""

    def __init__(self, *, lives):
        super().__init__(SIMULATED)
        self._lives = lives

    def answer(self, candidate, num_batches=2):
        if len(self.asked) > self._lives:
            self.asked.pop()
            raise Killed
        return super().answer(candidate, num_batches)


@pytest.mark.parametrize("sampler", ["kriging", "tpe", "random", "exhaustive"])
def test_killed_at_any_answer_nothing_is_asked_twice_and_the_end_is_the_same(tmp_path, sampler):
    study = make_study(simulate=10, bkv_sz=(256, 512), num_buffers=(2,))
    study = replace(study, search=replace(study.search, sampler=sampler))

    def sweep(path, simulated):
        evaluators = make_evaluators() | {SIMULATED: simulated}
        with Journal(path) as journal:
            return next(Sweep(evaluators=evaluators, journal=journal, watch=Watch()).run([study]))

    calm = FormulaEvaluator(SIMULATED)
    expected = sweep(tmp_path / "calm", calm)
    assert len(calm.asked) >= 10
    for lives in range(len(calm.asked)):
        path = tmp_path / f"killed at {lives}"
        first, second = Mortal(lives=lives), FormulaEvaluator(SIMULATED)
        with pytest.raises(Killed):
            sweep(path, first)
        result = sweep(path, second)
        asked = [candidate.digest for candidate in [*first.asked, *second.asked]]
        assert asked == [candidate.digest for candidate in calm.asked]
        assert result.decision == expected.decision
        assert result.answers == expected.answers
