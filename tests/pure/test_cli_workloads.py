"""`rpa-tune workloads`: commands, JSON, exit codes."""

import json
from pathlib import Path
from typing import Any

import pytest

from rpa_tune.cli.main import main
from rpa_tune.workload.workload import Workload, load_workload


def run(capsys: pytest.CaptureFixture[str], *args: str) -> tuple[int, str, str]:
    code = 0
    try:
        main(["workloads", *args])
    except SystemExit as leave:
        code = int(leave.code or 0)
    out, err = capsys.readouterr()
    return code, out, err


def run_json(capsys: pytest.CaptureFixture[str], *args: str) -> dict[str, Any]:
    code, out, err = run(capsys, *args, "--json")
    assert code == 0, err
    data: dict[str, Any] = json.loads(out)
    return data


def test_list_names_every_preset_and_trace(capsys: pytest.CaptureFixture[str]) -> None:
    data = run_json(capsys, "list")
    code, text, _ = run(capsys, "list")
    assert code == 0
    assert {"azure-conv", "speculative-high"} <= set(data["presets"])
    assert all(name in text for name in [*data["presets"], *data["traces"]])


def test_show_reports_kinds_histograms_and_error(capsys: pytest.CaptureFixture[str]) -> None:
    args = ["show", "chat-high", "--requests", "300", "--page-size", "64"]
    data = run_json(capsys, *args)
    assert data["page_size"] == 64
    for share in ("launch_share", "attention_time_share"):
        assert sum(kind[share] for kind in data["kinds"].values()) == pytest.approx(1.0)
    for histogram in data["distributions"].values():
        assert sum(histogram["share"]) == pytest.approx(1.0)
        assert histogram["p50"] <= histogram["p95"] <= histogram["p100"] <= histogram["upper"][-1]
    assert set(data["compression"]["time_error"]) == {"decode", "mixed"}
    assert sum(batch["weight"] for batch in data["batches"]) == pytest.approx(1.0)
    _, text, _ = run(capsys, *args)
    for word in ("decode-only", "context of a sequence", "█", "held out", data["digest"]):
        assert word in text


def test_simulate_is_deterministic_and_counts_all(capsys: pytest.CaptureFixture[str]) -> None:
    args = ["simulate", "--trace", "azure-conv", "--requests", "200"]
    data = run_json(capsys, *args)
    assert data == run_json(capsys, *args)
    assert data["engine"]["num_finished"] == data["requests"]["count"] == 200
    assert data["num_steps"] == data["engine"]["num_steps"]
    code, text, err = run(capsys, *args)
    assert code == 0
    assert "200 requests" in text
    assert "simulated" in err


def test_knobs_reach_the_engine(capsys: pytest.CaptureFixture[str]) -> None:
    data = run_json(
        capsys, "simulate", "azure-conv", "--requests", "100", "--engine", "max_num_seqs=4",
        "--engine", "max_num_batched_tokens=256", "--arrivals", "process=at_once",
        "--arrivals", "request_rate=null",
    )  # fmt: skip
    assert data["distributions"]["seqs_per_step"]["p100"] == 4
    assert data["distributions"]["tokens_per_step"]["p100"] == 256


def test_simulated_steps_import_as_a_workload(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    steps, out = tmp_path / "steps.jsonl", tmp_path / "mine.json"
    run_json(
        capsys, "simulate", "agentic-low", "--requests", "20", "--steps", str(steps),
        "--page-tables",
    )  # fmt: skip
    data = run_json(capsys, "import", str(steps), "-o", str(out), "--name", "mine")
    workload = load_workload(str(out), page_size=128)
    assert workload == Workload.from_dict(json.loads(out.read_text()))
    assert (workload.name, workload.digest) == ("mine", data["digest"])
    shown = run_json(capsys, "show", str(out))
    assert shown["digest"] == data["digest"]
    assert run(capsys, "show", str(out))[0] == 0
    assert run_json(capsys, "show", str(steps))["engine"] is None


def test_bad_trace_has_line_and_column_or_is_dropped(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = tmp_path / "bad.csv"
    path.write_text("time,prompt_tokens,output_tokens\n0,5,5\n1,-3,5\n2,5,5\n")
    code, out, err = run(capsys, "show", str(path))
    assert (code, out) == (2, "")
    assert err.startswith("error: length too small: got -3")
    assert f"{path}:3, column 'prompt_tokens'" in err
    assert "hint:" in err
    data = run_json(capsys, "show", str(path), "--drop-bad")
    assert data["dropped"] == {"length too small": 1}
    assert data["requests"]["count"] == 2


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["show", "azure-cnv"], "unknown workload 'azure-cnv'"),
        (["simulate"], "either a WORKLOAD or a --trace"),
        (["simulate", "chat-low", "--trace", "azure-conv"], "either a WORKLOAD or a --trace"),
        (["simulate", "--trace", "nowhere"], "not readable"),
        (["simulate", "--trace", "azure-conv", "--engine", "max_num_seqs"], "needs KEY=VALUE"),
        (["simulate", "--trace", "azure-conv", "--engine", "max_num_seqs=]"], "has no value"),
        (["simulate", "--trace", "azure-conv", "--engine", "seqs=5"], "unknown key 'seqs'"),
        (["show", "chat-low", "--page-size", "0"], "--page-size=0"),
        (["simulate", "--trace", "mooncake"], "prompt over max_model_len"),
    ],
)
def test_mistakes_exit_with_2(
    capsys: pytest.CaptureFixture[str], args: list[str], message: str
) -> None:
    code, out, err = run(capsys, *args)
    assert (code, out) == (2, "")
    assert message in err


@pytest.mark.parametrize("command", ["", "list", "show", "simulate", "import"])
def test_help_has_an_example(capsys: pytest.CaptureFixture[str], command: str) -> None:
    code, out, _ = run(capsys, *command.split(), "--help")
    assert code == 0
    assert "Example: rpa-tune workloads" in out
