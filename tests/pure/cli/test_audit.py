"""`rpa-tune audit`: every bucket, how it is covered, and the exit code for CI."""

import dataclasses
import json
import shlex
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner
from fake_sweep import (
    FormulaEvaluator,
    answer_of_any_family,
    make_evaluators,
    stored_workload,
)
from table_rows import make_row, timed_row

from rpa_kernels.problem import Problem
from rpa_tune.cli.main import cli
from rpa_tune.dispatch import dispatcher
from rpa_tune.errors import UsageError
from rpa_tune.sweep import run as sweep_module
from rpa_tune.tables.loss import expected_loss
from rpa_tune.tables.writer import merge_into

SERVER = ["--model", "llama3-8b", "--chip", "v6e", "--max-num-seqs", "8",
          "--max-num-batched-tokens", "64", "--max-model-len", "1024",
          "--page-size", "128"]  # fmt: skip
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
    # Nobody tried the neighbour's config here: what neighbours so far away lost is known.
    least = dataclasses.replace(PROBLEM, max_num_tokens=16)
    near = expected_loss(make_row("decode", least).key, make_row("decode", PROBLEM).key, "tuned")
    assert (decode[0]["expected_loss_pct"], decode[0]["loss_worst_pct"]) == (
        near.pct,
        near.worst_pct,
    )
    assert str(near) in decode[0]["why"]
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
    result = audit("--tables", folder)
    assert result.exit_code == 3
    assert "3 misses (--fail-on heuristic)" in result.stdout  # mixed, in three buckets
    assert audit("--tables", folder, "--fail-on", "infeasible").exit_code == 0
    assert isinstance(audit("--tp", "3").exception, UsageError)


def test_heuristics_alone_are_no_coverage_and_their_loss_is_unknown(folder, tmp_path):
    """Twenty look-ups by heuristic were "0 misses, loss 0.0 %", taken from another model's row."""
    other = dataclasses.replace(PROBLEM, num_q_heads=64, num_kv_heads=8, max_num_tokens=16)
    merge_into(tmp_path / "other", [make_row("decode", other, verdict="heuristic")])
    server = ["--model", "gemma2-9b", "--chip", "v6e", "--max-num-batched-tokens", "256"]
    result = CliRunner().invoke(cli, ["audit", *server, "--tables", str(tmp_path / "other")])
    assert result.exit_code == 3
    assert "20 look-ups: 0 exact, 0 nearest, 20 heuristic, 0 infeasible; 20 misses" in result.stdout
    assert "0.0" not in result.stdout
    assert result.stdout.count("unknown") == 20
    assert "The loss of 20 look-ups is not known" in result.stdout


def test_a_neighbour_that_pins_the_heuristic_is_an_answer_with_the_loss_of_recorded_neighbours(
    folder, tmp_path
):
    """It was compared there; what the row itself says of its loss plays no part."""
    here = dataclasses.replace(PROBLEM, max_num_tokens=32)
    pinned = make_row("decode", here, verdict="heuristic", time_us=50.0, heuristic_us=50.5)
    merge_into(tmp_path / "near", [pinned])
    report = json.loads(audit("--tables", tmp_path / "near", "--json").stdout)
    first = report["entries"][0]
    assert (first["family"], first["num_tokens"]) == ("decode", 16)
    assert first["coverage"] == "nearest"
    assert "the heuristic won there" in first["why"]
    asked = dataclasses.replace(pinned.key, max_num_tokens=16)
    recorded = expected_loss(asked, pinned.key, "heuristic")
    assert first["expected_loss_pct"] == recorded.pct
    assert first["loss_from"] == recorded.pairs_text


def test_traffic_and_hidden_rows_are_said_on_demand(folder, tmp_path):
    workload = stored_workload(tmp_path)
    merge_into(tmp_path / "some", [timed_row("decode", PROBLEM)])
    options = ["--tables", tmp_path / "some", "--by-traffic", workload, "--held-out"]
    text = audit(*options).stdout
    # One step of six tokens, of a decode and another sequence: a launch of each family.
    assert "by traffic: " in text
    assert "held out: each third of 1 shapes hidden in turn, 1 rows" in text
    report = json.loads(audit(*options, "--json").stdout)
    assert sum(report["by_traffic"].values()) == pytest.approx(1.0)
    coverage = {e["family"]: e["coverage"] for e in report["entries"] if e["num_tokens"] == 16}
    assert report["by_traffic"] == {
        source: pytest.approx(list(coverage.values()).count(source) / 2)
        for source in coverage.values()
    }
    assert report["held_out"]["rows"] == 1


