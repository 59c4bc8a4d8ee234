"""What Optuna's tools show of a sweep; `test_exchange.py` has whole runs."""

from dataclasses import asdict, replace

import pytest
from fake_sweep import FakeInterpreter, FormulaEvaluator, make_study
from optuna.trial import TrialState

from rpa_kernels.family import config_to_dict
from rpa_tune.candidate import Correctness, Fidelity, Status
from rpa_tune.sweep.exchange_text import (
    SEARCH,
    Shown,
    answer_attributes,
    differences,
    state_and_values,
    study_name,
)

STUDY = make_study()
CANDIDATE = STUDY.candidate(STUDY.space().configs[0])
TIMED = FormulaEvaluator(Fidelity.SIMULATED).answer(CANDIDATE)
CHECKED = FakeInterpreter().answer(CANDIDATE)


def test_a_configs_fields_are_parameters_within_their_axes() -> None:
    params, ranges = Shown(STUDY, Fidelity.SIMULATED).params(CANDIDATE.config)
    assert params == asdict(CANDIDATE.config)
    assert {name: (r.low, r.high) for name, r in ranges.items()} == {
        "bkv_sz": (128, 1024), "bkv_csz": (128, 512), "seqs_per_step": (1, 4),
        "num_buffers": (2, 3), "bq_sz": (8, 8), "strided_copies": (0, 0),
    }  # fmt: skip


def test_a_seed_outside_of_its_axis_widens_the_range() -> None:
    outside = replace(CANDIDATE.config, bkv_sz=4096, bq_sz=1)
    _, ranges = Shown(STUDY, Fidelity.SIMULATED).params(outside)
    assert (ranges["bkv_sz"].low, ranges["bkv_sz"].high) == (128, 4096)
    assert (ranges["bq_sz"].low, ranges["bq_sz"].high) == (1, 8)


def test_studies_say_what_they_are_about_and_what_must_be_alike() -> None:
    shown = Shown(STUDY, Fidelity.SIMULATED)
    assert shown.attributes[f"study {STUDY.name}"] == "workload fake: made up"
    assert shown.attributes[SEARCH]["simulate"] == 12
    assert shown.attributes[SEARCH]["sampler"] == STUDY.sampler()
    assert shown.attributes[SEARCH]["heuristic"] == config_to_dict(STUDY.heuristic())
    narrower = Shown(replace(STUDY, overrides={"bq_sz": (16,)}), Fidelity.SIMULATED)
    other = differences(shown.attributes[SEARCH], narrower.attributes[SEARCH])
    assert other.startswith("axes ")
    metrics = [
        Shown(STUDY, f).system_attributes["study:metric_names"] for f in (*Fidelity, *Correctness)
    ]
    assert metrics == [["time us"]] * 3 + [["error, in parts of the tolerance"]]


def test_names_tell_fidelities_and_versions_apart() -> None:
    names = {
        study_name(CANDIDATE, fidelity, stamp)
        for fidelity in (Fidelity.SIMULATED, Fidelity.MEASURED)
        for stamp in (("a", "b"), ("ab", ""), ("a", "c"))
    }
    assert len(names) == 6
    name = study_name(CANDIDATE, Fidelity.SIMULATED, ("a",))
    assert name.startswith(f"{CANDIDATE.title}, simulated ({CANDIDATE.study} ")
    other = STUDY.candidate(STUDY.space().configs[1])
    assert study_name(other, Fidelity.SIMULATED, ("a",)) == name  # another trial of it


def test_a_time_or_an_error_completes_a_trial_and_nothing_else_does() -> None:
    assert state_and_values(TIMED) == (TrialState.COMPLETE, [TIMED.time_us])
    failed = replace(TIMED, status=Status.OUT_OF_MEMORY, time_us=None, detail="VMEM")
    assert state_and_values(failed) == (TrialState.FAIL, None)
    found = replace(CHECKED, metrics={"error_of_tolerance": 0.25, "how": "interpreted"})
    assert state_and_values(found) == (TrialState.COMPLETE, [0.25])
    assert state_and_values(CHECKED) == (TrialState.COMPLETE, [0.0])
    wrong = replace(found, status=Status.WRONG_ANSWER)
    assert state_and_values(wrong)[0] is TrialState.FAIL


def test_attributes_are_the_reason_of_a_failure_or_what_is_worth_a_column() -> None:
    assert answer_attributes(TIMED) == {"bound_by": "hbm"}
    failed = replace(TIMED, status=Status.OUT_OF_MEMORY, detail="VMEM")
    assert answer_attributes(failed) == {"failure": "out_of_memory: VMEM"}
    assert answer_attributes(CHECKED) == {"how": "made up"}


@pytest.mark.parametrize(
    ("ours", "theirs", "text"),
    [
        ({"seed": 0}, {"seed": 0}, ""),
        ({"seed": 1, "wave": 8}, {"seed": 0, "wave": 8}, "seed 1 here, 0 there"),
        ({"b": 1, "a": 2}, {"b": 2, "a": 1}, "a 2 here, 1 there; b 1 here, 2 there"),
        ({"new": 5}, {}, "new 5 here, none there"),
        ({"sampler": {"kind": "tpe", "optuna": "5.0.0"}},
         {"sampler": {"kind": "tpe", "optuna": "4.9.0"}},
         "sampler tpe optuna 5.0.0 here, tpe optuna 4.9.0 there"),
    ],
)  # fmt: skip
def test_differences_are_said_from_both_sides(ours, theirs, text: str) -> None:
    assert differences(ours, theirs) == text
