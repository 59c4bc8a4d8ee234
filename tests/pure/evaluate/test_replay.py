"""Recorded answers come back; what was never recorded is an error."""

import pytest
from pure.evaluate.builders import WORKLOAD, candidate
from pure.evaluate.contract import BAD, GOOD, EvaluatorContract

from rpa_tune.candidate import Fidelity
from rpa_tune.evaluate.analytical import AnalyticalEvaluator
from rpa_tune.evaluate.replay import ReplayEvaluator


def recorded():
    return list(AnalyticalEvaluator().evaluate_all([*GOOD, BAD], WORKLOAD))


class TestReplayIsAnEvaluator(EvaluatorContract):
    def make(self, tmp_path):
        return ReplayEvaluator(recorded(), Fidelity.ANALYTICAL)


def test_answers_are_the_recorded_ones_and_counted():
    answers = recorded()
    replay = ReplayEvaluator(answers, Fidelity.ANALYTICAL)
    assert list(replay.evaluate_all([GOOD[1], GOOD[0]], WORKLOAD)) == [answers[1], answers[0]]
    assert replay.num_asked == 2


def test_an_unknown_candidate_is_an_error():
    replay = ReplayEvaluator(recorded(), Fidelity.ANALYTICAL)
    with pytest.raises(KeyError, match="no ANALYTICAL answer"):
        list(replay.evaluate_all([candidate(chip="v5e")], WORKLOAD))


def test_answers_of_another_fidelity_do_not_count():
    replay = ReplayEvaluator(recorded(), Fidelity.SIMULATED)
    with pytest.raises(KeyError):
        list(replay.evaluate_all([GOOD[0]], WORKLOAD))
