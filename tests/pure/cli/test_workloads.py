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
    for word in ("decode-only", "context length per sequence", "█", "held out", data["digest"]):
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
        capsys, "simulate", "azure-conv", "--requests", "100", "--knob", "max_num_seqs=4",
        "--knob", "max_num_batched_tokens=256", "--arrivals", "process=at_once",
        "--arrivals", "request_rate=null",
    )  # fmt: skip
    assert data["distributions"]["seqs_per_step"]["p100"] == 4
    assert data["distributions"]["tokens_per_step"]["p100"] == 256


def test_the_old_spelling_of_knobs_works_and_is_not_shown(
    capsys: pytest.CaptureFixture[str],
) -> None:
    data = run_json(
        capsys, "simulate", "azure-conv", "--requests", "100", "--engine", "max_num_seqs=4",
        "--knob", "max_num_batched_tokens=256",
    )  # fmt: skip
    assert data["distributions"]["seqs_per_step"]["p100"] == 4
    assert data["distributions"]["tokens_per_step"]["p100"] == 256
    _, text, _ = run(capsys, "simulate", "--help")
    assert "--knob KEY=VALUE" in text
    assert "--engine" not in text


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
    assert "hint: fix the row, or skip bad rows with `--drop-bad`" in err
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
        (["simulate", "--trace", "azure-conv", "--knob", "max_num_seqs"], "--knob needs KEY=VALUE"),
        (["simulate", "--trace", "azure-conv", "--knob", "max_num_seqs=]"], "has no value"),
        (["simulate", "--trace", "azure-conv", "--knob", "max_num_seqs=2026-13-01"], "no value"),
        (["simulate", "--trace", "azure-conv", "--arrivals", "rate_per_s=!!int x"], "no value"),
        (["simulate", "--trace", "azure-conv", "--knob", "max_num_seqs=" + "[" * 1000], "no value"),
        (["simulate", "--trace", "azure-conv", "--knob", "seqs=5"], "unknown key 'seqs'"),
        (["show", "agentic-low", "--time-unit", "ms"], "--time-unit: this workload has no trace"),
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


def test_what_a_trace_does_not_say_is_asked_for_and_told(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = tmp_path / "t.jsonl"
    row = {"prompt_tokens": 200, "output_tokens": 5, "hash_ids": [1, 2, 3, 4]}
    path.write_text("".join(json.dumps({"ts": 50 * i, **row}) + "\n" for i in range(9)))
    code, out, err = run(capsys, "show", str(path))
    assert (code, out) == (2, "")
    assert "hint: give the unit with `--time-unit s` or `--time-unit ms`" in err
    code, out, err = run(capsys, "show", str(path), "--time-unit", "ms")
    assert (code, out) == (2, "")
    assert "with `--block-tokens 64`; the numbers fit blocks of 64 tokens" in err
    args = ["show", str(path), "--time-unit", "ms", "--block-tokens", "64"]
    facts = run_json(capsys, *args)["trace"]
    assert (facts["time_unit"], facts["time_basis"], facts["block_tokens"]) == ("ms", "as told", 64)
    assert (facts["span_s"], facts["rate_per_s"]) == (0.4, 20.0)
    _, text, _ = run(capsys, *args)
    words = (
        "(lengths by column names; times in ms (as told); 9 requests in 0.4000 s, 20.00 a second"
    )
    assert words in " ".join(text.split())


def test_a_sweep_says_as_what_its_trace_was_read(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    trace, plan = tmp_path / "t.csv", tmp_path / "plan.yaml"
    trace.write_text("ts,prompt_tokens,output_tokens\n" + "".join(f"{i},99,5\n" for i in range(9)))
    text = f"chip: v6e\nmodel: llama3-8b\nfamilies: [decode]\npage_size: 128\nworkload: {trace}\n"
    plan.write_text(text)
    with pytest.raises(SystemExit) as left:
        main(["sweep", str(plan), "--dry-run"])
    assert left.value.code == 2
    assert "hint: give the unit with `requests: {time_unit: s}`" in capsys.readouterr().err
    told = f"workload: {{requests: {{trace: {trace}, time_unit: s}}}}"
    plan.write_text(text.replace(f"workload: {trace}", told))
    with pytest.raises(SystemExit):
        main(["sweep", str(plan), "--dry-run"])
    said = capsys.readouterr().err
    assert (
        f"workload custom: trace {trace} (lengths by column names; times in s (as told); " in said
    )


def test_no_times_are_said_and_a_way_out_is_named(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = tmp_path / "t.csv"
    path.write_text("prompt_tokens,output_tokens\n" + "100,5\n" * 3)
    _, text, _ = run(capsys, "simulate", "--trace", str(path))
    assert "the trace has no times: all arrive at once" in " ".join(text.split())
    code, _, err = run(capsys, "show", str(path), "--arrivals", "process=trace")
    assert code == 2
    assert "`--arrivals process=at_once --arrivals request_rate=null`" in err


def test_a_preset_says_as_what_its_trace_was_read(capsys: pytest.CaptureFixture[str]) -> None:
    _, text, _ = run(capsys, "simulate", "chat-low", "--requests", "50")
    assert "read as: Azure LLM inference; times are dates; 50 requests in" in text


@pytest.mark.parametrize("command", ["", "list", "show", "simulate", "import"])
def test_help_has_an_example(capsys: pytest.CaptureFixture[str], command: str) -> None:
    code, out, _ = run(capsys, *command.split(), "--help")
    assert code == 0
    assert "Example: rpa-tune workloads" in out
