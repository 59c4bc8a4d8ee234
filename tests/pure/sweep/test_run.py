"""`rpa_tune.tune`: a sweep as a call, with evaluators that answer by formula."""

from dataclasses import replace

import pytest
from fake_sweep import make_evaluators
from pure.cli.test_sweep import PLAN

import rpa_tune
from rpa_tune.candidate import Fidelity, Status
from rpa_tune.compile.pool import WorkerPool
from rpa_tune.errors import StoreError, UsageError
from rpa_tune.store import journal
from rpa_tune.sweep import run as module
from rpa_tune.sweep.forecast import forecast
from rpa_tune.sweep.job import open_job
from rpa_tune.sweep.watch import Answered, Watch
from rpa_tune.tables.reader import load_tables


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "plan.yaml").write_text(PLAN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(module, "shipped_folder", lambda: tmp_path / "shipped")
    monkeypatch.setattr(module, "has_tpu", lambda: False)
    return tmp_path


@pytest.fixture
def evaluators(monkeypatch):
    made = make_evaluators()
    monkeypatch.setattr(module, "make_evaluators", lambda *_: dict(made))
    return made


def test_results_are_returned_and_nothing_is_printed_or_written_but_the_journal(
    folder, evaluators, capfd
):
    before = {path.name for path in folder.iterdir()}
    outcome = rpa_tune.tune("plan.yaml", workers=1, journal="answers.jsonl")
    (result,) = outcome
    assert len(outcome) == 1
    assert outcome.stopped == ""
    assert result.row().evidence.verified == "made up"
    assert result.row().evidence.time_us == pytest.approx(result.decision.chosen.time_us, abs=1e-3)
    assert len(result.to_frame()) > 6
    assert outcome.num_asked == len(journal.read(folder / "answers.jsonl").evaluations) == 7
    assert outcome.measuring.reason == "this host has no TPU"
    assert outcome.tables == ()
    new = {path.name for path in folder.iterdir()} - before
    assert {name for name in new if not name.endswith(".lock")} == {"answers.jsonl"}
    assert capfd.readouterr() == ("", "")
    assert all(evaluator.closed for evaluator in evaluators.values())


def test_a_plan_in_memory_a_file_and_a_job_are_the_same_sweep(folder, evaluators):
    plan = rpa_tune.load_plan("plan.yaml")
    first = rpa_tune.tune(plan, tables="tables")
    assert [path.name for path in first.tables] == ["decode.jsonl"]
    (row,) = load_tables([folder / "tables"])
    asked = len(evaluators[Fidelity.SIMULATED].asked)
    for same in (folder / "plan.yaml", open_job(plan)):
        again = rpa_tune.tune(same)
        assert again.results[0].row().configs == row.configs
        assert again.num_asked == 0
    assert len(evaluators[Fidelity.SIMULATED].asked) == asked
    other = rpa_tune.tune(replace(plan, chips=("v5e",)), journal="v5e.jsonl")
    assert [result.study.chip.name for result in other] == ["v5e"]


def test_a_spent_budget_is_an_outcome_and_the_same_call_goes_on(folder, evaluators):
    evaluators[Fidelity.SIMULATED].delay_s = 0.2
    plan = rpa_tune.load_plan("plan.yaml")
    spent = rpa_tune.tune(replace(plan, budget_s=0.5))
    assert spent.stopped == "budget spent"
    assert spent.results == ()
    assert 1 <= spent.num_asked < 6
    evaluators[Fidelity.SIMULATED].delay_s = 0.0
    assert rpa_tune.tune(plan).num_asked == 7 - spent.num_asked
    assert len(evaluators[Fidelity.SIMULATED].asked) == 6


class Interrupting(Watch):
    def tell(self, event):
        if isinstance(event, Answered):
            raise KeyboardInterrupt


def test_an_interrupt_is_the_callers_unless_it_asks_for_what_was_decided(folder, evaluators):
    with pytest.raises(KeyboardInterrupt):
        rpa_tune.tune("plan.yaml", watch=Interrupting())
    assert all(evaluator.closed for evaluator in evaluators.values())
    found = rpa_tune.tune("plan.yaml", watch=Interrupting(), returns_when_interrupted=True)
    assert found.stopped == "interrupted"
    assert rpa_tune.tune("plan.yaml").stopped == ""  # the journal is not locked


def test_what_works_nowhere_is_a_result_without_a_row(folder, evaluators):
    evaluators[Fidelity.SIMULATED].statuses = lambda config: Status.OUT_OF_MEMORY
    (result,) = rpa_tune.tune("plan.yaml", tables="tables")
    assert result.row() is None
    assert "out_of_memory" in {stop.reason for stop in result.stops}
    assert not (folder / "tables").exists()


def test_shards_have_journals_of_their_own_and_write_no_tables(folder, evaluators):
    part = rpa_tune.tune("plan.yaml", shard="1/2", tables="tables")
    assert part.job.own.name == "plan.1-of-2.jsonl"
    assert not (folder / "tables").exists()
    rpa_tune.tune("plan.yaml", shard="2/2")
    assert rpa_tune.tune("plan.yaml", tables="tables").num_asked == 0
    assert (folder / "tables").exists()


def test_a_forecast_runs_nothing_and_knows_what_is_known(folder, evaluators):
    (before,) = forecast(open_job("plan.yaml"), num_workers=2)
    assert (before.simulate_at_most, before.known, before.seconds_are) == (6, 0, "a guess")
    assert not evaluators[Fidelity.SIMULATED].asked
    rpa_tune.tune("plan.yaml")
    (after,) = forecast(open_job("plan.yaml"), num_workers=2)
    assert (after.known, after.seconds) == (6, 0)
    (fresh,) = forecast(open_job("plan.yaml"), num_workers=2, fresh=True)
    assert fresh == before


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"workers": 0}, "workers=0 must be an integer of at least 1"),
        ({"workers": 2.0}, "workers=2.0 must be an integer"),
        ({"workers": True}, "workers=True must be an integer"),
        ({"workers": 1, "pool": WorkerPool(num_workers=1)}, "a pool has workers of its own"),
        ({"shard": "3/2"}, "'3/2' is not a shard"),
        ({"fresh": True, "storage": "share.log"}, "--storage shares those of other runs"),
    ],
)
def test_arguments_that_cannot_be_are_refused(folder, evaluators, arguments, complaint):
    with pytest.raises(UsageError, match=complaint):
        rpa_tune.tune("plan.yaml", **arguments)
    assert not evaluators[Fidelity.SIMULATED].asked


def test_plans_and_journals_that_cannot_be_are_refused(folder, evaluators):
    with pytest.raises(UsageError, match="neither a file nor a plan"):
        rpa_tune.tune("no_such_plan")
    with pytest.raises(UsageError, match="a job has its journal"):
        rpa_tune.tune(open_job("plan.yaml"), journal="other.jsonl")
    with journal.Journal(folder / "busy.jsonl"), pytest.raises(StoreError):
        rpa_tune.tune("plan.yaml", journal="busy.jsonl")
