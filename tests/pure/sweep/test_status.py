"""What a store says of a sweep, as values; `tests/pure/cli/test_status.py` has the command."""

from dataclasses import asdict, replace
from pathlib import Path

import pytest
from fake_sweep import FakeInterpreter, FormulaEvaluator, make_study

from rpa_tune.candidate import Fidelity, Status
from rpa_tune.errors import StoreError
from rpa_tune.store.journal import Contents, Journal
from rpa_tune.store.notes import Stopped, StudyNote
from rpa_tune.sweep.status import StoreStatus, read_status

STUDY = make_study()
CONFIGS = STUDY.space().configs
PLAN = STUDY.note()


def answer(config, *, at="2026-01-01T00:00:00+00:00", status=Status.OK, **versions):
    evaluator = FormulaEvaluator(Fidelity.SIMULATED, statuses=lambda c: status)
    made = evaluator.answer(STUDY.candidate(config))
    return replace(made, provenance={**made.provenance, "time": at, **versions})


def check(config, **versions):
    made = FakeInterpreter().answer(STUDY.candidate(config))
    return replace(made, provenance={**made.provenance, **versions})


def status_of(*answers, plans=(), notes=(), files=1, **options):
    contents = {
        Path(f"s{i}.jsonl"): Contents(
            evaluations=tuple(answers[i::files]), end_bytes=0, plans=plans, notes=notes
        )
        for i in range(files)
    }
    status = StoreStatus(contents=contents, running=[])
    return status, status.to_dict(with_stops=options.get("with_stops", False))


def times(*seconds):
    return [f"2026-01-01T{s // 3600:02}:{s // 60 % 60:02}:{s % 60:02}+00:00" for s in seconds]


def test_the_last_answer_counts_across_files_and_times_are_in_order() -> None:
    first = answer(CONFIGS[0], at="2026-01-01T00:00:05+00:00", status=Status.CRASHED)
    again = answer(CONFIGS[0], at="2026-01-01T00:00:09+00:00")
    other = answer(CONFIGS[1], at="2026-01-01T00:00:01+00:00")
    old = answer(CONFIGS[0], at="2026-01-01T00:00:00+00:00", kernel="old")
    status, found = status_of(first, again, other, old)
    assert status.evaluations == [old, other, again]
    assert found["answers"] == 3


def test_bounds_of_older_stores_are_no_answers() -> None:
    bound = FormulaEvaluator(Fidelity.ANALYTICAL).answer(STUDY.candidate(CONFIGS[0]))
    status, found = status_of(bound)
    assert status.evaluations == found["studies"] == []


@pytest.mark.parametrize(
    ("seconds", "rate"),
    [
        ((0,), None),  # one answer has no rate
        ((0, 10, 20, 30), 0.1),
        ((0, 1, 2, 3, 7203, 7213, 7223), 0.1),  # a pause of two hours parts two runs
        ((0, 40, 80, 120), 0.025),  # slow, but steady: no pause
        ((0, 0, 0), None),
    ],
)
def test_the_rate_is_that_of_the_last_run(seconds, rate) -> None:
    answers = [answer(CONFIGS[i], at=at) for i, at in enumerate(times(*seconds))]
    _, found = status_of(*answers, plans=(PLAN,))
    assert found["rate_per_s"] == rate
    left = 12 - len(seconds)
    assert found["evaluations_left"] == left
    assert found["left_s"] == (None if rate is None else -(-left // rate))


def test_only_answers_of_the_planned_versions_count_down_and_have_times() -> None:
    heuristic = STUDY.heuristic()
    today = [answer(heuristic), answer(CONFIGS[1])]
    old = replace(answer(CONFIGS[2], kernel="old"), time_us=0.001)
    _, found = status_of(*today, old, plans=(PLAN,))
    (study,) = found["studies"]
    assert (study["evaluated"], study["of_other_versions"]) == (3, 1)
    assert study["best_us"] == min(a.time_us for a in today)
    assert study["heuristic_us"] == today[0].time_us
    assert study["evaluations_left"] == 10


def test_a_planned_study_without_answers_is_there_and_one_that_was_not_planned_has_no_end() -> None:
    _, found = status_of(plans=(PLAN,))
    (study,) = found["studies"]
    assert (study["study"], study["evaluated"], study["evaluations_left"]) == (STUDY.name, 0, 12)
    assert study["best_us"] is None
    _, found = status_of(answer(CONFIGS[0]))
    assert (found["studies"][0]["name"], found["studies"][0]["evaluations_left"]) == (None, None)
    assert found["left_s"] is None


def test_the_end_of_a_study_says_why_each_stopped() -> None:
    stops = [Stopped(reason=r, detail="d", config=asdict(CONFIGS[0])) for r in ("a", "b", "b")]
    note = StudyNote(name=STUDY.name, study=STUDY.digest, verdict="tuned", stopped=tuple(stops))
    _, found = status_of(answer(CONFIGS[0]), plans=(PLAN,), notes=(note,), with_stops=True)
    (study,) = found["studies"]
    assert (study["verdict"], study["evaluations_left"]) == ("tuned", 0)
    assert list(study["stopped"].items()) == [("b", 2), ("a", 1)]  # the most frequent first
    assert study["stops"] == [asdict(stop) for stop in stops]
    assert found["studies_finished"] == 1
    assert "stops" not in status_of(plans=(PLAN,), notes=(note,))[1]["studies"][0]


def test_checks_of_other_kernels_are_counted_apart() -> None:
    wrong = replace(check(CONFIGS[1]), status=Status.WRONG_ANSWER)
    _, found = status_of(check(CONFIGS[0]), wrong, check(CONFIGS[2], kernel="old"), plans=(PLAN,))
    assert found["verified"] == {"ok": 1, "wrong_answer": 1}
    assert found["verified_of_other_versions"] == 1


def test_one_study_has_all_names_that_it_was_planned_by_once() -> None:
    plans = (PLAN, replace(PLAN, name="other"), replace(PLAN, name=f"third and {PLAN.name}"))
    _, found = status_of(plans=plans)
    assert [study["name"] for study in found["studies"]] == [f"{PLAN.name} and other and third"]


def test_a_store_and_its_shards_are_read_together(tmp_path: Path) -> None:
    store = tmp_path / "s.jsonl"
    with pytest.raises(StoreError, match="no such store") as caught:
        read_status(store)
    assert caught.value.where == str(store)
    with Journal(store) as journal:
        journal.append(answer(CONFIGS[0]))
        status = read_status(store)
        assert status.running == ["s.jsonl"]
    assert read_status(store).running == []
    assert [e.candidate.config for e in read_status(store).evaluations] == [CONFIGS[0]]
