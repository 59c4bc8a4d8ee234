"""`rpa-tune compile` without a compiler: which plans are asked for, and what is made of answers."""

import json
from typing import ClassVar

import pytest
from click.testing import CliRunner

import rpa_tune
from rpa_tune.artifact import build
from rpa_tune.artifact.file import Artifact
from rpa_tune.cli import compile as command
from rpa_tune.cli.main import cli
from rpa_tune.compile.failure import Failure, FailureKind, Reply
from rpa_tune.errors import ArtifactError, RpaTuneError, TableError, UsageError

SERVER = ["--model", "llama3-8b", "--chip", "v6e", "--max-num-seqs", "8",
          "--max-num-batched-tokens", "32", "--max-model-len", "1024"]  # fmt: skip


class FakePool:
    """Answers in the parent: the families as bytes, unless told to refuse them."""

    asked: ClassVar[list] = []
    refused: ClassVar[dict] = {}

    def __init__(self, *, num_workers, deadline_s, environment):
        assert num_workers >= 1

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def map_unordered(self, function, arguments, *, deadline_s=None):
        assert function == "rpa_tune.artifact.build:compile_plan"
        for index, plan in reversed(list(enumerate(arguments))):
            FakePool.asked.append(plan)
            answer = FakePool.refused.get(plan.families, ("+".join(plan.families).encode(), ""))
            if isinstance(answer, Failure):
                yield Reply(index=index, seconds=1.0, failure=answer)
            else:
                yield Reply(index=index, seconds=1.0, value=answer)


@pytest.fixture(autouse=True)
def pool(monkeypatch):
    monkeypatch.setattr(command, "WorkerPool", FakePool)
    monkeypatch.setattr(FakePool, "asked", [])
    monkeypatch.setattr(FakePool, "refused", {})
    return FakePool


@pytest.fixture
def run(tmp_path):
    def run(*options, server=SERVER):
        output = ["-o", tmp_path / "k.zip", "--cache", tmp_path / "cache"]
        arguments = ["compile", *server, *output, *options]
        return CliRunner().invoke(cli, list(map(str, arguments)))

    return run


def shapes(plans):
    return [(p.problem.max_num_tokens, "+".join(p.families)) for p in plans]


def test_every_plan_of_the_server_is_compiled_and_kept(run, pool, tmp_path):
    result = run("--json")
    assert result.exit_code == 0, result.output
    wanted = [(16, "decode"), (16, "mixed"), (16, "decode+mixed"), (32, "mixed"),
              (32, "decode+mixed")]  # fmt: skip
    assert sorted(shapes(pool.asked)) == sorted(wanted)
    report = json.loads(result.stdout)
    artifact = Artifact(tmp_path / "k.zip", sha256=report["sha256"])
    assert report["num_executables"] == len(artifact.manifest.executables) == 5
    families = {
        artifact.read(e): "+".join(one["family"] for one in e.launches).encode()
        for e in artifact.manifest.executables
    }
    assert all(content == name for content, name in families.items())
    pool.asked.clear()
    again = json.loads(run("--json").stdout)
    assert (again["num_kept"], again["sha256"], pool.asked) == (5, report["sha256"], [])


def test_the_line_for_the_host_opens_the_file(run, tmp_path):
    line = run().stdout.strip().splitlines()[-1]
    expression = line[line.index("rpa_tune.Artifact") : -1]  # inside of load_dispatcher(artifact=)
    artifact = eval(expression, {"rpa_tune": rpa_tune})
    assert artifact.path == tmp_path / "k.zip"


def test_sizes_dtypes_and_scales_are_those_that_were_given(run, pool):
    options = ["--kv-dtype", "int8", "--k-scale", "0.5", "--v-scale", "2", "--q-dtype", "float32",
               "--num-pages", "77", "--sm-scale", "0.1", "--tp", "4"]  # fmt: skip
    assert run(*options).exit_code == 0
    for problem in {plan.problem for plan in pool.asked}:
        assert (problem.kv_dtype, problem.k_scale, problem.v_scale) == ("int8", 0.5, 2.0)
        assert (problem.q_dtype, problem.num_pages, problem.sm_scale) == ("float32", 77, 0.1)
        assert (problem.num_q_heads, problem.num_kv_heads) == (8, 2)
    pool.asked.clear()
    run()
    pages = 8 * 1024 // 64  # the page size of the engine's choice
    assert {(p.problem.num_pages, p.problem.sm_scale) for p in pool.asked} == {(pages, 128**-0.5)}


def test_both_kinds_of_layers_are_compiled(run, pool):
    run(server=["--model", "gpt-oss-20b", *SERVER[2:]])
    assert {plan.problem.sliding_window for plan in pool.asked} == {None, 128}


def test_what_is_refused_is_left_out_and_the_rest_written(run, pool, tmp_path):
    pool.refused = {
        ("decode",): (b"", "out_of_memory: vmem"),
        ("mixed",): Failure(kind=FailureKind.DEADLINE, phase="compile", detail="600 s are over"),
    }
    result = run()
    assert result.exit_code == 1
    assert "3 left out" in result.stdout
    assert "decode: left out: out_of_memory: vmem" in result.stderr
    manifest = Artifact(tmp_path / "k.zip").manifest
    assert len(manifest.executables) == 2
    assert {one["reason"] for one in manifest.left_out} == {"out_of_memory: vmem", "600 s are over"}
    pool.asked.clear()
    run()  # what did not compile is tried again, what did is not
    assert {plan.families for plan in pool.asked} == {("decode",), ("mixed",)}


def test_nothing_compiled_writes_nothing(run, pool, tmp_path):
    gone = Failure(kind=FailureKind.EXCEPTION, phase="lower", detail="no libtpu")
    pool.refused = dict.fromkeys([("decode",), ("mixed",), ("decode", "mixed")], gone)
    result = run()
    assert isinstance(result.exception, RpaTuneError)
    assert "no plan compiled: no libtpu" in str(result.exception)
    assert not (tmp_path / "k.zip").exists()


def test_dry_run_says_what_each_plan_rests_on(run, pool):
    result = run("--dry-run")
    assert result.stdout.splitlines()[-1] == "5 plans"
    assert "16 tokens, 8 seqs: decode+mixed" in result.stdout
    assert "  decode: heuristic: " in result.stdout
    listed = json.loads(run("--dry-run", "--json").stdout)["plans"]
    assert [len(plan["why"]) for plan in listed] == [len(plan["families"]) for plan in listed]
    assert pool.asked == []


def test_what_cannot_be_is_said_before_anything_is_compiled(run, pool, tmp_path):
    bad = [
        (UsageError, ["--tp", "3"], SERVER),
        (UsageError, [], ["--model", "no-such", *SERVER[2:]]),
        (UsageError, [], [*SERVER[:2], "--chip", "v9", *SERVER[4:]]),
        (UsageError, ["--max-model-len", str(1 << 30), "--page-size", "128"], SERVER),
        (TableError, ["--on-miss", "error", "--page-size", "14"], SERVER),
    ]
    for kind, options, server in bad:
        assert isinstance(run(*options, server=server).exception, kind), options
    assert pool.asked == []
    (tmp_path / "folder").mkdir()
    assert isinstance(run("-o", tmp_path / "folder").exception, ArtifactError)


def test_a_full_disk_costs_the_cache_only(run, monkeypatch, tmp_path):
    def full(path, content):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(build, "write_whole", full)
    assert run().exit_code == 0
    assert len(Artifact(tmp_path / "k.zip").manifest.executables) == 5
