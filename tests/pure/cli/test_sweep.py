"""`rpa-tune sweep` from plan to table, with evaluators that answer by formula."""

import importlib.metadata
import io
import json
import os
import re
import signal
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner
from fake_sweep import FormulaEvaluator, make_evaluators, make_study
from rich.console import Console
from table_rows import PROBLEM, default_config, make_row

from rpa_kernels.family import config_to_dict
from rpa_tune.candidate import Correctness, Fidelity, Status
from rpa_tune.cli import sweep_text
from rpa_tune.cli.main import cli
from rpa_tune.cli.progress import RichWatch
from rpa_tune.compile.failure import Reply
from rpa_tune.compile.pool import WorkerPool
from rpa_tune.errors import StoreError, TableError, UsageError
from rpa_tune.store import journal
from rpa_tune.sweep import run as module
from rpa_tune.sweep.oracle import Oracle
from rpa_tune.sweep.watch import Answered, StudyStarted, SweepStarted, WaveStarted
from rpa_tune.tables.reader import load_tables
from rpa_tune.tables.writer import merge_into

TESTS = Path(__file__).resolve().parents[2]
PLAN = """\
chip: v6e
model: llama3-8b
families: [decode]
page_size: 128
workload: {requests: {count: 8, prompt_tokens: 100, output_tokens: 20}, compress: {batches: 2}}
space: {decode: {bkv_sz: [256, 512, 1024], bkv_csz: [256, 512], bq_sz: [8]}}
search: {simulate: 6, wave: 3}
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "plan.yaml").write_text(PLAN)
    monkeypatch.chdir(tmp_path)
    # The tables of this installation would be seeds, and change.
    monkeypatch.setattr(module, "shipped_folder", lambda: tmp_path / "shipped")
    return tmp_path


@pytest.fixture
def evaluators(monkeypatch):
    made = make_evaluators()
    monkeypatch.setattr(module, "make_evaluators", lambda *_: dict(made))
    monkeypatch.setattr(module, "has_tpu", lambda: False)
    return made


def sweep(*arguments):
    return CliRunner().invoke(cli, ["sweep", "plan.yaml", *arguments])


def test_a_sweep_writes_tables_and_says_how_to_use_them(folder, evaluators):
    result = sweep()
    assert result.exit_code == 0, result.output
    rows = list(load_tables([folder / "tuned_tables"]))
    assert len(rows) == 1
    assert rows[0].evidence.num_candidates == 6
    assert 'load_dispatcher(chip="v6e", tables="tuned_tables")' in result.stdout
    digest = rows[0].evidence.workload_digest
    for word in ("speed-up", "bound by", "hbm", "bkv_sz=512", "tuned", "verified", digest):
        assert word in result.stdout, word
    assert (folder / ".rpa-tune" / "plan.jsonl").exists()
    assert all(evaluator.closed for evaluator in evaluators.values())


def test_a_sweep_starts_from_shipped_rows_of_neighbours(folder, evaluators):
    neighbour = replace(PROBLEM, num_q_heads=32, num_kv_heads=8)
    config = default_config(problem=neighbour, bkv_sz=2048, bkv_csz=2048)
    merge_into(folder / "shipped", [make_row(problem=neighbour, configs=[config])])
    assert sweep().exit_code == 0
    asked = [config_to_dict(c.config) for c in evaluators[Fidelity.SIMULATED].asked]
    assert asked[1] == config  # which is outside of the plan's axes
    assert sweep("--store", "other.jsonl").exit_code == 0
    again = [config_to_dict(c.config) for c in evaluators[Fidelity.SIMULATED].asked]
    assert again == [*asked, *asked]  # the row that was written plays no part


def test_runs_with_a_storage_start_alike_whatever_lies_beside_them(folder, evaluators):
    neighbour = replace(PROBLEM, num_q_heads=32, num_kv_heads=8)
    config = default_config(problem=neighbour, bkv_sz=2048, bkv_csz=2048)
    merge_into(folder / "tables of one host", [make_row(problem=neighbour, configs=[config])])
    alone = sweep("--tables", "tables of one host", "--store", "a.jsonl")
    assert alone.exit_code == 0
    assert config in [config_to_dict(c.config) for c in evaluators[Fidelity.SIMULATED].asked]
    evaluators[Fidelity.SIMULATED].asked.clear()
    for name in ("tables of one host", "none"):
        store = ("--tables", name, "--store", f"{name}.jsonl")
        assert sweep("--storage", "share.log", *store).exit_code == 0
    asked = [config_to_dict(c.config) for c in evaluators[Fidelity.SIMULATED].asked]
    assert len(asked) == 6  # the second run found all of its questions answered
    assert config not in asked


def test_plain_lines_when_nobody_is_watching(folder, evaluators):
    result = sweep()
    source, *lines = result.stderr.splitlines()
    assert source.startswith("workload custom: 8 synthetic requests; ")
    assert all(re.match(r"\[ *\d+\.\d s\] v6e/llama3-8b/decode: ", line) for line in lines)
    assert sum(" us; best " in line for line in lines) == 6


def test_a_long_name_does_not_crop_the_verdict(folder, evaluators):
    (folder / "plan.yaml").write_text(
        PLAN.replace("llama3-8b", "gpt-oss-20b").replace("100", "300")
    )
    lines = sweep().stdout.splitlines()
    (header,) = [line for line in lines if "heuristic us" in line]
    assert "v6e/gpt-oss-20b/window 128/decode" in "".join(lines)
    assert header.count("┃") == 8
    assert not [line for line in lines if line.startswith("│") and not line.endswith("│")]


def test_intervals_do_not_crop_the_verdict(folder, evaluators, monkeypatch):
    monkeypatch.setattr(sweep_text, "_time_text", lambda row: "9,289.6\n9,269.4..9,308.7")
    lines = sweep().stdout.splitlines()
    assert any("9,269.4..9,308.7" in line for line in lines)
    assert not [line for line in lines if line.startswith("│") and not line.endswith("│")]


def test_json_is_one_document_on_stdout(folder, evaluators):
    document = json.loads(sweep("--json").stdout)
    study = document["studies"][0]
    assert document["exit_code"] == 0
    assert study["time_us"] <= study["heuristic_us"]
    assert study["row"]["configs"] == [study["config"]]
    assert {"bound_by", "speedup", "verdict", "statuses", "rejected", "stopped"} <= set(study)
    assert len(study["stopped"]) + study["num_evaluated"] >= study["num_feasible"]


def test_a_second_run_asks_nothing_and_fresh_asks_everything(folder, evaluators):
    sweep()
    table = (folder / "tuned_tables/v6e/decode.jsonl").read_bytes()
    asked = len(evaluators[Fidelity.SIMULATED].asked)
    assert asked == 6
    result = sweep()
    assert len(evaluators[Fidelity.SIMULATED].asked) == asked
    assert "(unchanged)" in result.stdout
    sweep("--fresh")
    assert len(evaluators[Fidelity.SIMULATED].asked) == 2 * asked
    assert (folder / "tuned_tables/v6e/decode.jsonl").read_bytes() == table


def test_dry_run_runs_nothing_and_knows_what_is_known(folder, evaluators):
    before = json.loads(sweep("--dry-run", "--json").stdout)["studies"][0]
    assert (before["simulate_at_most"], before["known"]) == (6, 0)
    assert before["seconds"] > 0
    assert before["seconds_are"] == "a guess"
    assert not evaluators[Fidelity.SIMULATED].asked
    assert not (folder / ".rpa-tune").exists()
    sweep()
    after = json.loads(sweep("--dry-run", "--json").stdout)["studies"][0]
    assert (after["known"], after["seconds"]) == (6, 0)
    assert "nothing was run" in sweep("--dry-run").stdout
    (brief,) = json.loads(sweep("--dry-run", "--brief", "--json").stdout)["groups"]
    assert (brief["studies"], brief["rows"], brief["known"]) == (1, 1, 6)
    assert (brief["core_hours"], brief["evaluations"]) == (0, 7)  # six and a check
    assert "1 study for 1 row: at most 0.0 core hours" in sweep("--dry-run", "--brief").stdout
    assert isinstance(sweep("--brief").exception, UsageError)


def test_chip_replaces_the_plans(folder, evaluators):
    assert sweep("--chip", "v5e", "--tables", "mine").exit_code == 0
    assert [row.key.chip for row in load_tables([folder / "mine"])] == ["v5e"]
    result = sweep("--chip", "v5")
    assert isinstance(result.exception, UsageError)
    assert "did you mean" in result.exception.hint


def test_what_is_promoted_is_verified_unless_told_not_to(folder, evaluators):
    assert sweep("--no-verify", "--tables", "a").exit_code == 0
    assert not evaluators[Correctness.INTERPRETED].asked
    result = sweep("--tables", "b")
    assert "verified: made up" in result.stderr
    verified = [row.evidence.verified for name in "ab" for row in load_tables([folder / name])]
    assert verified == ["", "made up"]
    evaluators[Correctness.INTERPRETED].statuses = lambda config: Status.WRONG_ANSWER
    result = sweep("--fresh")
    assert result.exit_code == 3
    assert result.stdout.count("WRONG: DecodeConfig(") == 6


def test_a_spent_budget_is_exit_75_and_says_how_to_go_on(folder, evaluators):
    evaluators[Fidelity.SIMULATED].delay_s = 0.2
    result = sweep("--budget", "0.5s", "--store", "s.jsonl")
    assert result.exit_code == 75, result.output
    assert "budget spent" in result.stderr
    command = "rpa-tune sweep plan.yaml --store s.jsonl --tables tuned_tables --cache "
    assert command in result.stderr
    evaluators[Fidelity.SIMULATED].delay_s = 0.0
    assert sweep("--store", "s.jsonl").exit_code == 0
    assert len(evaluators[Fidelity.SIMULATED].asked) == 6
    bad = sweep("--budget", "5 parsecs")
    assert isinstance(bad.exception, UsageError)


def test_nothing_that_works_is_exit_3_with_the_reasons(folder, evaluators):
    evaluators[Fidelity.SIMULATED].statuses = lambda config: Status.OUT_OF_MEMORY
    result = sweep()
    assert result.exit_code == 3
    assert "no config works" in result.stdout
    assert "out_of_memory" in result.stdout
    assert not (folder / "tuned_tables").exists()


def test_a_second_sweep_on_the_same_store_is_refused(folder, evaluators):
    with journal.Journal(folder / ".rpa-tune" / "plan.jsonl"):
        result = sweep()
    assert isinstance(result.exception, StoreError)
    assert "--store" in result.exception.hint


PROGRAM = textwrap.dedent("""
    import signal
    from pathlib import Path
    from fake_sweep import make_evaluators
    from rpa_tune.cli import main
    from rpa_tune.sweep import run as sweep
    made = make_evaluators(delay_s=0.3)
    sweep.make_evaluators = lambda *_: made
    sweep.shipped_folder = lambda: Path("shipped")
    # A shell's background jobs, CI's perhaps, begin with the signal ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    main.main(["sweep", "plan.yaml"])
