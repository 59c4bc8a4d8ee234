"""What every evaluator does, whatever its fidelity. Subclass it and give `make` and `workload`."""

import json

import pytest
from pure.evaluate.builders import WORKLOAD, candidate

from rpa_tune.candidate import Status
from rpa_tune.workload.workload import WeightedBatch, Workload

GOOD = [candidate(), candidate(bkv_sz=64, bkv_csz=64), candidate(bq_sz=16)]
BAD = candidate(bkv_sz=100, bkv_csz=100)


class EvaluatorContract:
    """`make(tmp_path)` returns an evaluator that knows GOOD and BAD on WORKLOAD."""

    METRICS = ("bound_by", "vmem_bytes")

    def make(self, tmp_path):
        raise NotImplementedError

    @pytest.fixture
    def evaluator(self, tmp_path):
        evaluator = self.make(tmp_path)
        yield evaluator
        evaluator.close()

    def test_every_candidate_is_answered_once(self, evaluator):
        asked = [GOOD[0], BAD, *GOOD[1:]]
        answers = list(evaluator.evaluate_all(iter(asked), WORKLOAD))
        assert sorted(e.candidate.digest for e in answers) == sorted(c.digest for c in asked)
        assert {e.fidelity for e in answers} == {evaluator.fidelity}

    def test_a_good_config_has_times_and_plain_metrics(self, evaluator):
        (evaluation,) = evaluator.evaluate_all([GOOD[0]], WORKLOAD)
        assert evaluation.status is Status.OK
        assert evaluation.detail == ""
        assert len(evaluation.batch_us) == len(WORKLOAD.batches)
        mean = 0.75 * evaluation.batch_us[0] + 0.25 * evaluation.batch_us[1]
        assert evaluation.time_us == pytest.approx(mean)
        assert json.loads(json.dumps(evaluation.metrics, allow_nan=False)) == evaluation.metrics
        assert {"mbu", "mfu", "hbm_bytes", *self.METRICS} <= set(evaluation.metrics)
        assert evaluation.metrics["mbu"] > 0
        assert evaluation.provenance["kernel"]

    def test_a_bad_config_is_a_value_with_a_reason(self, evaluator):
        (evaluation,) = evaluator.evaluate_all([BAD], WORKLOAD)
        assert evaluation.status is Status.INFEASIBLE
        assert evaluation.time_us is None
        assert "page_size" in evaluation.detail

    def test_no_candidates_no_answers(self, evaluator):
        assert list(evaluator.evaluate_all([], WORKLOAD)) == []

    def test_another_workload_is_a_bug_and_raises(self, evaluator):
        first = WeightedBatch(batch=WORKLOAD.batches[0].batch, weight=1.0)
        other = Workload(name="other", source="", batches=(first,))
        with pytest.raises(ValueError, match="workload"):
            list(evaluator.evaluate_all([GOOD[0]], other))
