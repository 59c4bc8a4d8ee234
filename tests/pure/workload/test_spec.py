"""Mappings, presets, and what is said of mistakes in them."""

import json
from pathlib import Path
from typing import Any

import pytest

from rpa_tune.errors import TraceError, UsageError
from rpa_tune.workload.build import build_workload, serve
from rpa_tune.workload.knobs import KvRole
from rpa_tune.workload.spec import TraceSource, load_presets, read_spec
from rpa_tune.workload.synthetic import Synthetic
from rpa_tune.workload.workload import load_workload, resolve

LENGTHS = {"count": 40, "prompt_tokens": 50, "output_tokens": 8}


def spec_of(page_size: int = 16, **sections: Any) -> Any:
    return read_spec({"requests": LENGTHS, **sections}, page_size=page_size)


@pytest.mark.parametrize("name", sorted(load_presets()))
def test_preset_makes_a_workload_and_says_where_from(name: str) -> None:
    spec = resolve(name, page_size=128)
    assert spec.name == name
    assert spec.source
    assert load_presets()[name]["about"]
    if isinstance(spec.requests, TraceSource):  # shorter, to be quick: the same path
        changes: dict[str, Any] = {"requests": {"limit": 120}}
    else:
        assert isinstance(spec.requests, Synthetic)
        changes = {"requests": {"count": 132}}
    short = read_spec({"preset": name, **changes}, page_size=128)
    build = build_workload(short)
    assert build.workload.source == spec.source
    assert 1 <= len(build.workload.batches) <= 16
    batches = [wb.batch for wb in build.workload.batches]
    families = {
        f for f in ("decode", "prefill", "mixed") for batch in batches if batch.family_seqs(f)
    }
    if spec.knobs.kv_role is KvRole.DECODE:
        assert families == {"decode"}
    else:
        assert "mixed" in families
    assert ("prefill" in families) == (spec.knobs.kv_role is KvRole.PREFILL)
    if spec.knobs.num_speculative_tokens:
        verified = [q for batch in batches for q in batch.q_lens]
        assert verified.count(1 + spec.knobs.num_speculative_tokens) > len(verified) / 2


def test_every_kind_of_service_has_a_low_and_a_high_load() -> None:
    kinds = {name.rpartition("-")[0] for name in load_presets() if name.endswith(("-low", "-high"))}
    wanted = {
        "chat", "code", "long-context", "agentic", "offline-batch", "prefill-only", "decode-only",
        "speculative",
    }  # fmt: skip
    assert kinds == wanted
    assert all(f"{kind}-{load}" in load_presets() for kind in kinds for load in ("low", "high"))


def test_preset_is_changed_knob_by_knob() -> None:
    spec = read_spec(
        {"preset": "azure-conv", "engine": {"max_num_seqs": 8}, "seed": 3}, page_size=64
    )
    assert (spec.knobs.max_num_seqs, spec.knobs.max_num_batched_tokens) == (8, 1024)
    assert spec.knobs.block_size == 64
    assert spec.name == "azure-conv, changed"
    assert spec.seed == 3


def test_requests_of_another_kind_replace_the_presets() -> None:
    spec = read_spec({"preset": "azure-conv", "requests": LENGTHS}, page_size=64)
    assert isinstance(spec.requests, Synthetic)
    assert spec.source == "40 synthetic requests"


def test_sglang_names_mean_the_same() -> None:
    spec = spec_of(
        engine={
            "scheduler": "sglang",
            "max_running_requests": 7,
            "chunked_prefill_size": 512,
            "context_length": 1024,
            "max_total_tokens": 2048,
        }
    )
    knobs = spec.knobs
    assert (knobs.max_num_seqs, knobs.max_num_batched_tokens, knobs.max_model_len) == (7, 512, 1024)
    assert knobs.num_gpu_blocks == 1 + 2048 // 16


MISTAKES = [
    ({"requests": {}}, "missing key 'prompt_tokens', or a 'trace'", ".requests"),
    ({"requests": 5}, "a mapping is needed, got 5", ".requests"),
    ({"request": LENGTHS}, "unknown key 'request'", ""),
    ({"preset": "chat-hihg"}, "unknown workload 'chat-hihg'", ".preset"),
    ({"requests": {**LENGTHS, "count": "9"}}, "a int is needed, got '9'", ".requests.count"),
    ({"requests": {**LENGTHS, "count": 0}}, "count=0 must be", ".requests"),
    ({"requests": {"trace": "mooncake", "limits": 5}}, "unknown key 'limits'", ".requests"),
    ({"requests": {"trace": "mooncake", "limit": 0}}, "limit=0 must be", ".requests"),
    ({"requests": {"trace": "x", "time_unit": "min"}}, "must be one of s, ms, us", ".requests"),
    ({"requests": {"trace": "x", "block_tokens": 0}}, "block_tokens=0 must be", ".requests"),
    ({"requests": {"trace": "x", "turns": "all"}}, "must be one of full, new", ".requests"),
    ({"requests": {5: 1, "trace": "x"}}, "unknown key 5", ".requests"),
    ({True: 1}, "unknown key True", ""),
    ({"arrivals": {"process": "poisson"}}, "needs a request_rate", ".arrivals"),
    ({"arrivals": {"request_rate": float("inf")}}, "a finite number", ".arrivals.request_rate"),
    ({"arrivals": {"burstiness": float("nan")}}, "a finite number", ".arrivals.burstiness"),
    ({"requests": {**LENGTHS, "count": 10**30}}, "below 2..63", ".requests.count"),
    ({"compress": {"batches": -1}}, "batches=-1 must be", ".compress"),
    ({"compress": {"page_tables": "real"}}, "must be 'drawn' or 'engine'", ".compress"),
    ({"chunk_prefill_size": 1}, "at least 2 tokens", ".chunk_prefill_size"),
    ({"decode_query_size": 9}, "1 to 8 tokens are needed, got 9", ".decode_query_size"),
    ({"seed": -1}, "a seed from 0", ".seed"),
    ({"requests": {"capture": "x"}, "engine": {}}, "neither 'arrivals' nor 'engine'", ""),
]
ENGINE_MISTAKES = [
    ({"max_seqs": 5}, "unknown key 'max_seqs'", ""),
    ({"block_size": 8}, "differs from the problem's page_size=16", ".block_size"),
    ({"max_num_seqs": 5, "max_running_requests": 5}, "are the same knob", ""),
    ({"scheduler": "vlm"}, "unknown value 'vlm'", ".scheduler"),
    ({"max_num_seqs": True}, "a int is needed", ".max_num_seqs"),
    ({"max_total_tokens": 5}, "at least page_size=16 tokens", ".max_total_tokens"),
    ({"step_time": {"weights_us": 0}}, "weights_us=0.0 must be above 0", ".step_time"),
    ({"step_time": {"weights_us": float("nan")}}, "a finite number", ".step_time.weights_us"),
    ({"step_time": {"us_per_token": 10**400}}, "a finite number", ".step_time.us_per_token"),
]