@pytest.mark.parametrize(
    ("evidence", "said"),
    [({"kernel_digest": "old"}, "made with other kernels"),
     ({"num_candidates": 1}, "no other config had a time")],
)  # fmt: skip
def test_an_exact_row_without_evidence_for_today_has_no_known_loss(
    folder, tmp_path, evidence, said
):
    merge_into(tmp_path / "old", [make_row("decode", PROBLEM, **evidence)])
    report = json.loads(audit("--tables", tmp_path / "old", "--json").stdout)
    exact = [e for e in report["entries"] if e["coverage"] == "exact"]
    assert [e["expected_loss_pct"] for e in exact] == [None]
    assert said in audit("--tables", tmp_path / "old").stdout


def test_what_is_looked_up_is_shown_as_resolved(folder):
    options = ["--tp", "8", "--kv-dtype", "fp8", "--page-size", "64"]
    text = audit(*options).stdout
    assert "4 query and 1 KV heads of 128, bfloat16 queries, float8_e4m3fn cache" in text
    assert "page size 64, no window, contexts to 1,024 tokens" in text
    assert "float8_e4m3fn moves as many bytes as bfloat16 would" in text
    entry = json.loads(audit(*options, "--json").stdout)["entries"][0]
    assert (entry["num_q_heads"], entry["num_kv_heads"], entry["head_dim"]) == (4, 1, 128)
    assert (entry["page_size"], entry["kv_dtype"], entry["window"]) == (64, "float8_e4m3fn", None)
    assert entry["kv_token_bytes"] == 2 * entry["kv_token_useful_bytes"] == 512


@pytest.fixture
def trace(tmp_path, monkeypatch):
    """A small trace in the current folder, so that plans are made in no time."""
    monkeypatch.chdir(tmp_path)
    rows = [f"2023-11-16 18:{i // 60:02d}:{i % 60:02d},{100 + 9 * i},{20 + i}" for i in range(40)]
    (tmp_path / "trace.csv").write_text(
        "\n".join(["TIMESTAMP,ContextTokens,GeneratedTokens", *rows]) + "\n"
    )
    return "trace.csv"


def paste(command, *more):
    """Runs a printed command line as a shell would, `more` behind its last part."""
    *first, last = [shlex.split(part) for part in command.split("&&")]
    for words in (*first, [*last, *more]):
        assert words[0] == "rpa-tune"
        result = CliRunner().invoke(cli, words[1:])
        assert result.exit_code == 0, (words, result.output, result.exception)
    return result


@pytest.mark.parametrize("options", [[], ["--tp", "4", "--kv-dtype", "float8_e4m3fn"]])
def test_the_command_that_tunes_what_is_missing_works_as_pasted(folder, trace, options):
    text = audit("--tables", folder, "--workload", trace, *options).stdout
    command = text.partition("To tune them: ")[2].splitlines()[0]
    assert command == json.loads(
        audit("--tables", folder, "--workload", trace, *options, "--json").stdout
    )["tune_command"]  # fmt: skip
    result = paste(command, "--dry-run", "--json")
    names = [study["study"] for study in json.loads(result.stdout)["studies"]]
    mixed = [f"v6e/llama3-8b/{n} tokens/mixed" for n in (16, 32, 64)]
    decode = ["v6e/llama3-8b/64 tokens/decode"] if options else []  # else one row serves decode
    assert names == [*decode, *mixed]


def test_after_the_sweep_every_look_up_is_exact(folder, trace, monkeypatch):
    """With evaluators that answer by formula; the plan, the studies, rows and look-ups are real."""
    monkeypatch.setattr(sweep_module, "make_evaluators", lambda *_: make_evaluators())
    monkeypatch.setattr(sweep_module, "has_tpu", lambda: False)
    # An empty folder: what is missing is everything, windowed layers too.
    options = ["--model", "gemma3-4b", *LONG, "--workload", trace, "--json"]
    report = json.loads(CliRunner().invoke(cli, ["audit", *options]).stdout)
    assert report["misses"] == len(report["entries"]) == 12
    monkeypatch.setattr(FormulaEvaluator, "answer", answer_of_any_family)
    paste(report["tune_command"])
    again = CliRunner().invoke(cli, ["audit", *options, "--tables", "tuned_tables"])
    assert again.exit_code == 0, again.stdout
    found = json.loads(again.stdout)
    assert found["counts"] == {"exact": 12}
    assert found["tune_command"] is None


def test_a_plan_for_nothing_is_refused(folder, tmp_path):
    problems = [dataclasses.replace(PROBLEM, max_num_tokens=n) for n in (16, 32, 64)]
    rows = [make_row(family, problem) for problem in problems for family in ("decode", "mixed")]
    merge_into(tmp_path / "all", rows)
    result = audit("--tables", tmp_path / "all", "--write-plan", tmp_path / "plan.yaml")
    assert isinstance(result.exception, UsageError)
    assert not (tmp_path / "plan.yaml").exists()


