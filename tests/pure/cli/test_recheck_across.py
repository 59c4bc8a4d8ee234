"""`tables check --recompile --python`: environments asked in turn, answers side by side."""

import json
import sys

import pytest
from click.testing import CliRunner

from rpa_tune.cli import recheck_across as module
from rpa_tune.cli.main import cli

WHERE = "v6e/decode.jsonl:2"


def row(time_us, **changes):
    return {
        "where": WHERE, "time_us_then": 100.0, "time_us": time_us, "heuristic_us": 120.0,
        "runners_up": [{"config": {"bq_sz": 8}, "then_us": 101.0, "time_us": time_us}],
        "overtaken": False, "findings": [], **changes,
    }  # fmt: skip


def answer(libtpu, *rows):
    return {"versions": {"jax": "0.12.0.1", "libtpu": libtpu}, "rows": list(rows)}


@pytest.fixture
def environment(tmp_path, monkeypatch):
    """Makes an interpreter that writes its words down and answers with a document."""

    def make(name, document, code=0):
        path = tmp_path / name
        (tmp_path / f"{name}.json").write_text(json.dumps(document))
        path.write_text(f'#!/bin/sh\necho "$@" > {path}.words\ncat {path}.json\nexit {code}\n')
        path.chmod(0o755)
        return path

    return make


def check(*words):
    return CliRunner().invoke(cli, ["tables", "check", *map(str, words)])


def test_rows_stand_side_by_side_with_what_changed(environment, tmp_path, monkeypatch):
    here = environment("here", answer("0.0.42.1", row(100.0)))
    flipped = {"rule": "rank", "where": WHERE, "message": "a runner-up takes 80.0 us"}
    slower = environment(
        "slower", answer("0.0.52", row(110.0, overtaken=True, findings=[flipped])), code=3
    )
    refused = {"rule": "fit", "where": WHERE, "message": "configs[0] out_of_memory: vmem"}
    unfit = environment("unfit", answer("0.0.99", row(None, findings=[refused])), code=3)
    monkeypatch.setattr(module.sys, "executable", str(here))
    store = tmp_path / "s" / "check.jsonl"
    words = ["--recompile", "--chip", "v6e", "--store", store, "--python", slower]
    done = check(*words, "--python", unfit)
    assert done.exit_code == 3, done.output
    assert done.stdout.splitlines() == [
        f"{WHERE}: 100.0 us when it was made",
        "  jax 0.12.0.1, libtpu 0.0.42.1           100.0 us   +0.0 %  fits, still best",
        "  jax 0.12.0.1, libtpu 0.0.52             110.0 us  +10.0 %  fits, another config is "
        "ahead: a runner-up takes 80.0 us",
        "  jax 0.12.0.1, libtpu 0.0.99        configs[0] out_of_memory: vmem",
        "1 row under 3 pairs, simulated: 1 with another config ahead, 1 that do not fit",
    ]
    asked = (tmp_path / "slower.words").read_text()
    assert "-m rpa_tune tables check --recompile --json" in asked
    assert "--chip v6e" in asked
    assert f"--store {tmp_path / 's' / 'check-1.jsonl'}" in asked
    assert "--python" not in asked
    told = json.loads(check(*words, "--json").stdout)["pairs"]
    assert [pair["versions"]["libtpu"] for pair in told] == ["0.0.42.1", "0.0.52"]


def test_an_environment_that_does_not_answer_is_named(environment, tmp_path, monkeypatch):
    here = environment("here", answer("0.0.42.1", row(100.0)))
    monkeypatch.setattr(module.sys, "executable", str(here))
    broken = environment("broken", {}, code=1)
    done = check("--recompile", "--python", broken)
    assert (done.exit_code, done.exception.where) == (1, f"--python {broken}")
    assert "exit code 1 there" in str(done.exception)
    done = check("--recompile", "--python", tmp_path / "nowhere")
    assert "cannot be run" in str(done.exception)
    other = environment("other", answer("0.0.52", row(1.0, where="v7x/mixed.jsonl:2")))
    done = check("--recompile", "--python", other)
    assert "reads other rows" in str(done.exception)
    done = check("--python", sys.executable)
    assert "add --recompile" in done.exception.hint
