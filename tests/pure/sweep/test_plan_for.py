"""From servers to a plan: what it says, and that a sweep takes it as it is."""

import itertools
import json
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner
from fake_sweep import stored_workload

import rpa_tune
from rpa_tune.cli.main import cli
from rpa_tune.errors import UsageError
from rpa_tune.models.server import Server
from rpa_tune.sweep.plan import load_plan
from rpa_tune.sweep.plan_for import families_of_kernel, never_launched, plan_for, plan_text
from rpa_tune.sweep.study import build_studies
from rpa_tune.tables.key import tuning_key

SERVER = {"model": "llama3-8b", "chip": "v6e", "max_num_seqs": 16, "max_num_batched_tokens": 64}


@pytest.fixture
def workload(tmp_path):
    return stored_workload(tmp_path)


def test_a_plan_has_all_flags_of_the_server_and_is_a_plan(tmp_path, workload) -> None:
    server = Server(**SERVER, tp=2, page_size=64, kv_dtype="float8_e4m3fn", bucket_seqs=True,
                    max_model_len=4096, dp=2, token_buckets=(48,))  # fmt: skip
    made = rpa_tune.plan_for(server, workload=workload, search={"simulate": 5})
    assert yaml.safe_load(made.text) == {
        "about": "Every attention call of llama3-8b on v6e.",
        "servers": [
            {"model": "llama3-8b", "chip": "v6e", "tp": 2, "max_num_seqs": 16,
             "max_num_batched_tokens": 64, "max_model_len": 4096, "page_size": 64,
             "kv_dtype": "float8_e4m3fn", "dp": 2, "token_buckets": [48], "bucket_seqs": True},
        ],
        "workload": workload,
        "search": {"simulate": 5},
    }  # fmt: skip
    path = tmp_path / "plan.yaml"
    path.write_text(made.text)
    plan = load_plan(path)
    assert plan.servers == (server,)
    assert [study.digest for study in build_studies(plan)] == [s.digest for s in made.studies]
    assert made.num_compiles == 5 * len(made.studies)


def test_the_comments_say_what_it_comes_to(workload) -> None:
    made = plan_for(Server(**SERVER), workload=workload)
    text = made.text
    assert (len(made.studies), made.num_rows) == (1 + 3, 2 * 3)
    assert "# 4 studies for 6 rows, 2 of them filled by a study of another shape" in text
    assert "# at most 80 distinct compiles; about" in text
    assert "# shapes: 16, 32, 64 tokens; 16 sequences" in text
    assert "32 query and 8 KV heads of 128 a device, 32 pages of 256 tokens a sequence" in text


def test_each_problem_of_a_fleet_is_in_it_once(workload) -> None:
    one = plan_for(Server(**SERVER), workload=workload)
    other = {**SERVER, "model": "qwen3-8b"}  # the same attention
    both = plan_for([Server(**SERVER), Server(**other), Server(**SERVER)], workload=workload)
    assert len(both.servers) == 2
    assert both.num_rows == one.num_rows
    with pytest.raises(UsageError, match="no server"):
        plan_for([], workload=workload)


def test_families_that_a_workload_never_launches_are_left_out_with_the_reason(workload) -> None:
    server = Server(**SERVER, uses_prefill=True)
    left_out = never_launched([server], workload, ["decode", "prefill", "mixed"])
    assert list(left_out) == ["prefill"]
    assert "prefill" in left_out["prefill"]
    text, _ = plan_text([server], workload=workload)
    assert yaml.safe_load(text)["families"] == ["decode", "mixed"]
    with pytest.raises(UsageError, match="launches none of prefill") as e:
        plan_text([server], workload=workload, families=["prefill"])
    assert e.value.hint == "name another --workload"


def test_decode_launches_of_sglang_jax_have_shapes_of_their_own(tmp_path) -> None:
    server = Server(model="llama3-8b", chip="v6e", engine="sglang-jax", page_size=128,
                    max_num_seqs=8, max_num_batched_tokens=128)  # fmt: skip
    path = tmp_path / "requests.jsonl"
    rows = [{"timestamp": 0, "input_length": 90, "output_length": 20} for _ in range(30)]
    path.write_text("\n".join(map(json.dumps, rows)))
    made = plan_for(server, workload=str(path))
    assert {study.family.name for study in made.studies} == {"decode", "mixed"}
    decodes = [s for s in made.studies if s.family.name == "decode" and s.problem.max_num_seqs <= 4]
    assert [s.problem.max_num_tokens for s in decodes] == [1, 2, 4]
    for study in decodes:
        assert all(not wb.batch.misfit(study.problem) for wb in study.workload.batches)


