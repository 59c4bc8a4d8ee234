"""What a study came to, for callers, the store and the tables."""

import pytest
from fake_sweep import FormulaEvaluator, make_evaluators, make_study

from rpa_kernels.family import config_to_dict
from rpa_tune.candidate import Fidelity, Status
from rpa_tune.store import notes
from rpa_tune.store.journal import Journal
from rpa_tune.sweep.result import NO_COMPARISON, NOTHING_WORKS, StudyResult
from rpa_tune.sweep.rungs import Stop
from rpa_tune.sweep.sweep import Sweep
from rpa_tune.sweep.watch import Watch

STUDY = make_study()
SPACE = STUDY.space()


def make_result(**fields):
    found = {"decision": None, "answers": (), "stops": (), "num_asked": 0}
    return StudyResult(study=STUDY, space=SPACE, **{**found, **fields})


def answer(status=Status.OK):
    evaluator = FormulaEvaluator(Fidelity.SIMULATED, statuses=lambda config: status)
    return evaluator.answer(STUDY.candidate(SPACE.configs[0]))


@pytest.fixture(scope="module")
def tuned(tmp_path_factory):
    with Journal(tmp_path_factory.mktemp("store") / "s.jsonl") as journal:
        sweep = Sweep(evaluators=make_evaluators(), journal=journal, watch=Watch())
        (result,) = sweep.run([STUDY])
    return result


@pytest.mark.parametrize(
    ("fields", "verdict"),
    [
        ({}, NOTHING_WORKS),
        ({"answers": (answer(Status.CRASHED),)}, NOTHING_WORKS),
        ({"answers": (answer(),)}, NO_COMPARISON),
        ({"answers": (answer(),), "gave_up": "all failed alike"}, NOTHING_WORKS),
    ],
)
def test_without_a_decision_there_is_a_reason_and_no_row(fields, verdict) -> None:
    result = make_result(**fields)
    assert result.verdict == verdict
    assert result.row() is None
    assert result.note().verdict == ""


def test_a_decision_gives_a_row_of_the_study(tuned) -> None:
    assert tuned.verdict == tuned.note().verdict == "tuned"
    row = tuned.row()
    assert 1 <= len(row.configs) <= STUDY.search.configs
    assert all(config in map(config_to_dict, SPACE.configs) for config in row.configs)
    assert (row.key.chip, row.key.family) == ("v6e", "decode")
    assert row.evidence.num_candidates == sum(a.ok for a in tuned.answers)


def test_the_note_has_all_that_stopped_and_survives_the_store(tuned) -> None:
    note = tuned.note()
    assert len(note.stopped) == len(tuned.stops) > 0
    assert note.stopped[0].config == config_to_dict(tuned.stops[0].candidate.config)
    assert (note.name, note.study) == (STUDY.name, STUDY.digest)
    assert notes.decode(notes.encode(note)) == note


def test_a_frame_has_every_candidate_once_and_marks_the_chosen(tuned) -> None:
    frame = tuned.to_frame()
    assert len(frame) == len(tuned.answers) + len(
        {s.candidate.digest for s in tuned.stops} - {a.candidate.digest for a in tuned.answers}
    )
    assert frame["config.bkv_sz"].tolist()[:2] == [
        answer.candidate.config.bkv_sz for answer in tuned.answers[:2]
    ]
    assert frame["is_heuristic"].sum() == 1
    assert frame["is_chosen"].sum() == len(tuned.row().configs)


def test_a_study_that_came_to_nothing_has_a_frame_of_its_stops() -> None:
    stop = Stop(candidate=STUDY.candidate(SPACE.configs[1]), reason="not chosen", detail="x")
    frame = make_result(answers=(answer(Status.CRASHED),), stops=(stop,)).to_frame()
    assert frame["status"].tolist() == ["crashed", "not chosen"]
    assert not frame["is_chosen"].any()
