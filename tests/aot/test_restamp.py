"""A row restamped with the real compiler: what another digest hides, and what it does not."""

import json
from contextlib import closing
from dataclasses import replace

import pytest
from click.testing import CliRunner
from fake_sweep import make_study, make_workload

from rpa_tune.cli.main import cli
from rpa_tune.decide.promote import decide, make_row
from rpa_tune.evaluate.simulated import SimulatedEvaluator
from rpa_tune.provenance import kernel_digest
from rpa_tune.store import journal
from rpa_tune.tables.lint import lint_folder
from rpa_tune.tables.reader import load_tables
from rpa_tune.tables.writer import merge_into

pytestmark = pytest.mark.aot
OLD = "0123456789abcdef"


def restamp(folder):
    store = str(folder.parent / "restamp.jsonl")
    command = ["tables", "restamp", str(folder), "--no-verify", "--store", store]
    command += ["--cache", str(folder.parent / "second")]
    return CliRunner().invoke(cli, command)


def test_a_stale_row_with_the_schedules_of_today_is_restamped(tmp_path):
    """As after a rename: the row has another kernel digest, and nothing else has changed."""
    path = tmp_path / "batches.json"
    path.write_text(json.dumps(replace(make_workload(), name=str(path)).to_dict()))
    study = make_study(chip="v5e")
    with closing(SimulatedEvaluator(cache_dir=tmp_path / "first")) as evaluator:
        wave = [study.candidate(study.heuristic())]
        answers = list(evaluator.evaluate_all(wave, study.workload))
    workload = replace(study.workload, name=str(path))
    made = make_row(decide(answers, answers[0]), answers, workload, verified="interpreted")
    folder, digests = tmp_path / "tables", {"decode": kernel_digest("decode")}
    merge_into(folder, [made])
    current = (folder / "v5e" / "decode.jsonl").read_text()
    stale = replace(made, evidence=replace(made.evidence, kernel_digest=OLD))
    changed = replace(stale, evidence=replace(stale.evidence, schedule_digest="f" * 16))

    merge_into(folder, [changed])
    left = restamp(folder)
    assert left.exit_code == 3, left.output
    assert "  schedule: configs[0] (" in left.stdout
    assert next(iter(load_tables([folder]))).evidence == changed.evidence

    merge_into(folder, [stale])
    assert [finding.rule for finding in lint_folder(folder, digests)] == ["stale"]
    done = restamp(folder)
    assert done.exit_code == 0, done.output
    assert (
        f"restamped: {OLD} -> {digests['decode']}, 1 config with the same schedule" in done.stdout
    )
    assert (folder / "v5e" / "decode.jsonl").read_text() == current
    assert not lint_folder(folder, digests)

    # Compiled once more, and not found in the cache of the first time.
    told = journal.read(tmp_path / "restamp.jsonl").evaluations
    assert [a.metrics["from_cache"] for a in told] == [False]
