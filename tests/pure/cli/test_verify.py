"""`rpa-tune verify` with stand-ins for the interpreter: options, verdicts, exit codes."""

import itertools
import json

import pytest

from rpa_kernels import load_family
from rpa_tune.analysis import verify as analysis
from rpa_tune.analysis.verify import make_tasks
from rpa_tune.candidate import Status
from rpa_tune.cli.main import main
from rpa_tune.cli.options import parse_config
from rpa_tune.compile import process
from rpa_tune.errors import UsageError
from rpa_tune.evaluate import correctness
from rpa_tune.evaluate.correctness import check_all, hostile_batches

SHAPE = {
    "tp": 4, "page_size": 16, "q_dtype": "bfloat16", "kv_dtype": "bfloat16", "layers": None,
    "windowed": None,
}  # fmt: skip


def tasks(family="decode", config="bkv_sz=128,bkv_csz=128", **changes):
    return make_tasks(**{
        "chip": "v6e", "family": family, "model": "llama3-8b",
        "config": parse_config(config), "seed": 0, **SHAPE, **changes,
    })  # fmt: skip


@pytest.mark.parametrize("family", ["decode", "mixed", "prefill"])
def test_hostile_lengths_include_one_boundaries_and_neighbours(family):
    batches = hostile_batches(family, page_size=16, block_tokens=128)
    served = {batch.kv_lens[i] for batch in batches for i in batch.family_seqs(family)}
    assert {127, 128, 129, 16, 17} <= served
    assert max(served) > 256
    if family != "prefill":
        assert 1 in served
    assert any(len(batch.family_seqs(family)) < batch.num_seqs for batch in batches)


@pytest.mark.parametrize("family", ["decode", "mixed", "prefill"])
def test_hostile_pages_are_all_different_and_have_runs_of_both_directions(family):
    steps = set()
    for batch in hostile_batches(family, page_size=16, block_tokens=128):
        counts = [-(-kv_len // 16) for kv_len in batch.kv_lens]
        assert [len(row) for row in batch.page_table] == counts
        assert sorted(itertools.chain(*batch.page_table)) == list(range(sum(counts)))
        steps |= {b - a for row in batch.page_table for a, b in itertools.pairwise(row)}
    assert {1, -1} < steps


@pytest.mark.parametrize("family", ["decode", "mixed"])
def test_every_batch_fits_and_is_checked_with_copies_late_and_early(family):
    made = tasks(family)
    assert {task.dma_mode for task in made} == {"on_wait", "eager"}
    assert all(task.batch.misfit(task.problem) is None for task in made)
    assert {task.config.bkv_sz for task in made} == {128}
    assert made[0].problem.num_q_heads == 8


def test_a_bad_config_is_infeasible_and_not_run(monkeypatch):
    monkeypatch.setattr(correctness, "TASK", "no_such_module:f")
    made = tasks(config="bkv_sz=100,bkv_csz=100")
    verdicts = list(check_all(made, num_workers=1, deadline_s=10))
    assert {v.status for v in verdicts} == {Status.INFEASIBLE}


def test_a_config_that_cannot_exist_is_said_so_once(capsys):
    with pytest.raises(SystemExit) as exited:
        main(["verify", "--chip", "v4", "--family", "decode", "--model", "llama3-8b",
              "--config", "bkv_sz=8192,bkv_csz=8192"])  # fmt: skip
    said = capsys.readouterr().out
    assert exited.value.code == 1
    assert said.count("vmem_bytes: need") == 1
    assert said.endswith("infeasible\n")


def test_unknown_fields_are_usage_errors():
    with pytest.raises(UsageError, match="not a field"):
        tasks(config="block=3")


@pytest.mark.parametrize(
    ("task", "status", "code", "said"),
    [
        ("check_right", "ok", 0, "correct"),
        ("check_wrong", "wrong_answer", 1, "data race"),
        ("fail", "run_failed", 1, "ValueError"),
        ("killed_every_time", "crashed", 1, "SIGKILL"),
    ],
)
def test_verdicts_and_exit_codes(monkeypatch, capsys, tmp_path, task, status, code, said):
    monkeypatch.setattr(correctness, "TASK", f"pure.compile.pool_tasks:{task}")
    batch = tmp_path / "batch.json"
    batch.write_text(json.dumps({"q_lens": [1], "kv_lens": [20], "num_decode": 1}))
    args = [
        "verify", "--chip", "v6e", "--family", "decode", "--model", "llama3-8b", "--page-size",
        "16", "--batch", str(batch), "--workers", "1",
    ]  # fmt: skip
    with pytest.raises(SystemExit) as exited:
        main([*args, "--json"])
    answer = json.loads(capsys.readouterr().out)
    assert (exited.value.code or 0) == code
    assert answer["ok"] is (code == 0)
    assert [check["status"] for check in answer["checks"]] == [status, status]
    with pytest.raises(SystemExit):
        main(args)
    assert said in capsys.readouterr().out


def test_the_default_config_is_the_familys_own():
    (first, *_) = tasks(config="")
    assert set(first.config.__dataclass_fields__) == set(
        load_family("decode").config_type.__dataclass_fields__
    )


@pytest.mark.parametrize(
    ("lint", "code", "said"),
    [("lint_race", 1, "(dma_race, bounds_check): dma_race\n"), ("lint_nothing", 0, "ok  "),
     ("fail", 1, "ValueError")],
)  # fmt: skip
def test_the_compilers_linter_is_asked_once_where_it_is_there(
    monkeypatch, capsys, tmp_path, lint, code, said
):
    monkeypatch.setattr(process, "SETUP", "pure.sweep.fault_tasks:no_setup")
    monkeypatch.setattr(correctness, "TASK", "pure.compile.pool_tasks:check_right")
    monkeypatch.setattr(analysis, "LINT_TASK", f"pure.compile.pool_tasks:{lint}")
    monkeypatch.setattr(analysis, "versions", lambda: {"libtpu": "0.0.52"})
    batch = tmp_path / "batch.json"
    batch.write_text(json.dumps({"q_lens": [1], "kv_lens": [20], "num_decode": 1}))
    args = [
        "verify", "--chip", "v6e", "--family", "decode", "--model", "llama3-8b", "--page-size",
        "16", "--batch", str(batch), "--workers", "1",
    ]  # fmt: skip
    with pytest.raises(SystemExit) as exited:
        main(args)
    out = capsys.readouterr().out
    assert (exited.value.code or 0) == code
    assert said in out
    assert "the compiler's linter" in out
    assert out.endswith("correct\n" if code == 0 else "WRONG\n")


def test_a_linter_that_is_not_there_is_refused_only_when_it_is_wanted(monkeypatch):
    monkeypatch.setattr(analysis, "versions", lambda: {"libtpu": "0.0.42.1"})
    assert analysis.wants_lint(None) is False
    assert analysis.wants_lint(False) is False
    with pytest.raises(UsageError, match="has no linter"):
        analysis.wants_lint(True)
