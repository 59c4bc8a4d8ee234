"""`tables check --recompile --write`: what other versions made of rows goes into their evidence."""

import json
from dataclasses import replace

import pytest
from click.testing import CliRunner
from table_rows import PROBLEM, make_row

from rpa_tune.cli import recheck_across as module
from rpa_tune.cli.main import cli
from rpa_tune.cli.recheck_write import write_found
from rpa_tune.tables.key import beyond_key
from rpa_tune.tables.other_versions import with_found
from rpa_tune.tables.reader import read_table
from rpa_tune.tables.writer import merge_into

ROW = make_row()
OWN = (ROW.evidence.jax, ROW.evidence.libtpu)
RANK = {"rule": "rank", "where": "", "message": "a runner-up takes 80.0 us"}
FIT = {"rule": "fit", "where": "", "message": "configs[0] out_of_memory: vmem"}


def answer(jax, libtpu, time_us, **changes):
    """What the check of one pair says of the row as JSON."""
    row = {
        "where": "v6e/decode.jsonl:2", "chip": ROW.key.chip, "family": ROW.key.family,
        "key": ROW.key.to_dict(), "older": {}, "time_us_then": ROW.evidence.time_us,
        "time_us": time_us, "heuristic_us": 1.0, "runners_up": [], "overtaken": False,
        "findings": [], **changes,
    }  # fmt: skip
    return {"versions": {"jax": jax, "libtpu": libtpu}, "rows": [row]}


@pytest.fixture
def folder(tmp_path):
    merge_into(tmp_path / "tables", [ROW])
    return tmp_path / "tables"


def carried(folder):
    path = folder / ROW.key.chip / f"{ROW.key.family}.jsonl"
    (row,) = read_table(path)
    return list(row.evidence.other_versions)


def test_a_row_carries_other_pairs_in_order_and_nothing_else_changes(folder):
    path = folder / ROW.key.chip / f"{ROW.key.family}.jsonl"
    before = path.read_text()
    told = [
        answer(*OWN, 3.0),
        answer("0.12.0.1", "0.0.52", None, findings=[FIT]),
        answer("0.11.2", "0.0.48", 141.23456),
        answer("0.12.0.1", "0.0.50.1", 150.0, overtaken=True, findings=[RANK]),
        answer("0.12.0.1", "0.0.51", 150.0, heuristic_us=None),
    ]
    assert write_found(folder, told) == 1
    assert carried(folder) == [
        {"jax": "0.11.2", "libtpu": "0.0.48", "time_us": 141.235, "found": "best"},
        {"jax": "0.12.0.1", "libtpu": "0.0.50.1", "time_us": 150.0, "found": "overtaken"},
        {"jax": "0.12.0.1", "libtpu": "0.0.51", "time_us": 150.0, "found": "alone"},
        {"jax": "0.12.0.1", "libtpu": "0.0.52", "time_us": None, "found": "unfit"},
    ]
    then, now = (json.loads(text.splitlines()[1]) for text in (before, path.read_text()))
    del now["evidence"]["other_versions"]
    assert now == then
    assert write_found(folder, told) == 0
    assert write_found(folder, [answer("0.11.2", "0.0.48", 7.0)]) == 1
    assert carried(folder)[0]["time_us"] == 7.0
    assert len(carried(folder)) == 4
    shown = CliRunner().invoke(cli, ["tables", "show", str(folder)]).output
    assert (
        "also asked under jax 0.11.2 with libtpu 0.0.48: 7.0 us, still best; "
        "jax 0.12.0.1 with libtpu 0.0.50.1: 150.0 us, another config is ahead;" in shown
    )
    assert "libtpu 0.0.52: does not fit" in shown


def test_rows_that_were_not_asked_as_they_are_stay(folder):
    other_kernel = {"kernel_digest": {"then": "a", "now": "b"}}
    gone = {"rule": "unanswered", "where": "", "message": "configs[0] crashed"}
    told = [
        answer("0.11.2", "0.0.48", 1.0, older=other_kernel),
        answer("0.12.0.1", "0.0.52", None, findings=[gone]),
    ]
    assert write_found(folder, told) == 0
    assert carried(folder) == []


def test_rows_that_one_study_filled_carry_what_one_was_asked(folder):
    problem = beyond_key(PROBLEM, ROW.key) | {"max_num_tokens": 64}
    filled = [
        replace(
            ROW,
            key=replace(ROW.key, max_num_tokens=bucket),
            evidence=replace(ROW.evidence, problem=problem),
        )
        for bucket in (16, 32)
    ]
    longer = replace(filled[0], key=replace(ROW.key, max_context_tokens=2**17))
    merge_into(folder, [*filled, longer])
    told = answer("0.11.2", "0.0.48", 140.0)
    told["rows"][0]["key"] = filled[0].key.to_dict()
    assert write_found(folder, [told]) == 2
    rows = read_table(folder / ROW.key.chip / f"{ROW.key.family}.jsonl")
    carrying = {row.key for row in rows if row.evidence.other_versions}
    assert carrying == {row.key for row in filled}


def test_pairs_are_kept_in_the_order_of_releases():
    def entry(libtpu):
        return {"jax": "0.12.0.1", "libtpu": libtpu, "time_us": 1.0, "found": "best"}

    kept = with_found([entry("0.0.9"), entry("0.0.52")], entry("0.0.10"))
    assert [one["libtpu"] for one in kept] == ["0.0.9", "0.0.10", "0.0.52"]


def test_one_command_asks_pairs_and_writes(folder, tmp_path, monkeypatch):
    def python(name, document):
        path = tmp_path / name
        (tmp_path / f"{name}.json").write_text(json.dumps(document))
        path.write_text(f'#!/bin/sh\necho "$@" > {path}.words\ncat {path}.json\n')
        path.chmod(0o755)
        return path

    monkeypatch.setattr(module.sys, "executable", str(python("here", answer(*OWN, 3.0))))
    other = python("other", answer("0.11.2", "0.0.48", 140.0))
    words = ["tables", "check", str(folder), "--recompile", "--python", str(other), "--write"]
    done = CliRunner().invoke(cli, words)
    assert done.exit_code == 0, done.output
    assert done.stdout.splitlines()[-1] == f"1 row changed in {folder}"
    assert carried(folder)[0]["libtpu"] == "0.0.48"
    assert "--write" not in (tmp_path / "other.words").read_text()
    done = CliRunner().invoke(cli, ["tables", "check", "--recompile", "--write"])
    assert "needs FOLDER" in str(done.exception)
    done = CliRunner().invoke(cli, ["tables", "check", str(folder), "--write"])
    assert "add --recompile" in done.exception.hint
