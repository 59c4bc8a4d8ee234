"""The measured rung: who is measured, who wins then, and what is kept about the simulator."""

from dataclasses import replace

import pytest
from click.testing import CliRunner
from fake_sweep import FormulaEvaluator, make_evaluators, make_study, true_us

from rpa_tune.candidate import Fidelity, Status
from rpa_tune.cli.main import cli
from rpa_tune.cli.sweep_text import _why_none
from rpa_tune.decide.promote import decide
from rpa_tune.store import journal as store
from rpa_tune.sweep.agreement import Agreement, compare
from rpa_tune.sweep.sweep import Sweep
from rpa_tune.sweep.tally import Score
from rpa_tune.sweep.watch import Watch


class Contrary(FormulaEvaluator):
    """Measures that fewer buffers are better, which the simulator does not think."""

    def answer(self, candidate, num_batches=2):
        answer = super().answer(candidate, num_batches)
        if not answer.ok:
            return answer
        us = true_us(candidate.config) * (1.2 if candidate.config.num_buffers == 3 else 1.0)
        return replace(answer, time_us=us, batch_us=(us,) * num_batches)


def run(tmp_path, *, study=None, chip_here="v6e", **measured):
    evaluators = make_evaluators()
    evaluators[Fidelity.MEASURED] = Contrary(Fidelity.MEASURED, **measured)
    with store.Journal(tmp_path / "store.jsonl") as journal:
        sweep = Sweep(evaluators=evaluators, journal=journal, watch=Watch(), chip_here=chip_here)
        (result,) = sweep.run([study or make_study(simulate=12)])
    return result, evaluators[Fidelity.MEASURED]


def test_the_finalists_are_measured_and_the_measured_best_wins(tmp_path):
    result, measured = run(tmp_path)
    search, heuristic = result.study.search, result.study.heuristic()
    asked = [candidate.config for candidate in measured.asked]
    assert search.measure <= len(asked) <= search.measure + 1
    assert heuristic in asked
    assert result.row().evidence.fidelity == "measured"
    assert result.decision.best.time_us == min(a.time_us for a in result.answers)
    assert {a.fidelity for a in result.answers} == {Fidelity.MEASURED}
    assert "halved" in {stop.reason for stop in result.stops}


def test_predicted_against_measured_is_kept_with_the_study(tmp_path):
    result, _ = run(tmp_path)
    agreement = result.agreement
    assert agreement.num_configs == len(result.answers)
    simulated_best = min(result.answers, key=lambda a: true_us(a.candidate.config))
    regret = 100 * (simulated_best.time_us / result.decision.best.time_us - 1)
    assert agreement.regret_pct == pytest.approx(regret, abs=1e-3)
    (note,) = store.read(tmp_path / "store.jsonl").notes
    assert note.name == result.study.name
    assert note.study == result.answers[0].candidate.study
    assert note.agreement["regret_pct"] == agreement.regret_pct
    assert [(s.reason, s.detail) for s in note.stopped] == [
        (s.reason, s.detail) for s in result.stops
    ]
    assert f"cost {agreement.regret_pct:.1f} %" in str(agreement)


def test_nothing_is_measured_twice_and_the_note_is_written_once(tmp_path):
    first, measured = run(tmp_path)
    size = (tmp_path / "store.jsonl").stat().st_size
    again, asked_again = run(tmp_path)
    assert measured.asked
    assert not asked_again.asked
    assert again.decision == first.decision
    assert again.agreement == first.agreement
    assert (tmp_path / "store.jsonl").stat().st_size == size


@pytest.mark.parametrize("why", ["another chip", "none wanted"])
def test_who_is_not_measured(tmp_path, why):
    study = make_study(simulate=12)
    if why == "none wanted":
        study = replace(study, search=replace(study.search, measure=0))
    result, measured = run(tmp_path, study=study, chip_here="v5e" if why[0] == "a" else "v6e")
    assert not measured.asked
    assert result.agreement is None
    assert result.row().evidence.fidelity == "simulated"


