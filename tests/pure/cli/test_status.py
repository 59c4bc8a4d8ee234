"""`rpa-tune status`: a running store, a dead one, shards, and files that are none."""

import json
from dataclasses import replace

import pytest
from click.testing import CliRunner
from fake_sweep import PROBLEM, FormulaEvaluator, make_evaluators, make_study, stamp

from rpa_tune.candidate import Correctness, Fidelity, Status
from rpa_tune.cli import status as command
from rpa_tune.cli.main import cli
from rpa_tune.errors import StoreError, UsageError
from rpa_tune.store.journal import Journal
from rpa_tune.store.notes import Stopped, StudyNote
from rpa_tune.sweep.status import read_status
from rpa_tune.sweep.sweep import Sweep
from rpa_tune.sweep.watch import Watch


def status(*arguments):
    return CliRunner().invoke(cli, ["status", *map(str, arguments)])


def test_a_running_and_a_dead_store(tmp_path):
    path = tmp_path / "store.jsonl"
    study = make_study()
    configs = study.space().configs[:3]
    failing = FormulaEvaluator(
        Fidelity.SIMULATED,
        statuses=lambda c: Status.OUT_OF_MEMORY if c == configs[2] else Status.OK,
    )
    bound = FormulaEvaluator(Fidelity.ANALYTICAL)  # stores of older versions have them
    with Journal(path) as journal:
        journal.append(bound.answer(study.candidate(configs[0])))
        for config in configs:
            journal.append(failing.answer(study.candidate(config)))
        running = json.loads(status(path, "--json").stdout)
    assert running["running"]
    assert running["writers"] == ["store.jsonl"]
    summary = running["studies"][0]
    assert summary["evaluated"] == 3
    assert summary["statuses"] == {"ok": 2, "out_of_memory": 1}
    assert summary["best_us"] == min(
        failing.answer(study.candidate(c)).time_us for c in configs[:2]
    )
    assert summary["evaluations_left"] is None  # nothing was planned
    with path.open("ab") as file:
        file.write(b'{"torn": ')
    dead = status(path).stdout
    assert "v6e/decode, 8/2 heads of 128" in dead
    assert "1 out_of_memory" in dead
    assert "3 results; no sweep is writing" in dead


class TenSecondsEach(FormulaEvaluator):
    """Answers one after the other, an hour after what came before."""

    def __init__(self, fidelity, start=0):
        super().__init__(fidelity)
        self.number = start

    def answer(self, candidate, num_batches=2):
        self.number += 1
        minute, second = divmod(10 * self.number, 60)
        time = f"2026-01-02T04:{minute:02}:{second:02}+00:00"
        answer = super().answer(candidate, num_batches)
        return replace(answer, provenance={**stamp(candidate.family), "time": time})


@pytest.fixture
def half_done(tmp_path):
    """The first of two studies is done, the second one has 4 of 12 answers."""
    studies = [make_study(), make_study(chip="v5e", name="v5e/fake/decode")]
    path = tmp_path / "store.jsonl"
    evaluators = {**make_evaluators(), Fidelity.SIMULATED: TenSecondsEach(Fidelity.SIMULATED)}
    with Journal(path) as journal:
        sweep = Sweep(evaluators=evaluators, journal=journal, watch=Watch())
        for result in sweep.run(studies):
            first = result
            break
        rest = TenSecondsEach(Fidelity.SIMULATED, start=12)
        known = {e.candidate.digest for e in journal.evaluations()}
        heuristic = studies[1].heuristic()
        configs = [heuristic, *(c for c in studies[1].space().configs if c != heuristic)]
        todo = [c for c in map(studies[1].candidate, configs) if c.digest not in known]
        for candidate in todo[:4]:
            journal.append(rest.answer(candidate))
    return path, studies, first


def test_rate_time_left_and_best_against_the_heuristic(half_done):
    path, studies, first = half_done
    found = json.loads(status(path, "--json").stdout)
    assert (found["studies_finished"], len(found["studies"])) == (1, 2)
    done, begun = found["studies"]
    assert (done["name"], begun["name"]) == (studies[0].name, studies[1].name)
    assert done["verdict"] == first.decision.verdict
    assert done["heuristic_us"] / done["best_us"] > 1
    assert begun["verdict"] is None
    num_known = begun["statuses"]["ok"]
    assert found["evaluations_left"] == begun["evaluations_left"] == 12 - num_known
    assert found["rate_per_s"] == pytest.approx(0.1, rel=0.2)
    assert found["left_s"] == pytest.approx(10 * (12 - num_known), rel=0.2)
    text = status(path).stdout
    assert f"({done['heuristic_us'] / done['best_us']:.2f}x the heuristic)" in text
    assert f"at most {12 - num_known} evaluations left, about" in text


