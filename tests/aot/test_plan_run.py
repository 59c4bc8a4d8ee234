"""From a server's flags to a plan, the plan run with the real compiler, and the audit after it."""

import json

import pytest
from click.testing import CliRunner

from rpa_tune.cli.main import cli

pytestmark = pytest.mark.aot

SERVER = ("--model", "llama3-8b", "--chip", "v6e", "--tp", "8")


def audited(tables, *flags) -> dict:
    options = ["--tables", str(tables), "--fail-on", "heuristic", "--json"]
    found = CliRunner().invoke(cli, ["audit", *SERVER, *flags, *options])
    assert found.exit_code == 0, found.output
    return json.loads(found.stdout)


@pytest.mark.slow  # two kernels for each of eleven studies, for a TPU that is not there
def test_a_plan_that_was_run_leaves_no_look_up_without_a_known_loss(tmp_path) -> None:
    """The engine's default flags, the whole plan, without editing; a search of two candidates.

    Rows of decode are those of one study. A server with half the sequences has no row, and takes
    each of these as its nearest.
    """
    requests = tmp_path / "requests.jsonl"
    rows = [{"timestamp": 50 * i, "input_length": 200 + 90 * i, "output_length": 9}
            for i in range(12)]  # fmt: skip
    requests.write_text("\n".join(map(json.dumps, rows)))
    plan, tables = tmp_path / "plan.yaml", tmp_path / "tables"
    asked = ["--workload", str(requests), "--simulate", "2", "-o", str(plan)]
    assert CliRunner().invoke(cli, ["plan", *SERVER, *asked]).exit_code == 0
    options = ["--workers", "1", "--no-verify", "--store", str(tmp_path / "store.jsonl")]
    swept = CliRunner().invoke(cli, ["sweep", str(plan), *options, "--tables", str(tables)])
    assert swept.exit_code == 0, swept.output
    same = audited(tables)
    assert same["counts"] == {"exact": 20}
    other = audited(tables, "--max-num-seqs", "128")
    assert other["counts"] == {"nearest": 20}
    for entry in [*same["entries"], *other["entries"]]:
        assert entry["expected_loss_pct"] is not None, entry
