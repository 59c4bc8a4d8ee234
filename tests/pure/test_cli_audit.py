"""`rpa-tune audit`: every bucket, how it is covered, and the exit code for CI."""

import dataclasses
import json

import pytest
from click.testing import CliRunner
from table_rows import make_row

from rpa_kernels.problem import Problem
from rpa_tune.cli.main import cli
from rpa_tune.dispatch import dispatcher
from rpa_tune.errors import UsageError
from rpa_tune.tables.writer import merge_into

SERVER = ["--model", "llama3-8b", "--chip", "v6e", "--max-num-seqs", "8",
          "--max-num-batched-tokens", "64", "--max-model-len", "1024"]  # fmt: skip
PROBLEM = Problem(
    num_q_heads=32, num_kv_heads=8, head_dim=128, page_size=128, max_num_tokens=64,
    max_num_seqs=8, pages_per_seq=8, num_pages=64,
)  # fmt: skip


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A row for decode in the largest bucket; nothing else, shipped or for other families."""
    monkeypatch.setattr(dispatcher, "shipped_folder", lambda: tmp_path / "shipped")
    (tmp_path / "shipped").mkdir()
    merge_into(tmp_path / "mine", [make_row("decode", PROBLEM, time_us=50.0, heuristic_us=60.0)])
    return tmp_path / "mine"


def audit(*arguments):
    return CliRunner().invoke(cli, ["audit", *SERVER, *map(str, arguments)])


def test_sequences_are_padded_to_the_most_unless_the_server_buckets_them(folder):
    server = [*SERVER[:4], "--max-num-seqs", "20", *SERVER[6:], "--tables", folder, "--json"]
    for option, expected in ([], {20}), (["--bucket-seqs"], {8, 16, 20}):
        result = CliRunner().invoke(cli, ["audit", *map(str, server), *option])
        entries = json.loads(result.stdout)["entries"]
        assert {entry["num_seqs"] for entry in entries} == expected


def test_coverage_by_family(folder):
    report = json.loads(audit("--tables", folder, "--json").stdout)
    decode = [e for e in report["entries"] if e["family"] == "decode"]
    assert [e["coverage"] for e in decode] == ["nearest", "nearest", "exact"]
    assert decode[0]["distance"] > decode[1]["distance"] > decode[2]["distance"] == 0
    assert decode[2]["expected_loss_pct"] == 0
    assert decode[0]["expected_loss_pct"] == pytest.approx(20)
    mixed = [e for e in report["entries"] if e["family"] == "mixed"]
    assert {e["expected_loss_pct"] for e in mixed} == {None}
    assert sum(report["counts"].values()) == len(report["entries"])


def test_only_families_that_occur_are_audited(folder):
    for options, expected in (
        ([], {"decode", "mixed"}),
        (
            ["--uses-prefill"],
            {"decode", "prefill", "mixed"},
        ),
    ):
        report = json.loads(audit("--json", *options).stdout)
        assert {entry["family"] for entry in report["entries"]} == expected


def test_a_server_whose_every_bucket_is_tuned_passes(folder, tmp_path):
    problems = [dataclasses.replace(PROBLEM, max_num_tokens=n) for n in (16, 32, 64)]
    rows = [make_row(family, problem) for problem in problems for family in ("decode", "mixed")]
    merge_into(tmp_path / "all", rows)
    result = audit("--tables", tmp_path / "all", "--fail-on", "nearest")
    assert result.exit_code == 0, result.stdout
    assert "6 look-ups: 6 exact" in result.stdout


def test_exit_codes_are_for_ci(folder):
    assert audit("--tables", folder).exit_code == 0
    result = audit("--tables", folder, "--fail-on", "heuristic")
    assert result.exit_code == 3
    assert "misses (--fail-on heuristic)" in result.stdout
    assert isinstance(audit("--tp", "3").exception, UsageError)


LONG = [*SERVER[2:-1], "2048"]  # longer than Gemma 3's window


def test_models_with_two_kinds_of_layers_are_audited_for_both():
    arguments = ["--model", "gemma3-27b", *LONG, "--json"]
    report = json.loads(CliRunner().invoke(cli, ["audit", *arguments]).stdout)
    assert {entry["window"] for entry in report["entries"]} == {None, 1024}


def test_a_config_json_is_audited_like_the_model_that_is_built_in(tmp_path):
    """Sparse, as published: heads and window are said, the rest is left to the model's type."""
    text = {"hidden_size": 3840, "model_type": "gemma3_text", "num_attention_heads": 16,
            "num_hidden_layers": 48, "num_key_value_heads": 8, "sliding_window": 1024}  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps({"text_config": text, "model_type": "gemma3"}))
    reports = [
        json.loads(CliRunner().invoke(cli, ["audit", "--model", model, *LONG, "--json"]).stdout)
        for model in (str(tmp_path), "gemma3-12b")
    ]
    assert reports[0] == reports[1]
    assert reports[0]["kinds"][1]["name"] == "window 1024"
    assert len(reports[0]["entries"]) == 12  # three buckets, two families, two kinds of layers
    result = audit("--model", tmp_path / "none.json")
    assert isinstance(result.exception, UsageError)
