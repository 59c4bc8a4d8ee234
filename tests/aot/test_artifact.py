"""A real artefact: the executables of a small table's plans, for a v6e that is not there."""

import json
import logging
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from table_rows import default_config, make_row

import rpa_tune
from rpa_kernels import load_family
from rpa_kernels.problem import Problem
from rpa_tune.artifact.compiled import plan_of
from rpa_tune.artifact.file import Artifact
from rpa_tune.compile.pool import WorkerPool
from rpa_tune.compile.target import build_environment
from rpa_tune.dispatch.dispatcher import load_dispatcher
from rpa_tune.models.buckets import Engine
from rpa_tune.provenance import kernel_digest, versions
from rpa_tune.tables.reader import Tables, load_tables
from rpa_tune.tables.row import Clause
from rpa_tune.tables.step import Step
from rpa_tune.tables.writer import merge_into

pytestmark = pytest.mark.aot

PROBLEM = Problem(
    num_q_heads=8, num_kv_heads=2, head_dim=128, page_size=128, max_num_tokens=16, max_num_seqs=8,
    pages_per_seq=8, num_pages=64, sm_scale=128**-0.5,
)  # fmt: skip
SERVER = ["--model", "llama3-8b", "--tp", "4", "--chip", "v6e", "--max-num-seqs", "8",
          "--max-num-batched-tokens", "16", "--max-model-len", "1024",
          "--page-size", "128", "--json"]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A table: two configs of decode by longest context, one of mixed."""
    folder = tmp_path_factory.mktemp("compile")
    small, large = (default_config("decode", PROBLEM, bkv_sz=n, bkv_csz=n) for n in (128, 256))
    rule = (Clause(use=0, feature="longest_context_tokens", at_most=128), Clause(use=1))
    rows = [make_row("decode", PROBLEM, configs=[small, large], rule=rule),
            make_row("mixed", PROBLEM)]  # fmt: skip
    merge_into(folder / "tables", rows)
    return folder


def compile_in(folder, name, cache):
    command = [sys.executable, "-m", "rpa_tune", "compile", *SERVER, "--tables", "tables",
               "--workers", "1", "-o", name, "--cache", cache]  # fmt: skip
    run = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=600)
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


@pytest.fixture(scope="module")
def report(folder):
    return compile_in(folder, "kernels.zip", "cache")


def test_the_artefact_holds_the_plans_of_the_table(folder, report):
    artifact = Artifact(folder / "kernels.zip", sha256=report["sha256"])
    dispatcher = load_dispatcher("v6e", load_tables([folder / "tables"]))
    plans = dispatcher.plans(PROBLEM, Engine(max_num_seqs=8, max_num_batched_tokens=16))
    found = {plan_of(e, dispatcher.chip.target): e for e in artifact.manifest.executables}
    assert set(found) == set(plans)
    assert len(plans) == 5  # two decode configs, with and without mixed, and mixed alone
    for plan, executable in found.items():
        content = artifact.read(executable)
        assert len(content) > 100_000
        for launch in plan.launches:
            name = load_family(launch.family).kernel_name(PROBLEM, launch.config)
            assert name.encode() in content


def test_the_manifest_says_what_it_was_made_with(folder, report):
    manifest = Artifact(folder / "kernels.zip").manifest
    assert (manifest.chip, manifest.device_kind) == ("v6e", "TPU v6 lite")
    assert manifest.versions == {n: versions()[n] for n in ("jax", "jaxlib", "libtpu")}
    assert manifest.sources["decode"] == kernel_digest("decode")
    assert manifest.left_out == ()
    assert manifest.executables[0].problem == PROBLEM.to_dict()


def test_no_path_of_this_machine_is_inside(folder, report):
    artifact = Artifact(folder / "kernels.zip")
    here = [str(folder), str(Path(rpa_tune.__file__).parent), str(Path(sys.prefix))]
    for executable in artifact.manifest.executables:
        content = artifact.read(executable)
        assert not [path for path in here if path.encode() in content]


@pytest.mark.slow
def test_building_again_gives_the_same_bytes(folder, report):
    """From what is kept, and compiled anew by another process."""
    for name, cache in (("kept.zip", "cache"), ("anew.zip", "other")):
        again = compile_in(folder, name, cache)
        assert again["sha256"] == report["sha256"]
        assert again["num_kept"] == (5 if cache == "cache" else 0)


def test_a_host_without_the_chip_says_so_once_and_does_without(folder, report, caplog):
    with caplog.at_level(logging.WARNING, "rpa_tune.dispatch"):
        dispatcher = load_dispatcher("v6e", artifact=folder / "kernels.zip")
    assert dispatcher.compiled is None
    (record,) = caplog.records
    assert "device kind TPU v6 lite there, cpu here" in record.getMessage()


def test_a_donated_cache_is_never_copied():
    """By the compiler's own account: the results take the arguments' memory, in any plan."""
    problem = replace(PROBLEM, num_pages=4096)
    cache_bytes = problem.num_pages * problem.page_size * problem.kv_token_bytes
    q_bytes = problem.max_num_tokens * problem.num_q_heads * problem.head_dim * 2
    dispatcher = load_dispatcher("v6e", Tables(), "heuristic")
    plan = dispatcher.plan(problem, Step.of([1, 7], [9, 9], [1, 1, 2]))
    assert plan.families == ("decode", "mixed")
    with WorkerPool(num_workers=1, deadline_s=120, environment=build_environment) as pool:
        tasks = [(plan, True), (plan, False)]
        replies = list(pool.map_unordered("aot.compile_tasks:memory_of_plan", tasks))
    assert [reply.failure for reply in replies] == [None, None]
    donated, kept = (reply.value for reply in sorted(replies, key=lambda reply: reply.index))
    assert donated["alias"] == cache_bytes + q_bytes
    assert donated["temp"] < cache_bytes / 100
    assert kept["alias"] == 0