""")


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_and_a_batch_system_end_it_cleanly_and_it_says_how_to_go_on(folder, evaluators, how):
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True, env={**os.environ, "PYTHONPATH": str(TESTS)},
    ) as process:  # fmt: skip
        for line in process.stderr:
            if " us; best " in line:
                process.send_signal(how)
                break
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "Traceback" not in err
    assert "interrupted" in err
    assert "resume with: rpa-tune sweep plan.yaml" in err
    kept = journal.read(folder / ".rpa-tune" / "plan.jsonl").evaluations
    simulated = [e for e in kept if e.fidelity is Fidelity.SIMULATED]
    assert 1 <= len(simulated) < 6
    sweep()
    assert len(evaluators[Fidelity.SIMULATED].asked) == 6 - len(simulated)


def test_bad_plans_exit_with_2_and_the_line(folder):
    (folder / "plan.yaml").write_text(PLAN.replace("v6e", "v66"))
    run = subprocess.run(
        [sys.executable, "-m", "rpa_tune", "sweep", "plan.yaml"], capture_output=True, text=True
    )
    assert run.returncode == 2
    assert run.stderr == (
        "error: unknown chip 'v66'\n  in plan.yaml:1\n"
        "hint: did you mean v6e? known: v4, v5e, v5p, v6e, v7x\n"
    )


TWO_CHIPS = PLAN.replace("chip: v6e", "chip: [v6e, v5e, v7x]")


def test_without_a_tpu_nothing_is_measured_and_the_output_says_so(folder, evaluators):
    assert "Nothing was measured: this host has no TPU." in sweep().stdout
    assert json.loads(sweep("--json").stdout)["measuring"]["reason"] == "this host has no TPU"
    (folder / "plan.yaml").write_text(PLAN.replace("simulate: 6", "simulate: 6, measure: 0"))
    assert "Nothing was measured: the plan asks for no measurements." in sweep().stdout


DEVICE = {
    "platform": "tpu", "device_kind": "TPU v6 lite", "num_devices": 4, "num_hosts": 1,
    "coords": [0, 0, 0], "flags": {"LIBTPU_INIT_ARGS": "--some"}, "chip": "v6e",
}  # fmt: skip


class FakePool:
    def __init__(self, value):
        self.value = value
        self.closed = False

    def map_unordered(self, function, arguments, *, deadline_s=None):
        yield Reply(index=0, seconds=0.0, value=self.value)

    def close(self):
        self.closed = True


def test_on_a_tpu_host_the_best_are_measured_and_the_output_says_on_what(
    folder, evaluators, monkeypatch
):
    made = FormulaEvaluator(Fidelity.MEASURED, scale=1.1)
    monkeypatch.setattr(module, "has_tpu", lambda: True)
    monkeypatch.setattr(module, "device_pool", lambda: FakePool(DEVICE))
    with_it = {**evaluators, Fidelity.MEASURED: made}
    monkeypatch.setattr(module, "make_evaluators", lambda *args: with_it if args[3] else evaluators)
    result = sweep()
    assert result.exit_code == 0, result.output
    assert 4 <= len(made.asked) <= 5
    assert made.closed
    assert "Expected time of one launch over the workload, measured" in result.stdout
    assert "on a TPU v6 lite (4 devices, 1 hosts, at [0, 0, 0])" in result.stdout
    assert "LIBTPU_INIT_ARGS=--some" in result.stdout
    assert "measured at 1.10x their simulated time (median), rank correlation 1.00" in result.stdout
    (row,) = load_tables([folder / "tuned_tables"])
    assert row.evidence.fidelity == "measured"
    study = json.loads(sweep("--json").stdout)["studies"][0]
    assert study["agreement"]["regret_pct"] == 0.0


def test_a_tpu_that_the_plan_does_not_name_measures_nothing(folder, evaluators, monkeypatch):
    pool = FakePool(DEVICE)
    monkeypatch.setattr(module, "has_tpu", lambda: True)
    monkeypatch.setattr(module, "device_pool", lambda: pool)
    result = sweep("--chip", "v5e")
    assert result.exit_code == 0
    assert "this TPU is a v6e, which the plan does not name" in result.stdout
    assert pool.closed


def test_shards_and_a_last_run_write_the_tables(folder, evaluators):
    (folder / "plan.yaml").write_text(TWO_CHIPS)
    for shard in ("1/2", "2/2"):
        result = sweep("--shard", shard)
        assert result.exit_code == 0, result.output
        assert f"Shard {shard} is done" in result.stdout
        assert not (folder / "tuned_tables").exists()
    asked = len(evaluators[Fidelity.SIMULATED].asked)
    assert asked == 3 * 6
    assert sweep().exit_code == 0
    assert len(evaluators[Fidelity.SIMULATED].asked) == asked  # the last run asks nothing
    assert len(list(load_tables([folder / "tuned_tables"]))) == 3
    assert sorted(p.name for p in (folder / ".rpa-tune").glob("*.jsonl")) == [
        "plan.1-of-2.jsonl", "plan.2-of-2.jsonl", "plan.jsonl",
    ]  # fmt: skip
    assert "does not match the shards" in str(sweep("--shard", "1/3").exception)


def test_the_last_run_finishes_what_a_dead_shard_left(folder, evaluators):
    (folder / "plan.yaml").write_text(TWO_CHIPS)
    calm = sweep("--shard", "1/2", "--store", "calm.jsonl").exit_code
    calm += sweep("--shard", "2/2", "--store", "calm.jsonl").exit_code
    calm += sweep("--store", "calm.jsonl", "--tables", "calm").exit_code
    assert calm == 0
    sweep("--shard", "1/2")
    with journal.Journal(folder / ".rpa-tune" / "plan.2-of-2.jsonl"):
        busy = sweep()
    assert "shard 2/2 is still being written" in str(busy.exception)
    assert sweep().exit_code == 0
    tables = [list(load_tables([folder / name])) for name in ("calm", "tuned_tables")]
    assert [(r.key, r.configs) for r in tables[0]] == [(r.key, r.configs) for r in tables[1]]


def test_runs_with_a_storage_take_what_the_others_know(folder, evaluators):
    assert sweep("--storage", "share.log", "--store", "a.jsonl").exit_code == 0
    asked = len(evaluators[Fidelity.SIMULATED].asked)
    result = sweep("--storage", "share.log", "--store", "b.jsonl", "--tables", "other")
    assert result.exit_code == 0
    assert len(evaluators[Fidelity.SIMULATED].asked) == asked
    tables = [folder / name / "v6e/decode.jsonl" for name in ("tuned_tables", "other")]
    assert tables[0].read_bytes() == tables[1].read_bytes()
    refused = sweep("--storage", "share.log", "--fresh").exception
    assert isinstance(refused, UsageError)
    evaluators[Fidelity.SIMULATED].delay_s = 0.2
    url = "--storage share.log"
    spent = sweep("--storage", "share.log", "--store", "c.jsonl", "--chip", "v5e",
                  "--budget", "0.5s")  # fmt: skip
    assert spent.exit_code == 75
    assert url in spent.stderr


def test_events_for_machines_are_json_lines_with_stable_names(folder, evaluators):
    result = sweep("--json")
    events = [json.loads(line) for line in result.stderr.splitlines()]
    assert events[0]["schema"] == "rpa-events/1"
    assert {event["event"] for event in events} == {
        "sweep_started", "study_started", "wave_started", "answered", "study_finished",
    }  # fmt: skip
    last = [event for event in events if event["event"] == "answered"][-1]
    assert set(last) == {
        "event", "elapsed_s", "study", "fidelity", "status", "detail", "config", "time_us",
        "best_us", "heuristic_us", "studies_finished", "num_studies", "evaluations",
        "evaluations_left", "rate_per_s", "left_s",
    }  # fmt: skip
    assert events[-1]["evaluations_left"] == 0
    assert events[-1]["studies_finished"] == events[-1]["num_studies"] == 1
    documented = (TESTS.parent / "docs" / "events.md").read_text()
    assert all(f"`{name}`" in documented for event in events for name in event)


def test_tables_that_cannot_be_written_are_found_out_before_anything_is_asked(folder, evaluators):
    (folder / "file").write_text("")
    result = sweep("--tables", "file/tables")
    assert isinstance(result.exception, TableError)
    assert "file is no folder" in result.exception.hint
    assert not evaluators[Fidelity.SIMULATED].asked
    assert sweep("--tables", "new/tables").exit_code == 0
    assert list(load_tables([folder / "new" / "tables"]))


def test_what_goes_on_is_the_command_that_was_given(folder, evaluators, monkeypatch):
    monkeypatch.setattr(Oracle, "_check", raise_interrupt)
    result = sweep("--workers", "2", "--no-verify", "--fresh")
    assert result.exit_code == 130
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("interrupted")]
    command = line.partition("resume with: ")[2]
    assert command.startswith("rpa-tune sweep plan.yaml --workers 2 --store ")
    assert "--no-verify" in command
    assert "--fresh" not in command


@pytest.mark.parametrize("option", ["--executor", "--engine"])
def test_the_executor_has_an_old_spelling_that_is_not_shown(folder, monkeypatch, option):
    pools = []

    def connect(**given):
        pools.append(given)
        return WorkerPool(num_workers=1)

    monkeypatch.setattr("rpa_tune.cli.sweep.RayPool", connect)
    result = sweep(option, "Ray", "--dry-run")
    assert result.exit_code == 0, result.output
    assert len(pools) == 1
    text = sweep("--help").stdout
    assert "--executor [local|ray]" in text
    assert "--engine" not in text


def with_optuna(monkeypatch, version):
    """The installation as if it had another version of optuna."""
    installed = importlib.metadata.version
    monkeypatch.setattr(
        importlib.metadata, "version",
        lambda package: version if package == "optuna" else installed(package),
    )  # fmt: skip


def test_a_search_is_not_resumed_under_another_version_of_its_sampler(
    folder, evaluators, monkeypatch
):
    plan = PLAN.replace("wave: 3", "wave: 3, sampler: tpe")
    (folder / "plan.yaml").write_text(plan)
    with_optuna(monkeypatch, "4.9.0")
    assert sweep("--budget", "0.001s").exit_code == 75
    with_optuna(monkeypatch, "5.0.0")
    for arguments in ((), ("--dry-run",), ("--shard", "1/2")):
        refused = sweep(*arguments).exception
        assert isinstance(refused, StoreError), arguments
        assert "began with optuna 4.9.0; optuna 5.0.0 would choose other candidates" in str(refused)
        assert "--fresh" in refused.hint
        assert ".rpa-tune/plan.jsonl" in refused.where
    assert sweep("--store", "other.jsonl").exit_code == 0
    (folder / "plan.yaml").write_text(PLAN)  # kriging, which no version of optuna changes
    assert sweep().exit_code == 0
    (folder / "plan.yaml").write_text(plan)
    assert sweep("--fresh").exit_code == 0
    assert sweep().exit_code == 0  # what it began itself


def test_shards_of_other_versions_of_the_sampler_are_not_finished(folder, evaluators, monkeypatch):
    (folder / "plan.yaml").write_text(PLAN.replace("wave: 3", "wave: 3, sampler: tpe"))
    with_optuna(monkeypatch, "4.9.0")
    assert sweep("--shard", "1/2").exit_code == 0
    with_optuna(monkeypatch, "5.0.0")
    assert "began with optuna 4.9.0" in str(sweep().exception)


def raise_interrupt(oracle):
    raise KeyboardInterrupt


@pytest.mark.parametrize("name", ["v6e/llama3-8b/decode", "v6e/llama3-405b/page 128/tp 16/decode"])
def test_bars_show_all_their_figures_on_80_columns(name):
    study = make_study(name=name)
    console = Console(width=80, file=io.StringIO(), force_terminal=True, color_system=None)
    watch = RichWatch(console)
    with watch:
        watch.tell(SweepStarted(studies=[study] * 120))
        watch.tell(StudyStarted(study=study, space=study.space()))
        for fidelity, num, num_known in ((Fidelity.ANALYTICAL, 24, 0), (Fidelity.SIMULATED, 12, 3)):
            wave = WaveStarted(study=study, fidelity=fidelity, num=num, num_known=num_known)
            watch.tell(wave)
        for config in (study.heuristic(), *study.space().configs[:3]):
            answer = make_evaluators()[Fidelity.SIMULATED].answer(study.candidate(config))
            slower = replace(answer, time_us=12 * answer.time_us)
            watch.tell(Answered(study=study, evaluation=slower))
        score = watch.tally.scores[name]
        console.file.seek(0)
        console.file.truncate()
        watch._progress.refresh()
        shown = console.file.getvalue()
    assert "…" not in shown
    assert " 7/12 " in shown
    assert score.brief() in shown
    assert f"{score.heuristic_us / score.best_us:.2f}x" in score.brief()
    assert "0/120 studies" in shown
