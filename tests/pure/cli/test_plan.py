"""`rpa-tune plan`: the plan on standard output, all else on standard error."""

import json

import pytest
import yaml
from click.testing import CliRunner
from fake_sweep import stored_workload
from table_rows import make_row

from rpa_tune.cli.main import cli
from rpa_tune.dispatch import dispatcher
from rpa_tune.errors import UsageError
from rpa_tune.models.server import Server
from rpa_tune.sweep.plan import load_plan
from rpa_tune.tables.writer import merge_into

SERVER = ["--model", "llama3-8b", "--chip", "v6e", "--max-num-seqs", "8",
          "--max-num-batched-tokens", "64", "--max-model-len", "1024"]  # fmt: skip


@pytest.fixture
def workload(tmp_path):
    return stored_workload(tmp_path)


def plan(*arguments):
    return CliRunner().invoke(cli, ["plan", *map(str, arguments)])


def test_standard_output_is_a_plan_and_nothing_else(tmp_path, workload) -> None:
    result = plan(*SERVER, "--tp", "2", "--workload", workload, "--workers", "1", "--simulate", "3")
    assert result.exit_code == 0, result.output
    path = tmp_path / "plan.yaml"
    path.write_text(result.stdout)
    assert load_plan(path).servers == (
        Server(model="llama3-8b", chip="v6e", tp=2, max_num_seqs=8, max_num_batched_tokens=64,
               max_model_len=1024),
    )  # fmt: skip
    assert "4 studies for 6 rows" in result.stderr
    assert "at most 12 distinct compiles" in result.stderr


def test_a_file_takes_the_plan_and_json_the_numbers(tmp_path, workload) -> None:
    path = tmp_path / "plan.yaml"
    result = plan(*SERVER, "--workload", workload, "-o", path, "--json")
    report = json.loads(result.stdout)
    assert path.read_text() == report["plan"]
    assert (report["rows"], len(report["studies"])) == (6, 4)
    assert sum(study["rows"] for study in report["studies"]) == 6
    assert f"rpa-tune sweep {path}" in result.stderr


def test_a_fleet_is_a_list_of_flag_sets(tmp_path, workload) -> None:
    fleet = tmp_path / "fleet.yaml"
    flags = {"model": "llama3-8b", "max_num_seqs": 8, "max_num_batched_tokens": 32}
    servers = [{**flags, "chip": "v6e"}, {**flags, "chip": "v7x", "dp": 2}]
    for content in (servers, {"servers": servers}):
        fleet.write_text(yaml.safe_dump(content))
        result = plan("--servers", fleet, "--workload", workload)
        assert [s["chip"] for s in yaml.safe_load(result.stdout)["servers"]] == ["v6e", "v7x"]


def test_only_what_the_tables_lack(tmp_path, workload, monkeypatch) -> None:
    monkeypatch.setattr(dispatcher, "shipped_folder", lambda: tmp_path / "shipped")
    (tmp_path / "shipped").mkdir()
    server = Server(model="llama3-8b", chip="v6e", max_num_seqs=8, max_num_batched_tokens=64,
                    max_model_len=1024)  # fmt: skip
    problems = [problem for _, problem in server.problems()]
    folder = tmp_path / "mine"
    merge_into(folder, [make_row("decode", problem) for problem in problems])
    merge_into(folder, [make_row("mixed", problems[0])])
    options = ["--workload", workload, "--missing", "--tables", folder, "--fail-on", "nearest"]
    found = yaml.safe_load(plan(*SERVER, *options).stdout)
    assert found["families"] == ["mixed"]
    assert found["servers"][0]["tokens"] == [32, 64]
    merge_into(folder, [make_row("mixed", problem) for problem in problems])
    result = plan(*SERVER, *options)
    assert isinstance(result.exception, UsageError)
    assert "nothing is missing" in str(result.exception)


def test_a_server_is_named_once(tmp_path) -> None:
    fleet = tmp_path / "fleet.yaml"
    fleet.write_text("[{model: llama3-8b, chip: v6e}]")
    for options, said in (
        (["--chip", "v6e"], "--model is missing"),
        (["--servers", fleet, "--chip", "v6e"], "stands in the place of"),
        (["--model", "llama3-8b", "--chip", "v6e", "--engine", "sglang-jax"], "pages of one token"),
    ):
        result = plan(*options)
        assert isinstance(result.exception, UsageError)
        assert said in str(result.exception)
