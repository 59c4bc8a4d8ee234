"""The plan that tunes what an audit misses, read again as a sweep reads it."""

import json

import pytest
import yaml

from rpa_tune.analysis.audit import audit
from rpa_tune.analysis.audit_plan import left_out_of_plan, plan_text
from rpa_tune.errors import UsageError
from rpa_tune.models.server import Server
from rpa_tune.sweep.plan import load_plan

SERVER = {"model": "llama3-8b", "chip": "v6e", "max_num_seqs": 16, "max_num_batched_tokens": 64}


@pytest.fixture
def workload(tmp_path):
    """Decode and mixed sequences, and no prefill ones."""
    batch = {"q_lens": [1, 5], "kv_lens": [9, 9], "num_decode": 1, "weight": 1.0}
    data = {"schema": "rpa-workload/1", "name": "w", "source": "made up", "batches": [batch]}
    path = tmp_path / "w.json"
    path.write_text(json.dumps(data))
    return str(path)


def misses_of(server, tmp_path):
    folder = tmp_path / "tables"
    folder.mkdir()
    return audit(server, tables=folder).misses


def test_a_plan_has_all_options_of_the_server_and_is_a_plan(tmp_path, workload) -> None:
    server = Server(**SERVER, tp=2, page_size=64, kv_dtype="float8_e4m3fn", bucket_seqs=True,
                    max_model_len=4096)  # fmt: skip
    text = plan_text(server, misses_of(server, tmp_path), workload)
    assert yaml.safe_load(text) == {
        "about": "What rpa-tune audit finds untuned for llama3-8b on v6e.",
        "chip": "v6e", "model": "llama3-8b", "families": ["decode", "mixed"], "page_size": 64,
        "kv_dtype": "float8_e4m3fn", "tp": 2, "workload": workload,
        "server": {"max_num_seqs": 16, "max_num_batched_tokens": 64, "max_model_len": 4096,
                   "bucket_seqs": True},
    }  # fmt: skip
    path = tmp_path / "plan.yaml"
    path.write_text(text)
    assert load_plan(path).about.startswith("What rpa-tune audit finds")


def test_shapes_are_named_only_where_some_have_rows(tmp_path, workload) -> None:
    server = Server(**SERVER)
    misses = misses_of(server, tmp_path)
    some = [m for m in misses if m.problem.max_num_tokens != 32]
    assert yaml.safe_load(plan_text(server, some, workload))["server"]["tokens"] == [16, 64]
    # A shape that one of the families misses is missed.
    some = [m for m in misses if (m.family, m.problem.max_num_tokens) != ("decode", 32)]
    assert "tokens" not in yaml.safe_load(plan_text(server, some, workload))["server"]
    only = [m for m in misses if m.family == "decode"]
    assert yaml.safe_load(plan_text(server, only, workload))["families"] == ["decode"]


def test_families_that_a_workload_never_launches_are_left_out_with_the_reason(
    tmp_path, workload
) -> None:
    server = Server(**SERVER, uses_prefill=True)
    misses = misses_of(server, tmp_path)
    left_out = left_out_of_plan(server, misses, workload)
    assert list(left_out) == ["prefill"]
    assert "prefill" in left_out["prefill"]
    assert yaml.safe_load(plan_text(server, misses, workload))["families"] == ["decode", "mixed"]
    only = [m for m in misses if m.family == "prefill"]
    with pytest.raises(UsageError, match="launches none of prefill") as e:
        plan_text(server, only, workload)
    assert e.value.hint == "name another --workload"