def test_families_that_the_workload_never_launches_are_left_out_aloud(folder, trace):
    result = audit("--uses-prefill", "--workload", trace, "--write-plan", "plan.yaml")
    assert result.exit_code == 0
    assert "prefill is left out of the plan" in result.stderr
    assert yaml.safe_load(Path("plan.yaml").read_text())["families"] == ["decode", "mixed"]


LONG = [*SERVER[2:], "--max-model-len", "2048"]  # longer than Gemma 3's window


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
    for report in reports:
        del report["tune_command"]  # names the file
    assert reports[0] == reports[1]
    assert reports[0]["kinds"][1]["name"] == "window 1024"
    assert len(reports[0]["entries"]) == 12  # three buckets, two families, two kinds of layers
    result = audit("--model", tmp_path / "none.json")
    assert isinstance(result.exception, UsageError)


def test_the_layout_of_the_cache_is_said_and_goes_into_the_plan(tmp_path):
    """What each layout stores, the look-ups of the named one, and a page size that it refuses."""
    server = ("--model", "llama3-70b", "--tp", 8, "--chip", "v6e", "--kv-dtype", "fp8",
              "--max-num-seqs", 32, "--max-num-batched-tokens", 512)  # fmt: skip

    def run(*more):
        return CliRunner().invoke(cli, ["audit", *map(str, (*server, *more))])

    usual = run("--page-size", 128)
    assert "kv_layout seq_along_lane stores 256" in usual.stdout
    plan = tmp_path / "plan.yaml"
    along = run("--kv-layout", "seq-along-lane", "--page-size", 128, "--write-plan", plan)
    assert "page size 128, seq_along_lane, no window" in along.stdout
    assert "padding" not in along.stdout
    assert "kv_layout: seq_along_lane" in plan.read_text()
    refused = run("--kv-layout", "seq_along_lane", "--page-size", 64)
    assert "page_size=64 must be a multiple of 128 tokens" in str(refused.exception)


def test_a_fleet_is_counted_by_chip_and_engine(folder, tmp_path):
    """A model is covered where every look-up of all its servers is exact or near enough."""
    flags = {"max_num_seqs": 8, "max_num_batched_tokens": 64, "max_model_len": 1024}
    usual = {"model": "llama3-8b", "page_size": 128, **flags}
    servers = [{**usual, "chip": "v6e"}, {**usual, "chip": "v6e", "tp": 8},
               {**usual, "chip": "v6e", "engine": "sglang-jax", "max_num_batched_tokens": 128},
               {**usual, "chip": "v6e", "model": "qwen3-8b"}]  # fmt: skip
    fleet = tmp_path / "fleet.yaml"
    fleet.write_text(yaml.safe_dump(servers))
    rows = [make_row(name, dataclasses.replace(PROBLEM, max_num_tokens=tokens))
            for tokens in (16, 32) for name in ("decode", "mixed")]  # fmt: skip
    steps = [make_row("decode", dataclasses.replace(PROBLEM, max_num_tokens=n, max_num_seqs=n))
             for n in (1, 2, 4)]  # fmt: skip
    chunks = [make_row("mixed", dataclasses.replace(PROBLEM, max_num_tokens=n)) for n in (64, 128)]
    merge_into(folder, [*rows, *steps, *chunks])

    def run(*more):
        words = ["audit", "--servers", fleet, "--tables", folder, *more]
        return CliRunner().invoke(cli, list(map(str, words)))

    ours, theirs = json.loads(run("--json").stdout)["coverage"]
    assert (ours["chip"], ours["engine"], ours["servers"]) == ("v6e", "tpu-inference", 3)
    # Both models at tp 1 have the same six problems; with one KV head nothing is near.
    assert ours["look_ups"] == {"exact": 12, "nearest_below": 0, "nearest_above": 0,
                                "heuristic": 6, "infeasible": 0}  # fmt: skip
    assert (ours["models_covered"], ours["models_not_covered"]) == (["qwen3-8b"], ["llama3-8b"])
    assert (theirs["engine"], theirs["models_covered"]) == ("sglang-jax", ["llama3-8b"])
    # Decode with 8 and 128 tokens has the row of another bucket of tokens.
    assert (theirs["look_ups"]["exact"], theirs["look_ups"]["nearest_below"]) == (6, 2)
    found = run()
    assert found.exit_code == 3
    assert "not covered on v6e in tpu-inference: llama3-8b" in found.stdout
    fleet.write_text(yaml.safe_dump(servers[3:]))
    assert run().exit_code == 0
    for more, message in ((["--chip", "v6e"], "stands in the place"), (["--held-out"], "for one"),
                          (["--by-traffic", "fleet"], "for one")):  # fmt: skip
        refused = run(*more)
        assert isinstance(refused.exception, UsageError) or refused.exit_code == 2
        assert message in str(refused.exception) + refused.output
