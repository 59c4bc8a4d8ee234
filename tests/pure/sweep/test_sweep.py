"""The main loop: what it asks, what it decides, and that it wastes nothing."""

from types import SimpleNamespace

import pytest
from fake_sweep import AXES, FakeInterpreter, make_evaluators, make_study, true_us

from rpa_tune.candidate import Correctness, Fidelity, Status
from rpa_tune.store.journal import Journal, read
from rpa_tune.sweep import oracle
from rpa_tune.sweep.oracle import BudgetSpentError
from rpa_tune.sweep.sweep import Sweep
from rpa_tune.sweep.watch import Watch

SIMULATED = Fidelity.SIMULATED


def run(path, study, evaluators, **options):
    with Journal(path) as journal:
        sweep = Sweep(evaluators=evaluators, journal=journal, watch=Watch(), **options)
        return next(sweep.run([study]))


@pytest.fixture
def store(tmp_path):
    return tmp_path / "store.jsonl"


def test_a_small_space_is_searched_exhaustively(store):
    study = make_study(simulate=1000)
    result = run(store, study, make_evaluators())
    best = min(study.space().configs, key=true_us)
    assert result.decision.best.candidate.config == best
    asked = {answer.candidate.config for answer in result.answers}
    assert asked == set(study.space().configs) | {study.heuristic()}
    assert not result.stops


def test_the_heuristic_is_always_evaluated_first(store):
    study = make_study(simulate=3, bkv_sz=(128,))  # the heuristic is not in this space
    assert study.heuristic() not in study.space().configs
    evaluators = make_evaluators()
    result = run(store, study, evaluators)
    assert evaluators[SIMULATED].asked[0].config == study.heuristic()
    assert result.decision.heuristic.candidate.config == study.heuristic()


def test_a_large_space_gets_no_more_than_its_budget_and_finds_a_good_config(store):
    study = make_study(simulate=16)
    assert len(study.space().configs) > 32
    evaluators = make_evaluators()
    result = run(store, study, evaluators)
    assert len(evaluators[SIMULATED].asked) == 16
    best_us = min(true_us(config) for config in study.space().configs)
    assert result.decision.best.time_us <= 1.05 * best_us


def test_a_second_run_asks_nothing_and_decides_the_same(store):
    study = make_study()
    first = run(store, study, make_evaluators())
    evaluators = make_evaluators()
    second = run(store, study, evaluators)
    assert not evaluators[SIMULATED].asked
    assert (second.decision, second.answers) == (first.decision, first.answers)
    assert first.num_asked > 0
    assert second.num_asked == 0


def test_bounds_are_computed_anew_and_not_stored(store):
    study = make_study()
    first, second = make_evaluators(), make_evaluators()
    run(store, study, first)
    found = {evaluation.fidelity for evaluation in read(store).evaluations}
    assert found == {SIMULATED, Correctness.INTERPRETED}
    run(store, study, second)
    for evaluators in (first, second):
        asked = {candidate.config for candidate in evaluators[Fidelity.ANALYTICAL].asked}
        assert asked == {study.heuristic(), *study.space().configs}


def test_the_order_of_answers_does_not_matter(tmp_path):
    study = make_study(simulate=16)
    there = run(tmp_path / "a", study, make_evaluators())
    back = run(tmp_path / "b", study, make_evaluators(reverse=True))
    assert there.decision == back.decision
    assert there.answers == back.answers


def test_bad_candidates_are_answers_with_reasons(store):
    def statuses(config):
        if config.seqs_per_step == 4 and config.num_buffers < 4:  # all but the heuristic
            return Status.OUT_OF_MEMORY
        return Status.COMPILE_TIMEOUT if config.num_buffers == 2 else Status.OK

    study = make_study(simulate=1000)
    result = run(store, study, make_evaluators(statuses=statuses))
    config = result.decision.chosen.candidate.config
    assert config.seqs_per_step < 4
    assert config.num_buffers == 3
    reasons = {stop.reason for stop in result.stops}
    assert {"out_of_memory", "compile_timeout"} <= reasons


def test_nothing_larger_than_what_ran_out_of_memory_is_asked_for(store):
    axes = {**AXES, "bq_sz": (8, 16, 32), "num_buffers": (2, 3, 4)}
    study = make_study(simulate=200, **axes)
    evaluators = make_evaluators(
        statuses=lambda c: Status.OUT_OF_MEMORY if c.bkv_sz >= 256 else Status.OK
    )
    evaluators[Fidelity.ANALYTICAL].scale = 1e-9  # so that nothing is pruned below
    study = make_study(simulate=40, **axes)
    result = run(store, study, evaluators)
    skipped = [stop for stop in result.stops if stop.reason == "dominated"]
    assert skipped
    asked = {candidate.digest for candidate in evaluators[SIMULATED].asked}
    assert not asked & {stop.candidate.digest for stop in skipped}
    assert "made up: out_of_memory" in skipped[0].detail