def test_a_study_of_two_models_has_both_names(half_done):
    """They have one problem: the second model's sweep finds the answers of the first."""
    path, studies, _ = half_done
    with Journal(path) as journal:
        journal.append_note(replace(studies[0].note(), name="v6e/other/decode"))
    names = [study["name"] for study in json.loads(status(path, "--json").stdout)["studies"]]
    assert names == [f"{studies[0].name} and v6e/other/decode", studies[1].name]


def test_why_candidates_stopped_is_kept_in_the_store(half_done):
    path, _, first = half_done
    (stopped, _) = [s["stops"] for s in json.loads(status(path, "--json").stdout)["studies"]]
    assert [(s["reason"], s["detail"]) for s in stopped] == [
        (s.reason, s.detail) for s in first.stops
    ]
    assert stopped
    assert "  stopped: " in status(path).stdout


def stop(number, reason, detail):
    config = {"bkv_sz": 128 * number, "bq_sz": 8}
    return Stopped(reason=reason, detail=detail, config=config)


def test_like_reasons_are_said_once_with_their_number(tmp_path):
    study = make_study()
    elsewhere = "not among the 20 candidates that the search evaluated"
    stops = [
        *(stop(n, "bounded", f"lower bound {n}.5 us, best so far 10.0 us") for n in range(11, 15)),
        *(stop(n, "not chosen", elsewhere) for n in range(1550)),
        stop(3, "out_of_memory", "Used 1.5M of 1.0M"),
        stop(4, "compile_failed", "no rule for x"),
    ]
    with Journal(tmp_path / "s.jsonl") as journal:
        journal.append_note(study.note())
        journal.append_note(
            StudyNote(name=study.name, study=study.digest, verdict="tuned", stopped=tuple(stops))
        )
    lines = status(tmp_path / "s.jsonl", "--stops").stdout.splitlines()
    assert [line.strip() for line in lines if line.startswith("  ")][1:] == [
        f"not chosen: 1,550 configs: {elsewhere}",
        "bounded: 4 configs, for example bkv_sz=1408, bq_sz=8: "
        "lower bound 11.5 us, best so far 10.0 us",
        "out_of_memory: bkv_sz=384, bq_sz=8: Used 1.5M of 1.0M",
        "compile_failed: bkv_sz=512, bq_sz=8: no rule for x",
    ]
    (found,) = json.loads(status(tmp_path / "s.jsonl", "--json").stdout)["studies"]
    assert len(found["stops"]) == len(stops)


def test_models_with_one_problem_are_one_study_under_all_their_names(tmp_path):
    path = tmp_path / "s.jsonl"
    names = ["v6e/one/decode", "v6e/two/decode", "v6e/one/decode and v6e/three/decode"]
    with Journal(path) as journal:
        for name in names:
            study = make_study(name=name)
            journal.append_note(study.note())
        journal.append(FormulaEvaluator(Fidelity.SIMULATED).answer(
            study.candidate(study.heuristic())))  # fmt: skip
    (found,) = json.loads(status(path, "--json").stdout)["studies"]
    assert found["name"] == "v6e/one/decode and v6e/two/decode and v6e/three/decode"
    assert found["evaluated"] == 1


def test_studies_whose_windows_differ_are_told_apart(tmp_path):
    path = tmp_path / "s.jsonl"
    with Journal(path) as journal:
        for window in (None, 100):
            study = make_study(problem=replace(PROBLEM, sliding_window=window))
            journal.append(FormulaEvaluator(Fidelity.SIMULATED).answer(
                study.candidate(study.heuristic())))  # fmt: skip
    plain, windowed = (s["study"] for s in json.loads(status(path, "--json").stdout)["studies"])
    assert "page 128, window 100, " in windowed
    assert "window" not in plain


def test_a_study_that_is_planned_anew_has_not_ended(half_done):
    path, studies, _ = half_done
    with Journal(path) as journal:
        journal.append_note(replace(studies[0].note(), stamp=("other", "versions", "", "")))
    done, _ = json.loads(status(path, "--json").stdout)["studies"]
    assert done["verdict"] is None
    assert done["evaluations_left"] == 12