def test_a_wrong_answer_on_the_device_is_not_promoted(tmp_path):
    study = make_study(simulate=12)
    study = replace(study, search=replace(study.search, measure=8))
    best = run(tmp_path / "calm", study=study)[0].decision.chosen.candidate.config
    assert best != study.heuristic()
    result, _ = run(
        tmp_path, study=study,
        statuses=lambda c: Status.WRONG_ANSWER if c == best else Status.OK,
    )  # fmt: skip
    assert result.decision.chosen.candidate.config != best
    assert [s.reason for s in result.stops if s.candidate.config == best] == ["wrong_answer"]


def test_when_the_heuristic_is_wrong_on_the_device_there_is_no_row_and_it_is_said_why(tmp_path):
    study = make_study(simulate=12)
    heuristic = study.heuristic()
    result, _ = run(
        tmp_path, study=study,
        statuses=lambda c: Status.WRONG_ANSWER if c == heuristic else Status.OK,
    )  # fmt: skip
    assert (result.row(), result.verdict) == (None, "the heuristic has no time")
    said = _why_none(result)
    assert "the heuristic has no time (wrong_answer: made up: wrong_answer)" in said
    assert "nothing is promoted" in said
    shown = CliRunner().invoke(cli, ["status", str(tmp_path / "store.jsonl")]).stdout
    assert "the heuristic has no time" in shown


def test_finalists_that_fail_on_the_device_make_way_for_the_next(tmp_path):
    study = make_study(simulate=12)
    calm, _ = run(tmp_path / "calm", study=study)
    simulated = [e for e in store.read(tmp_path / "calm" / "store.jsonl").evaluations
                 if e.fidelity is Fidelity.SIMULATED]  # fmt: skip
    ranked = [e.candidate.config for e in sorted(simulated, key=lambda e: e.time_us)]
    worst = set(ranked[: study.search.measure])
    assert study.heuristic() not in worst
    ranked.remove(study.heuristic())

    def statuses(config):
        return Status.RUN_FAILED if config in worst else Status.OK

    result, measured = run(tmp_path, study=study, statuses=statuses)
    asked = {candidate.config for candidate in measured.asked}
    assert asked == {*ranked[: 2 * study.search.measure], study.heuristic()}
    assert result.row().evidence.fidelity == "measured"
    assert result.decision.chosen.candidate.config not in worst
    assert result.agreement.num_configs == len(asked) - len(worst & asked)
    assert len(calm.answers) < len(result.answers)
    again, asked_again = run(tmp_path, study=study, statuses=statuses)
    assert (again.decision, asked_again.asked) == (result.decision, [])


def test_when_all_are_wrong_on_the_device_there_is_no_row_and_it_is_said_why(tmp_path):
    """No simulated time takes the place of a measurement that failed."""
    status = Status.WRONG_ANSWER
    result, measured = run(tmp_path, statuses=lambda config: status)
    simulated = [e for e in store.read(tmp_path / "store.jsonl").evaluations
                 if e.fidelity is Fidelity.SIMULATED]  # fmt: skip
    assert {c.config for c in measured.asked} == {e.candidate.config for e in simulated}
    assert len(measured.asked) == len(simulated)
    assert (result.decision, result.row()) == (None, None)
    best = min(simulated, key=lambda e: e.time_us)
    assert result.simulated_best == best
    said = _why_none(result)
    assert f"no config works on the device, of {len(simulated)} tried" in said
    assert f"{len(simulated)} {status.value}; for example made up" in said
    assert f"{best.candidate.config}, {best.time_us:,.1f} us" in said
    assert "search.measure" in said
    shown = CliRunner().invoke(cli, ["status", str(tmp_path / "store.jsonl")]).stdout
    assert f"no config works on the device ({len(simulated)} {status.value})" in shown


