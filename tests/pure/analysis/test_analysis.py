"""`rpa_tune.explain`, `verify` and `audit` as calls: typed results, no output, clear errors."""

import pytest

import rpa_tune
from rpa_kernels.batch import Batch
from rpa_tune.analysis.audit import audit
from rpa_tune.analysis.explain import explain
from rpa_tune.analysis.question import as_workload, make_question
from rpa_tune.analysis.verify import verify
from rpa_tune.candidate import Status
from rpa_tune.dispatch.select import Source
from rpa_tune.errors import UsageError
from rpa_tune.evaluate import correctness, simulated
from rpa_tune.models.server import Server

BATCH = Batch(q_lens=(1, 1), kv_lens=(700, 90), num_decode=2)
ASKED = {"chip": "TPU v6e", "family": "Decode", "model": "llama3-8b"}
SERVER = {"model": "llama3-8b", "chip": "v6e", "max_num_seqs": 16, "max_num_batched_tokens": 64}


@pytest.fixture
def fake(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(simulated, "TASK", "pure.evaluate.fake_tasks:simulate_by_bytes")


def test_the_package_gives_what_its_modules_have():
    calls = (rpa_tune.explain, rpa_tune.verify, rpa_tune.audit, rpa_tune.Server)
    assert calls == (explain, verify, audit, Server)


def test_an_explanation_has_a_time_a_bound_and_neighbours(fake, tmp_path, capfd):
    found = rpa_tune.explain(**ASKED, workload=BATCH, tries=2, cache=tmp_path)
    assert found.ok
    assert found.time_us > 0
    assert found.lower_bound_us > 0
    assert found.question.candidate.family.name == "decode"
    assert found.question.candidate.chip.name == "v6e"
    assert sum(near.how == "tried" for near in found.neighbours) == 2
    assert found.advice
    assert capfd.readouterr() == ("", "")


def test_a_config_that_cannot_exist_is_an_answer(fake, tmp_path):
    found = rpa_tune.explain(
        **ASKED, workload=BATCH, config={"bkv_sz": 1 << 20, "bkv_csz": 1 << 20}, cache=tmp_path
    )
    assert not found.ok
    assert found.evaluation.status is Status.INFEASIBLE
    assert found.time_us is None
    assert found.neighbours == ()
    assert found.advice == ""


def test_a_batch_and_a_workload_of_it_are_the_same_question():
    workload = as_workload(BATCH, page_size=128)
    digests = {make_question(**ASKED, workload=w).candidate.digest for w in (BATCH, workload)}
    assert len(digests) == 1


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"family": "decoder"}, "'decoder' is not one of"),
        ({"chip": "v66"}, "unknown chip 'v66'"),
        ({"model": "llama33"}, "llama33"),
        ({"workload": "no-such-preset"}, "no-such-preset"),
        ({"config": {"block": 3}}, "'block' is not a field"),
        ({"config": {"bkv_sz": 1.5}}, "bkv_sz=1.5 must be an integer"),
        ({"tries": -1}, "tries=-1 must be an integer"),
        ({"page_size": 0}, "page_size=0"),
    ],
)
def test_what_cannot_be_asked_is_refused(fake, tmp_path, changes, complaint):
    asked = {**ASKED, "workload": BATCH, "cache": tmp_path, **changes}
    with pytest.raises(UsageError, match=complaint):
        rpa_tune.explain(**asked)


@pytest.mark.parametrize(("task", "ok"), [("check_right", True), ("check_wrong", False)])
def test_a_verification_says_whether_all_is_right(monkeypatch, capfd, task, ok):
    monkeypatch.setattr(correctness, "TASK", f"pure.compile.pool_tasks:{task}")
    found = rpa_tune.verify(**ASKED, batches=BATCH, page_size=16, workers=1)
    assert found.ok is ok
    assert found.can_exist
    assert [verdict.task.dma_mode for verdict in found.verdicts] == ["on_wait", "eager"]
    assert capfd.readouterr() == ("", "")
    with pytest.raises(UsageError, match="workers=0"):
        rpa_tune.verify(**ASKED, batches=BATCH, workers=0)


def test_a_config_that_cannot_exist_is_checked_once():
    found = rpa_tune.verify(**{**ASKED, "chip": "v4"}, config={"bkv_sz": 8192, "bkv_csz": 8192})
    assert len(found.verdicts) == 1
    assert not found.ok
    assert not found.can_exist


def test_an_audit_lists_every_look_up(tmp_path, capfd):
    server = rpa_tune.Server(**SERVER, kv_dtype="float8_e5m2")  # which no shipped row has
    found = rpa_tune.audit(server, tables=tmp_path)
    assert [e.problem.max_num_tokens for e in found.entries] == [16, 16, 32, 32, 64, 64]
    assert sum(found.counts.values()) == len(found.entries) == len(found.found)
    assert set(found.misses) == {e for e in found.entries if e.coverage is Source.HEURISTIC}
    assert not found.ok
    assert rpa_tune.audit(server, tables=tmp_path, fail_on="infeasible").ok
    assert capfd.readouterr() == ("", "")
    with pytest.raises(UsageError, match="'sometimes' is not one of"):
        rpa_tune.audit(server, fail_on="sometimes")
    with pytest.raises(UsageError, match="nothing to tune"):
        rpa_tune.audit(server, tables=tmp_path, fail_on="infeasible").plan_text("azure-conv")
