"""`rpa-tune calibrate`: its errors; the fit itself is tested with the simulator."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner
from fake_sweep import FormulaEvaluator
from golden import make
from pure.check.host_of_a_tpu import DEVICE, Host

from rpa_tune.candidate import Fidelity
from rpa_tune.check import run
from rpa_tune.cli.calibrate import calibrate
from rpa_tune.errors import UsageError
from rpa_tune.evaluate import observations
from rpa_tune.interop import records
from rpa_tune.llo.machine import load_machine
from rpa_tune.llo.simulate import simulate
from rpa_tune.store import journal
from rpa_tune.sweep.plan import load_plan
from rpa_tune.sweep.study import build_studies

DATA = Path(__file__).parents[3] / "benchmarks" / "data" / "measured_rpa.json"


def invoke(*args):
    return CliRunner().invoke(calibrate, [str(arg) for arg in args], standalone_mode=False)


def test_records_of_another_chip_are_refused(tmp_path):
    result = invoke(DATA, "--chip", "v5p", "--cache", tmp_path)
    assert isinstance(result.exception, UsageError)
    assert "no device times of v5p" in str(result.exception)


def test_a_missing_file_is_refused(tmp_path):
    result = invoke(tmp_path / "none.json", "--chip", "v6e")
    assert "cannot read records" in str(result.exception)


@pytest.fixture
def golden_schedules(monkeypatch):
    """Stands in for the compiler: every record gets a golden kernel and its scalars."""
    program = make.program("0.0.42.1/v6e_decode.txt.gz")
    monkeypatch.setattr(records.Record, "operands", lambda self: make.operands("decode"))

    def schedules(chosen, **_):
        for record in chosen:
            yield record, "no schedule" if record.index == 0 else program

    monkeypatch.setattr("rpa_tune.cli.calibrate.schedules", schedules)
    return program


PLAN = """\
chip: v6e
model: llama3-8b
families: [decode]
page_size: 128
workload: {requests: {count: 8, prompt_tokens: 100, output_tokens: 400}, compress: {batches: 4}}
"""


@pytest.fixture
def measured_store(tmp_path, monkeypatch):
    """A store of a sweep that measured, whose schedules are the golden kernel."""
    (tmp_path / "plan.yaml").write_text(PLAN)
    (study,) = build_studies(load_plan(tmp_path / "plan.yaml"))
    program = make.program("0.0.42.1/v6e_decode.txt.gz")
    monkeypatch.setattr(observations, "COMPILE", "pure.evaluate.fake_tasks:no_schedule")
    monkeypatch.setattr(observations, "_load", lambda bundles, answer: program)
    monkeypatch.setattr(observations, "scalar_operands", lambda *_: make.operands("decode"))
    slow = load_machine("v6e").with_values(
        {"read_latency_cycles": 2000.0}, source="test", confidence="guess"
    )
    us = simulate(program, slow, make.operands("decode")).time_us
    shaky, steady, refused = (study.candidate(config) for config in study.space().configs[:3])
    evaluator = FormulaEvaluator(Fidelity.MEASURED)
    with journal.Journal(tmp_path / "store.jsonl") as store:
        for candidate, is_steady in ((shaky, False), (steady, True)):
            answer = evaluator.answer(candidate)
            metrics = {"is_steady": is_steady}
            store.append(replace(answer, time_us=us, batch_us=(us,) * 3, metrics=metrics))
        store.append(replace(evaluator.answer(refused), fidelity=Fidelity.SIMULATED))
    return tmp_path


def test_reads_the_measured_answers_of_a_store(measured_store):
    store, plan = measured_store / "store.jsonl", measured_store / "plan.yaml"
    options = ("--chip", "v6e", "--parameter", "read_latency_cycles", "--cache", measured_store)
    result = invoke(store, "--plan", plan, *options, "--json")
    assert result.exception is None, result.exception
    answer = json.loads(result.stdout)
    assert [line.split(": ")[1] for line in answer["skipped"]] == ["its samples were not steady"]
    assert len(answer["fit"]) == 3
    assert all(abs(row["error"]) < 0.1 for row in answer["fit"])
    fitted = answer["rows"]["v6e"]["read_latency_cycles"]["value"]
    assert fitted > 1.2 * load_machine("v6e").value("read_latency_cycles")
    assert len(json.loads(invoke(store, "--plan", plan, *options, "--batches", 1, "--json").stdout)
               ["fit"]) == 1  # fmt: skip


def test_a_store_needs_its_plan_and_measured_answers(measured_store):
    store, plan = measured_store / "store.jsonl", measured_store / "plan.yaml"
    assert "--plan" in invoke(store, "--chip", "v6e").exception.hint
    result = invoke(store, "--chip", "v5e", "--plan", plan)
    assert "no measured answers for v5e" in str(result.exception)


@pytest.fixture
def check_file(tmp_path, monkeypatch):
    """A check's file of a TPU, as if every kernel were the golden one; its schedules are that."""
    program = make.program("0.0.42.1/v6e_decode.txt.gz")
    slow = load_machine("v6e").with_values(
        {"read_latency_cycles": 2000.0}, source="test", confidence="guess"
    )
    with pytest.MonkeyPatch.context() as patched:
        host = Host().install(patched)
        patched.setattr(
            "pure.check.host_of_a_tpu.MEASURED_US",
            simulate(program, slow, make.operands("decode")).time_us,
        )
        run.tpu_check(tmp_path / "check.json", cache=tmp_path)
        host.answers[run._INSPECT] = lambda _: {**DEVICE, "platform": "cpu", "chip": ""}
        run.tpu_check(tmp_path / "rehearsal.json", cache=tmp_path, is_rehearsal=True, chip="v6e")
    monkeypatch.setattr(observations, "COMPILE", "pure.evaluate.fake_tasks:no_schedule")
    monkeypatch.setattr(observations, "unpack_bundles", lambda bundles, folder: bundles)
    monkeypatch.setattr(observations, "schedule_digest", lambda bundles: "5" * 16)
    monkeypatch.setattr(observations, "load_program", lambda bundles: program)
    monkeypatch.setattr(observations, "scalar_operands", lambda *_: make.operands("decode"))
    return tmp_path / "check.json"


