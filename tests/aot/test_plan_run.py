"""From a server's flags to a plan, the plan run with the real compiler, and the audit after it."""

import json

import pytest
import yaml
from click.testing import CliRunner

from rpa_tune.cli.main import cli

pytestmark = pytest.mark.aot


@pytest.mark.slow  # four kernels for a TPU that is not there
def test_a_plan_that_was_run_leaves_no_look_up_without_a_known_loss(tmp_path) -> None:
    """The engine's default flags; one shape of ten and two candidates, so that it ends.

    The shape that was tuned is exact, the others take its rows as the nearest.
    """
    requests = tmp_path / "requests.jsonl"
    rows = [{"timestamp": 50 * i, "input_length": 200 + 90 * i, "output_length": 9}
            for i in range(12)]  # fmt: skip
    requests.write_text("\n".join(map(json.dumps, rows)))
    server = ["--model", "llama3-70b", "--chip", "v6e", "--tp", "8"]
    plan, tables = tmp_path / "plan.yaml", ["--tables", str(tmp_path / "tables")]
    asked = ["--workload", str(requests), "--simulate", "2", "-o", str(plan)]
    assert CliRunner().invoke(cli, ["plan", *server, *asked]).exit_code == 0
    cut = yaml.safe_load(plan.read_text())
    cut["servers"][0]["tokens"] = [512]
    cut["search"]["deadline"] = "20m"
    plan.write_text(yaml.safe_dump(cut))
    options = ["--workers", "1", "--no-verify", "--store", str(tmp_path / "store.jsonl")]
    swept = CliRunner().invoke(cli, ["sweep", str(plan), *options, *tables])
    assert swept.exit_code == 0, swept.output
    found = CliRunner().invoke(cli, ["audit", *server, *tables, "--json"])
    assert found.exit_code == 0, found.output
    report = json.loads(found.stdout)
    assert report["counts"] == {"exact": 2, "nearest": 18}
    exact = [(e["family"], e["num_tokens"]) for e in report["entries"] if e["coverage"] == "exact"]
    assert exact == [("decode", 512), ("mixed", 512)]
    assert all(entry["expected_loss_pct"] is not None for entry in report["entries"])