def test_the_kernel_that_the_engine_runs_by_itself_is_planned_for_the_heads_of_its_layers() -> None:
    llama, oss = (Server(**{**SERVER, "model": name}) for name in ("llama3-8b", "gpt-oss-20b"))
    v3 = ["public-v3-decode", "public-v3-mixed"]
    assert families_of_kernel([llama], "public") == v3
    assert families_of_kernel([oss, llama], "public") == ["public-hd64", *v3]
    assert families_of_kernel([llama], "batched") == [
        "public-batched-decode", "public-batched-mixed",
    ]  # fmt: skip
    sglang = {"engine": "sglang-jax", "page_size": 64}
    assert families_of_kernel([Server(**SERVER, **sglang)], "public") == v3
    with pytest.raises(UsageError, match="sglang-jax has no batched kernel"):
        families_of_kernel([Server(**SERVER, **sglang)], "batched")
    with pytest.raises(UsageError, match="heads of 64 are padded"):
        families_of_kernel([Server(**{**SERVER, "model": "gpt-oss-20b"}, **sglang)], "public")


def test_a_plan_of_public_kernels_has_their_studies(workload) -> None:
    flags = [part for name, value in SERVER.items()
             for part in (f"--{name.replace('_', '-')}", str(value))]  # fmt: skip
    asked = ["plan", *flags, "--kernel", "public", "--workload", workload, "--json"]
    run = CliRunner().invoke(cli, asked)
    assert run.exit_code == 0, run.output
    studies = json.loads(run.stdout)["studies"]
    assert {study["family"] for study in studies} == {"public-v3-decode", "public-v3-mixed"}
    run = CliRunner().invoke(cli, [*asked, "--missing"])
    assert isinstance(run.exception, UsageError)
    assert "--missing looks our own kernels up" in str(run.exception)


MODELS = ("llama3-8b", "qwen3-32b", "gemma3-27b", "gpt-oss-120b", "llama3-70b")
FLEET = [
    Server(model=model, chip=chip, tp=tp)
    for (model, chip), tp in zip(
        itertools.product(MODELS, ("v6e", "v7x")), (1, 2, 4, 8, 2, 4, 8, 8, 8, 4), strict=True
    )
]


@pytest.fixture
def requests(tmp_path):
    """A few requests, so that they are served in no time."""
    rows = [{"timestamp": 50 * i, "input_length": 200 + 90 * i, "output_length": 9}
            for i in range(12)]  # fmt: skip
    path = tmp_path / "requests.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    return str(path)


def write_and_dry_run(fleet, requests, folder: Path) -> list[dict]:
    """The studies that a dry run lists of the plan that `rpa-tune plan` wrote for a fleet."""
    file, plan = folder / "fleet.yaml", folder / "plan.yaml"
    file.write_text(yaml.safe_dump([{"model": s.model, "chip": s.chip, "tp": s.tp} for s in fleet]))
    options = ["--servers", file, "--workload", requests, "-o", plan]
    result = CliRunner().invoke(cli, ["plan", *map(str, options)])
    assert result.exit_code == 0, result.output
    assert result.stdout == ""
    assert "distinct compiles" in result.stderr
    store = ["--store", str(folder / "store.jsonl"), "--json"]
    dry = CliRunner().invoke(cli, ["sweep", str(plan), "--dry-run", *store])
    assert dry.exit_code == 0, dry.output
    return json.loads(dry.stdout)["studies"]


def test_every_look_up_of_ten_servers_has_a_study_that_makes_its_row(requests) -> None:
    """Five models on v6e and v7x, tp 1 to 8, the engine's default flags."""
    made = plan_for(FLEET, workload=requests)
    keys = [key for study in made.studies for key in study.keys]
    asked = {
        tuning_key(problem, server.chip, family)
        for server in FLEET
        for _, problem in server.problems()
        for family in server.families
    }
    assert len(keys) == len(set(keys))
    assert set(keys) == asked
    assert made.num_rows == len(asked) > len(made.studies)


def test_a_server_goes_from_flags_to_a_dry_run_without_editing(tmp_path, requests) -> None:
    assert len(write_and_dry_run(FLEET[9:], requests, tmp_path)) == 1 + 10


@pytest.mark.slow  # a space for each of 154 studies
def test_ten_servers_go_from_flags_to_a_dry_run_without_editing(tmp_path, requests) -> None:
    studies = write_and_dry_run(FLEET, requests, tmp_path)
    assert len(studies) == len(plan_for(FLEET, workload=requests).studies)
