"""End to end: real kernels, the real compiler, the real simulator, a real workload's batches.

The account check is inside: an evaluation is OK only if the compiled schedule moves, for every
batch, exactly the bytes and copies that the family's account says.
"""

import dataclasses
import json
from itertools import pairwise
from pathlib import Path

import pytest

from rpa_kernels.batch import Batch
from rpa_tune.candidate import Candidate, Status
from rpa_tune.check.host import Health, check_compiles
from rpa_tune.cli.main import main
from rpa_tune.evaluate.analytical import AnalyticalEvaluator
from rpa_tune.evaluate.simulated import SimulatedEvaluator
from rpa_tune.families.registry import load_family
from rpa_tune.hw.chip import load_chip
from rpa_tune.models.catalog import load_model, problem_for
from rpa_tune.workload.workload import WeightedBatch, Workload

pytestmark = pytest.mark.aot

CHIPS = ("v4", "v5e", "v5p", "v6e", "v7x")
BATCHES = (
    Batch(q_lens=(1,) * 5, kv_lens=(1, 127, 128, 129, 1000), num_decode=5),
    Batch(q_lens=(1, 1, 200, 33), kv_lens=(513, 64, 456, 33), num_decode=2),
)
WORKLOAD = Workload(
    name="page boundaries",
    source="made up",
    batches=tuple(WeightedBatch(batch=batch, weight=0.5) for batch in BATCHES),
)
MODEL = load_model("llama3-8b").at_tp(4)


@pytest.fixture(scope="module")
def cache_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def evaluator(cache_dir):
    evaluator = SimulatedEvaluator(num_workers=2, cache_dir=cache_dir, deadline_s=300)
    yield evaluator
    evaluator.close()


def candidate(chip, family, workload=WORKLOAD, **config):
    problem = problem_for(MODEL, workload=workload, page_size=128)
    record, target = load_family(family), load_chip(chip)
    default = record.default_config(problem, target.target)
    return Candidate(
        family=record,
        problem=problem,
        config=dataclasses.replace(default, **config),
        chip=target,
        workload=workload.digest,
    )


def evaluate_one(evaluator, asked, workload=WORKLOAD):
    (evaluation,) = evaluator.evaluate_all([asked], workload)
    return evaluation


@pytest.mark.parametrize("family", ["decode", "mixed"])
def test_all_chips_have_times_and_bytes_equal_to_the_account(evaluator, family):
    asked = [candidate(chip, family) for chip in CHIPS]
    answers = {e.candidate.chip.name: e for e in evaluator.evaluate_all(asked, WORKLOAD)}
    bounds = AnalyticalEvaluator().evaluate_all(asked, WORKLOAD)
    for chip, bound in zip(CHIPS, bounds, strict=True):
        evaluation = answers[chip]
        assert evaluation.status is Status.OK, (chip, evaluation.detail)
        metrics = evaluation.metrics
        assert sum(metrics["cycles_by_owner"].values()) == metrics["total_cycles"]
        assert evaluation.time_us > bound.time_us, chip
        assert 0 < metrics["mbu"] < 1
        assert metrics["vmem_bytes"] > 0
        assert metrics["unknown"] == {}, chip


def test_the_second_answer_comes_from_the_cache_and_is_the_same(evaluator):
    first = evaluate_one(evaluator, candidate("v6e", "decode"))
    second = evaluate_one(evaluator, candidate("v6e", "decode"))
    assert second.metrics["from_cache"] is True
    assert second.batch_us == first.batch_us
    assert second.metrics["compile_s"] > 0  # what it cost when it was compiled


def test_more_context_never_takes_less(evaluator):
    times = []
    # None fills its last block: a full one needs no mask, so 1,024 may well take less than 1,000.
    for kv_len in (1, 129, 700, 1000):
        workload = Workload(
            name=f"{kv_len} tokens",
            source="made up",
            batches=(
                WeightedBatch(
                    batch=Batch(q_lens=(1,) * 4, kv_lens=(kv_len,) * 4, num_decode=4), weight=1.0
                ),
            ),
        )
        asked = candidate("v6e", "decode")
        # Four contexts of 1,024 tokens need more pages than `WORKLOAD` does.
        problem = dataclasses.replace(asked.problem, num_pages=32)
        asked = dataclasses.replace(asked, problem=problem, workload=workload.digest)
        times.append(evaluate_one(evaluator, asked, workload).time_us)
    assert all(less <= more for less, more in pairwise(times))