def test_when_nothing_works_there_is_no_decision(store):
    result = run(store, make_study(), make_evaluators(statuses=lambda c: Status.COMPILE_FAILED))
    assert result.decision is None
    assert {stop.reason for stop in result.stops} >= {"compile_failed"}


def test_a_crash_is_tried_again_before_it_counts(store):
    evaluators = make_evaluators()
    crashed = set()

    def crash_once(config):
        if config in crashed:
            return Status.OK
        crashed.add(config)
        return Status.CRASHED

    disturbed = run(store, make_study(), make_evaluators(statuses=crash_once))
    calm = run(store.with_name("calm"), make_study(), evaluators)
    assert disturbed.decision == calm.decision


def test_a_spent_budget_stops_and_the_next_run_goes_on(store, monkeypatch):
    study = make_study()
    evaluators = make_evaluators()
    clock = SimpleNamespace(monotonic=lambda: len(evaluators[SIMULATED].asked))
    with monkeypatch.context() as patched:
        patched.setattr(oracle, "time", clock)  # a second for each answer
        with pytest.raises(BudgetSpentError):
            run(store, study, evaluators, deadline=3.5)
    asked = len(evaluators[SIMULATED].asked)
    assert 0 < asked < study.search.simulate
    rest = make_evaluators()
    result = run(store, study, rest)
    assert len(rest[SIMULATED].asked) == study.search.simulate - asked
    assert result.decision == run(store.with_name("calm"), study, make_evaluators()).decision


def test_winners_seed_the_studies_after_them(store):
    first, second = make_study(simulate=1000), make_study(chip="v5e", simulate=4, name="second")
    evaluators = make_evaluators()
    with Journal(store) as journal:
        sweep = Sweep(evaluators=evaluators, journal=journal, watch=Watch())
        results = list(sweep.run([first, second]))
    winner = results[0].decision.chosen.candidate.config
    asked = [c.config for c in evaluators[SIMULATED].asked if c.chip.name == "v5e"]
    assert asked[:2] == [second.heuristic(), winner]


def test_studies_of_other_problems_do_not_mix(store):
    with Journal(store) as journal:
        evaluators = make_evaluators()
        sweep = Sweep(evaluators=evaluators, journal=journal, watch=Watch())
        results = list(sweep.run([make_study(), make_study(chip="v7x")]))
    chips = [{answer.candidate.chip.name for answer in result.answers} for result in results]
    assert chips == [{"v6e"}, {"v7x"}]


def test_a_wrong_winner_makes_way_for_the_next_best(store):
    study = make_study(simulate=1000)
    calm = run(store, study, make_evaluators())
    winner = calm.decision.chosen.candidate.config
    assert calm.row().evidence.verified == "made up"

    def statuses(config):
        return Status.WRONG_ANSWER if config == winner else Status.OK

    evaluators = make_evaluators()
    evaluators[Correctness.INTERPRETED] = FakeInterpreter(statuses=statuses)
    result = run(store.with_name("other"), study, evaluators)
    row = result.row()
    assert study.family.config_from_dict(row.configs[0]) != winner
    assert row.evidence.verified == "made up"
    assert "wrong_answer" in {s.reason for s in result.stops if s.candidate.config == winner}
    assert row.evidence.num_candidates == calm.row().evidence.num_candidates - 1
    # A resume verifies nothing again, and decides the same.
    again = make_evaluators()
    assert run(store.with_name("other"), study, again).row() == row
    assert not again[Correctness.INTERPRETED].asked


def test_when_no_config_is_right_nothing_is_promoted(store):
    evaluators = make_evaluators()
    evaluators[Correctness.INTERPRETED] = FakeInterpreter(statuses=lambda c: Status.RUN_FAILED)
    result = run(store, make_study(simulate=3), evaluators)
    assert result.row() is None
    assert "run_failed" in {stop.reason for stop in result.stops}


def test_every_run_asks_once_more_about_a_crash(store):
    study = make_study()
    run(store, study, make_evaluators(statuses=lambda c: Status.CRASHED))
    for still_broken in (True, False):
        status = Status.CRASHED if still_broken else Status.OK
        evaluators = make_evaluators(statuses=lambda c, status=status: status)
        result = run(store, study, evaluators)
        assert len(evaluators[SIMULATED].asked) == (3 if still_broken else study.search.simulate)
    assert result.decision == run(store.with_name("calm"), study, make_evaluators()).decision