def test_shards_are_merged(tmp_path):
    store = tmp_path / "s.jsonl"
    studies = [make_study(), make_study(chip="v5e", name="v5e/fake/decode")]
    for number in (1, 2):
        path = tmp_path / f"s.{number}-of-2.jsonl"
        with Journal(path) as journal:
            sweep = Sweep(
                evaluators=make_evaluators(), journal=journal, watch=Watch(), num_shards=2
            )
            list(sweep.run(studies, shard=number))
            found = json.loads(status(store, "--json").stdout)
            assert found["writers"] == [path.name]
    found = json.loads(status(store, "--json").stdout)
    assert found["studies_finished"] == len(found["studies"]) == 2
    assert {study["name"] for study in found["studies"]} == {s.name for s in studies}
    assert not found["running"]
    assert "results in 2 files; 2 of 2 studies ended; no sweep is writing" in status(store).stdout


def test_files_that_are_no_stores(tmp_path):
    (tmp_path / "x").write_text("rubbish\n")
    for name in ("none", "x"):
        result = status(tmp_path / name)
        assert isinstance(result.exception, StoreError)


def test_times_of_other_versions_are_not_mixed_with_those_of_today(tmp_path):
    """An older kernel's best time was set against today's heuristic."""
    path, study = tmp_path / "store.jsonl", make_study()
    made = FormulaEvaluator(Fidelity.SIMULATED)
    one, two = (made.answer(study.candidate(c)) for c in study.space().configs[:2])
    older = {**one.provenance, "kernel": "an older one"}
    checked = FormulaEvaluator(Correctness.INTERPRETED).answer(one.candidate)
    with Journal(path) as journal:
        journal.append_note(study.note())
        journal.append(replace(one, time_us=1.0, batch_us=(1.0, 1.0), provenance=older))
        journal.append(replace(checked, time_us=None, batch_us=(), provenance=older))
        document = json.loads(status(path, "--json").stdout)
        assert document["studies"][0]["best_us"] is None
        assert "no time yet" in status(path).stdout
        journal.append(two)
    document = json.loads(status(path, "--json").stdout)
    summary = document["studies"][0]
    assert summary["best_us"] == two.time_us
    assert (summary["evaluated"], summary["of_other_versions"]) == (2, 1)
    assert (document["verified"], document["verified_of_other_versions"]) == ({}, 1)
    assert "1 of other versions left out" in status(path).stdout


def test_watching_ends_with_the_sweep_and_shows_what_came_last(tmp_path, monkeypatch):
    """Two answers, then the writer goes: three looks."""
    path, study = tmp_path / "s.jsonl", make_study()
    configs = iter(study.space().configs)
    made = FormulaEvaluator(Fidelity.SIMULATED)
    journal = Journal(path)
    journal.append_note(study.note())
    slept = []

    def sleep(seconds):
        slept.append(seconds)
        if len(slept) < 3:
            journal.append(made.answer(study.candidate(next(configs))))
        else:
            journal.close()

    monkeypatch.setattr(command.time, "sleep", sleep)
    shown = status(path, "--watch", "--interval", "0.5")
    assert shown.exit_code == 0
    assert slept == [0.5] * 3
    first, second, *_ = " ".join(shown.stdout.split()).split("; ")
    assert first.endswith("2 results")
    assert second == "0 of 1 studies ended"
    assert "no sweep is writing" in " ".join(shown.stdout.split())
    assert "2 evaluated (2 ok)" in " ".join(shown.stdout.split())


def test_ctrl_c_ends_watching_quietly(tmp_path, monkeypatch):
    def interrupt(seconds):
        raise KeyboardInterrupt

    monkeypatch.setattr(command.time, "sleep", interrupt)
    with Journal(tmp_path / "s.jsonl"):
        shown = status(tmp_path / "s.jsonl", "--watch")
    assert shown.exit_code == 0
    assert "a sweep is writing s.jsonl" in " ".join(shown.stdout.split())


def test_studies_under_way_come_before_those_that_have_ended(half_done):
    path, studies, _ = half_done
    document = read_status(path).to_dict(with_stops=False)
    lines = list(command._glance(document))
    assert "studies ended" in lines[0]
    at = {study.name: next(i for i, line in enumerate(lines) if line.startswith(study.name))
          for study in studies}  # fmt: skip
    assert at[studies[1].name] < at[studies[0].name]


def test_watching_is_for_people(tmp_path):
    result = status(tmp_path / "s.jsonl", "--watch", "--json")
    assert isinstance(result.exception, UsageError)
    assert "--json" in str(result.exception)
    result = status(tmp_path / "s.jsonl", "--watch", "--interval", "0")
    assert isinstance(result.exception, UsageError)
    assert isinstance(status(tmp_path / "none", "--watch").exception, StoreError)
