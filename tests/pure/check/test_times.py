"""One kernel's time beside its prediction, through JSON and back; and as answers to fit to."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from fake_sweep import make_study

from rpa_tune.candidate import Fidelity
from rpa_tune.check.evidence import measured_answers
from rpa_tune.check.times import KernelTimes, Prediction
from rpa_tune.errors import UsageError

STUDY = make_study()
WORKLOAD = replace(
    STUDY.workload, batches=(replace(STUDY.workload.batches[0], weight=1.0),)
)  # fmt: skip
CANDIDATE = replace(STUDY.candidate(STUDY.space().configs[0]), workload=WORKLOAD.digest)
PREDICTION = Prediction(
    time_us=90.0, interval_us=(80.0, 100.0), schedule_digest="d", bound_by="hbm"
)
TIMES = KernelTimes(
    candidate=CANDIDATE, workload=WORKLOAD, measured_us=100.0, rehearsed_us=None,
    simulated=PREDICTION, spread=0.01, is_steady=True, samples_ns=((1.0, 2.0), (3.0,)),
)  # fmt: skip
REHEARSED = replace(TIMES, measured_us=None, rehearsed_us=5.0)


@pytest.mark.parametrize("times", [TIMES, REHEARSED, replace(TIMES, simulated=None)])
def test_json_and_back(times: KernelTimes) -> None:
    assert KernelTimes.from_dict(json.loads(json.dumps(times.to_dict()))) == times


def test_a_rehearsal_has_no_measured_time_by_any_name() -> None:
    data = REHEARSED.to_dict()
    assert not {"measured_us", "error", "is_inside"} & set(data)
    assert "rehearsed_us" not in TIMES.to_dict()
    assert REHEARSED.error is REHEARSED.is_inside is None


@pytest.mark.parametrize(
    ("us", "inside"), [(80.0, True), (100.0, True), (79.9, False), (100.1, False)]
)
def test_errors_are_of_the_prediction_and_ends_are_inside(us: float, inside: bool) -> None:
    times = replace(TIMES, measured_us=us)
    assert times.error == pytest.approx((90.0 - us) / us)
    assert times.is_inside is inside
    assert replace(times, simulated=None).error is None


@pytest.mark.parametrize("us", [0, -1.0, True, "100", float("nan"), float("inf"), None])
def test_what_is_no_time_is_refused(us: object) -> None:
    with pytest.raises(ValueError, match=r"measured_us=.* must be a number above zero"):
        KernelTimes.from_dict({**TIMES.to_dict(), "measured_us": us})
    predicted = {**PREDICTION.to_dict(), "interval_us": [1.0, us]}
    with pytest.raises(ValueError, match="interval_us="):
        KernelTimes.from_dict({**TIMES.to_dict(), "simulated": predicted})


def test_another_workload_than_the_candidates_is_refused() -> None:
    other = {**TIMES.to_dict(), "workload": STUDY.workload.to_dict()}  # two batches
    with pytest.raises(ValueError, match="not the candidate's one batch"):
        KernelTimes.from_dict(other)


def report(*times: KernelTimes, is_rehearsal: bool = False) -> SimpleNamespace:
    identity = SimpleNamespace(
        is_rehearsal=is_rehearsal, versions={"jax": "1"}, sources={CANDIDATE.family: "k1"}
    )
    return SimpleNamespace(identity=identity, times=[("kernel", one) for one in times])


def test_measured_kernels_are_answers_with_their_batch() -> None:
    unknown = replace(TIMES, simulated=None, is_steady=False)
    answers, workloads = measured_answers(report(TIMES, unknown), Path("c.json"))
    first, second = answers
    assert (first.fidelity, first.time_us, first.batch_us) == (Fidelity.MEASURED, 100.0, (100.0,))
    assert first.metrics == {"is_steady": True, "schedule_digest": "d"}
    assert second.metrics == {"is_steady": False, "schedule_digest": ""}
    assert first.provenance["jax"] == "1"
    assert workloads == {CANDIDATE.workload: WORKLOAD}


def test_a_rehearsal_and_a_check_without_times_are_no_evidence() -> None:
    with pytest.raises(UsageError, match="a rehearsal: its times are a CPU's") as caught:
        measured_answers(report(TIMES, is_rehearsal=True), Path("c.json"))
    assert caught.value.where == "c.json"
    with pytest.raises(UsageError, match="no kernel was measured"):
        measured_answers(report(), Path("c.json"))