def test_reads_what_tpu_check_wrote(check_file):
    options = ("--parameter", "read_latency_cycles", "--cache", check_file.parent, "--json")
    result = invoke(check_file, *options)
    assert result.exception is None, result.exception
    answer = json.loads(result.stdout)
    assert answer["skipped"] == []
    assert len(answer["fit"]) == 10
    assert all(abs(row["error"]) < 0.1 for row in answer["fit"])
    fitted = answer["rows"]["v6e"]["read_latency_cycles"]["value"]
    assert fitted > 1.2 * load_machine("v6e").value("read_latency_cycles")
    assert json.loads(invoke(check_file, "--chip", "v6e", *options).stdout) == answer


def test_a_rehearsal_is_no_measurement(check_file):
    rehearsal = check_file.with_name("rehearsal.json")
    for options in ((), ("--chip", "v6e")):
        refused = invoke(rehearsal, *options).exception
        assert isinstance(refused, UsageError)
        assert refused.args[0] == "a rehearsal: its times are a CPU's, and nothing was measured"
        assert refused.where == str(rehearsal)
        assert "on a TPU host" in refused.hint


def change(path, edit):
    data = json.loads(path.read_text())
    edit(data)
    path.write_text(json.dumps(data))


def test_a_check_of_another_chip_or_without_times_is_refused(check_file):
    assert (
        "the file is of a v6e, not of a v5e"
        in invoke(check_file, "--chip", "v5e").exception.args[0]
    )
    change(check_file, lambda data: data["steps"][2].update(parts=[]))
    assert invoke(check_file).exception.args[0] == "no kernel was measured"
    change(check_file, lambda data: data.pop("steps"))
    assert "'steps' is missing" in invoke(check_file).exception.args[0]


@pytest.mark.parametrize(
    ("edit", "reason"),
    [
        (lambda data: data["sources"].update(decode="0" * 16), "other sources of the kernel"),
        (lambda data: data["steps"][2]["parts"][0]["figures"].update(is_steady=False), "steady"),
        (
            lambda data: data["steps"][2]["parts"][0]["figures"]["candidate"]["config"].update(
                bkv_sz=100
            ),
            "bkv_sz % page_size: need 100",
        ),
        (
            lambda data: data["steps"][2]["parts"][0]["figures"]["simulated"].update(
                schedule_digest="6" * 16
            ),
            "its schedule here is not the one that was measured",
        ),
    ],
)
def test_what_was_measured_otherwise_is_left_out(check_file, edit, reason):
    change(check_file, edit)
    options = ("--parameter", "read_latency_cycles", "--cache", check_file.parent, "--json")
    answer = json.loads(invoke(check_file, *options).stdout)
    assert answer["skipped"]
    assert all(reason in line for line in answer["skipped"])
    assert len(answer["fit"]) == 10 - len(answer["skipped"])


def test_versions_are_compared_where_a_schedule_has_no_digest(check_file):
    def other_compiler(data):
        data["versions"].update(libtpu="0.0.1")
        for part in data["steps"][2]["parts"]:
            part["figures"]["simulated"] = None

    change(check_file, other_compiler)
    refused = invoke(check_file, "--cache", check_file.parent).exception
    assert "nothing to fit, 10 left out" in refused.args[0]
    assert "measured with another compiler (libtpu 0.0.1, here " in refused.args[0]


def test_records_without_a_chip_need_its_name():
    assert "need the name of a chip" in invoke(DATA).exception.args[0]


def test_fits_and_writes_rows_for_the_machine_table(golden_schedules, tmp_path):
    slow = load_machine("v6e").with_values(
        {"read_latency_cycles": 2000.0}, source="test", confidence="guess"
    )
    time_us = simulate(golden_schedules, slow, make.operands("decode")).time_us
    data = json.loads(DATA.read_text())
    for row in data["records"]:
        row["measured_us"] = time_us
    path, output = tmp_path / "records.json", tmp_path / "rows.yaml"
    path.write_text(json.dumps(data))
    result = invoke(
        path, "--chip", "v6e", "--parameter", "read_latency_cycles", "--output", output, "--json"
    )
    assert result.exception is None
    answer = json.loads(result.stdout)
    assert answer["skipped"] == ["record 0: no schedule"]
    assert all(abs(row["error"]) < 0.1 for row in answer["fit"])
    row = answer["rows"]["v6e"]["read_latency_cycles"]
    assert row["value"] > 1.2 * load_machine("v6e").value("read_latency_cycles")
    assert row["confidence"] == "fitted"
    assert "read_latency_cycles" in output.read_text()