@pytest.mark.parametrize(
    ("mapping", "message", "where"),
    MISTAKES + [({"engine": e}, message, f".engine{at}") for e, message, at in ENGINE_MISTAKES],
)
def test_mistakes_say_where(mapping: dict[str, Any], message: str, where: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        read_spec({"requests": LENGTHS, **mapping}, page_size=16, where="plan.yaml:3")
    assert caught.value.where == f"plan.yaml:3{where}"


def test_requests_must_come_from_somewhere() -> None:
    with pytest.raises(UsageError, match="missing key 'requests'"):
        read_spec({"seed": 1}, page_size=16)


def test_near_misses_are_suggested() -> None:
    with pytest.raises(UsageError) as caught:
        spec_of(engine={"max_num_seq": 5})
    assert "did you mean max_num_seqs?" in caught.value.hint


def test_engine_page_tables_are_kept_when_asked_for() -> None:
    workload = build_workload(spec_of(compress={"page_tables": "engine"})).workload
    tables = [wb.batch.page_table for wb in workload.batches]
    assert all(table is not None for table in tables)
    assert workload.num_pages(16) == 1 + max(max(row) for table in tables for row in table)
    recorded = {"requests": {"capture": "x"}, "compress": {"page_tables": "engine"}}
    spec = read_spec(recorded, page_size=16)
    with pytest.raises(TraceError, match="no page tables"):
        build_workload(spec)


def test_steady_state_leaves_out_the_ramps() -> None:
    sections = {"arrivals": {"process": "poisson", "request_rate": 20.0}}
    steady = serve(spec_of(**sections))
    whole = serve(spec_of(**sections, compress={"steady_state": False}))
    assert len(whole.steps) == whole.num_all_steps == steady.num_all_steps
    assert 0 < len(steady.steps) < len(whole.steps)


def test_workload_is_deterministic_by_seed() -> None:
    sections = {"arrivals": {"process": "poisson", "request_rate": 20.0}}
    digests = [build_workload(spec_of(**sections, seed=s)).workload.digest for s in (0, 0, 1)]
    assert digests[0] == digests[1] != digests[2]


def test_path_to_a_trace_is_a_workload(tmp_path: Path) -> None:
    path = tmp_path / "mine.csv"
    path.write_text("arrival_s,prompt_tokens,output_tokens\n" + "0.5,100,4\n" * 30)
    workload = load_workload(str(path), page_size=16)
    assert workload.name == str(path)
    assert workload.source == (
        f"trace {path} (lengths by column names; times in s (by the name of 'arrival_s'); "
        "30 requests)"
    )
    assert workload.max_context_tokens == 103


def test_guessed_lengths_are_called_so(tmp_path: Path) -> None:
    path = tmp_path / "talk.json"
    turns = [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "you"}]
    path.write_text(json.dumps([{"conversations": turns}]))
    assert "guessed from characters" in load_workload(str(path), page_size=16).source


def test_requests_without_times_are_never_at_once_unsaid(tmp_path: Path) -> None:
    path = tmp_path / "mine.csv"
    path.write_text("prompt_tokens,output_tokens\n" + "100,4\n" * 3)
    for requests, said in (({"trace": str(path)}, "the trace has"), (LENGTHS, "synthetic")):
        source = build_workload(spec_of(requests=requests)).workload.source
        assert said in source
        assert source.endswith("no times: all arrive at once")
        for arrivals in ({"process": "trace"}, {"request_rate": 5.0}):
            with pytest.raises(TraceError, match="no times, which `") as caught:
                build_workload(spec_of(requests=requests, arrivals=arrivals))
            assert "`arrivals: {process: at_once, request_rate: null}`" in caught.value.hint
        chosen = {"process": "poisson", "request_rate": 5.0}
        source = build_workload(spec_of(requests=requests, arrivals=chosen)).workload.source
        assert "at once" not in source


def test_preset_over_another_trace_has_another_source(tmp_path: Path) -> None:
    path = tmp_path / "mine.csv"
    path.write_text("arrival_s,prompt_tokens,output_tokens\n0,9,2\n1,9,2\n2,9,2\n")
    spec = read_spec({"preset": "azure-conv", "requests": {"trace": str(path)}}, page_size=16)
    assert spec.source == f"trace {path}"
    assert "3 requests in 2.000 s, 1.000 a second" in build_workload(spec).workload.source