def test_when_the_first_fail_alike_on_the_device_no_more_are_tried(tmp_path):
    study = make_study(simulate=12)
    for _ in range(2):  # and the next run tries the same again
        result, measured = run(tmp_path, study=study, statuses=lambda config: Status.COMPILE_FAILED)
        assert study.search.measure <= len(measured.asked) <= study.search.measure + 1
        assert study.heuristic() in [candidate.config for candidate in measured.asked]
        assert (result.decision, result.row()) == (None, None)
        said = _why_none(result)
        assert "no config works on the device" in said
        assert "all failed with the same error; the next run retries" in said
    calm, measured = run(tmp_path, study=study)
    assert calm.row().evidence.fidelity == "measured"


def test_when_all_run_out_of_memory_none_that_is_larger_is_tried(tmp_path):
    result, measured = run(tmp_path, statuses=lambda config: Status.OUT_OF_MEMORY)
    assert result.row() is None
    reasons = [stop.reason for stop in result.stops]
    simulated = reasons.count("out_of_memory") + reasons.count("dominated")
    assert len(measured.asked) < simulated == 12
    assert len(measured.asked) == reasons.count("out_of_memory")


def answers(times, fidelity):
    study = make_study()
    made = FormulaEvaluator(fidelity)
    return [
        replace(made.answer(study.candidate(config)), time_us=us, batch_us=(us, us))
        for config, us in zip(study.space().configs, times, strict=False)
    ]


@pytest.mark.parametrize(
    ("simulated", "measured", "rank", "regret"),
    [
        ([1.0, 2.0, 3.0], [10.0, 20.0, 30.0], 1.0, 0.0),
        ([3.0, 2.0, 1.0], [10.0, 20.0, 30.0], -1.0, 200.0),
        ([1.0, 2.0, 2.0], [10.0, 20.0, 30.0], 0.866, 0.0),
        ([1.0, 1.0], [10.0, 20.0], None, 0.0),
        ([1.0], [5.0], None, 0.0),
    ],
)
def test_rank_correlation_and_regret(simulated, measured, rank, regret):
    below = {a.candidate.config: a for a in answers(simulated, Fidelity.SIMULATED)}
    found = compare(below, answers(measured, Fidelity.MEASURED), "expected_time")
    assert found.rank_correlation == (rank and pytest.approx(rank, abs=1e-3))
    assert found.regret_pct == regret


def test_what_was_not_simulated_says_nothing_about_the_simulator():
    assert compare({}, answers([1.0], Fidelity.MEASURED), "expected_time") is None


def test_a_noisy_measurement_widens_the_error():
    quiet, noisy = answers([100.0, 103.0], Fidelity.MEASURED)
    assert decide([quiet, noisy], noisy).verdict == "tuned"
    shaky = replace(quiet, metrics={**quiet.metrics, "spread": 0.04})
    decision = decide([shaky, noisy], noisy)
    assert (decision.verdict, decision.error_pct) == ("heuristic", 4.0)


def test_a_better_simulator_does_not_undo_measurements():
    from rpa_tune.store.codec import stamp_of

    (answer,) = answers([1.0], Fidelity.MEASURED)
    other = {**answer.provenance, "simulator": "another"}
    assert stamp_of(other, Fidelity.MEASURED) == stamp_of(answer.provenance, Fidelity.MEASURED)
    assert stamp_of(other) != stamp_of(answer.provenance)
    kernel = {**answer.provenance, "kernel": "another"}
    assert stamp_of(kernel, Fidelity.MEASURED) != stamp_of(answer.provenance, Fidelity.MEASURED)


def test_measured_and_simulated_times_do_not_compete_for_the_best_so_far():
    score = Score(make_study())
    (simulated,), (measured,) = (answers([1.0], f) for f in (Fidelity.SIMULATED, Fidelity.MEASURED))
    score.add(simulated)
    score.add(replace(measured, time_us=2.0))
    assert score.best_us == 2.0


def test_one_config_is_too_few_to_praise_the_simulator():
    """It said "trusting the simulator would have cost 0.0 %" of a single measured config."""
    alone = Agreement(
        num_configs=1, rank_correlation=None, regret_pct=0.0, measured_over_simulated=1.1
    )
    assert "too few to judge" in str(alone)
    assert "cost" not in str(alone)