def test_what_the_compiler_refuses_is_a_status_with_its_figures(evaluator):
    # Fits VMEM by the account, but not with what the compiler adds to it.
    big = candidate("v4", "decode", num_buffers=3)
    for bkv_sz in (1024, 512):
        sizes = {"bkv_sz": bkv_sz, "bkv_csz": min(bkv_sz, big.config.bkv_csz), "seqs_per_step": 8}
        asked = dataclasses.replace(big, config=dataclasses.replace(big.config, **sizes))
        evaluation = evaluate_one(evaluator, asked)
        assert evaluation.status in (Status.OK, Status.OUT_OF_MEMORY, Status.INFEASIBLE)
        if evaluation.status is not Status.OK:
            assert "vmem" in evaluation.detail


def test_explain_on_the_command_line(cache_dir, tmp_path, capsys):
    batch = tmp_path / "batch.json"
    batch.write_text(json.dumps({"q_lens": [1, 1], "kv_lens": [700, 90], "num_decode": 2}))
    with pytest.raises(SystemExit) as exited:
        main([
            "explain", "--chip", "v5e", "--family", "decode", "--model", "llama3-8b",
            "--tp", "4", "--batch", str(batch), "--cache", str(cache_dir), "--json",
            "--trace", str(tmp_path / "trace.json"),
        ])  # fmt: skip
    assert not exited.value.code
    answer = json.loads(capsys.readouterr().out)
    assert answer["status"] == "ok"
    assert sum(answer["cycles_by_owner"].values()) == answer["total_cycles"]
    assert answer["batches"][0]["loops"]
    assert answer["guesses"]
    assert json.loads((tmp_path / "trace.json").read_text())["traceEvents"]


def test_a_damaged_schedule_in_the_cache_is_compiled_again(tmp_path):
    evaluator = SimulatedEvaluator(num_workers=1, cache_dir=tmp_path, deadline_s=300)
    first = evaluate_one(evaluator, candidate("v6e", "decode"))
    (schedule,) = Path(tmp_path).rglob("*final_bundles.txt.gz")
    schedule.write_bytes(schedule.read_bytes()[:1000])
    second = evaluate_one(evaluator, candidate("v6e", "decode"))
    evaluator.close()
    assert second.metrics["from_cache"] is False
    assert second.batch_us == first.batch_us


# What broke or changed every compile before kernels were traced under jax's defaults; and flags of
# which one is harmless and the other no compiler knows.
SHELLS = {
    "JAX_ENABLE_X64=1 JAX_DEFAULT_MATMUL_PRECISION=highest JAX_DISABLE_JIT=1": Health.OK,
    "JAX_ENABLE_X64=1 LIBTPU_INIT_ARGS=--xla_no_such_flag=1": Health.PROBLEM,
}


@pytest.mark.slow
@pytest.mark.parametrize("shell", SHELLS)
def test_the_doctor_compiles_and_understands_and_names_what_breaks_a_compile(monkeypatch, shell):
    for setting in shell.split():
        monkeypatch.setenv(*setting.split("=", 1))
    ours, theirs = check_compiles("v6e")
    assert ours.health is Health.OK, ours
    assert theirs.health is SHELLS[shell], theirs
    if theirs.health is Health.PROBLEM:
        assert theirs.found.startswith("LIBTPU_INIT_ARGS=--xla_no_such_flag=1: ")
        assert theirs.advice.startswith("unset LIBTPU_INIT_ARGS where")


def test_a_cache_that_cannot_be_written_costs_nothing_but_the_cache(tmp_path):
    blocked = tmp_path / "file"
    blocked.touch()
    evaluator = SimulatedEvaluator(num_workers=1, cache_dir=blocked, deadline_s=300)
    evaluation = evaluate_one(evaluator, candidate("v6e", "decode"))
    evaluator.close()
    assert evaluation.status is Status.OK
    assert str(blocked) in evaluation.metrics["not_cached"]
