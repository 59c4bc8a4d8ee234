"""Workloads: presets, digests, families, JSON, and what a wrong name says."""

import json
from pathlib import Path

import pytest

from rpa_kernels.batch import Batch
from rpa_tune.errors import TraceError, UsageError
from rpa_tune.workload.batches import combine
from rpa_tune.workload.build import build_workload
from rpa_tune.workload.spec import preset_mapping, read_spec
from rpa_tune.workload.trace import TraceRules, load_trace
from rpa_tune.workload.workload import WeightedBatch, Workload, load_workload, mapping_of

DECODE = Batch(q_lens=(1, 1), kv_lens=(100, 300), num_decode=2)
BOTH = Batch(q_lens=(1, 64), kv_lens=(500, 64), num_decode=1)


def make_workload(*pairs: tuple[Batch, float], name: str = "made") -> Workload:
    batches = tuple(WeightedBatch(batch=batch, weight=weight) for batch, weight in pairs)
    return Workload(name=name, source="a test", batches=batches)


def test_azure_conv_is_small_and_serves_both_families() -> None:
    workload = load_workload("azure-conv", page_size=128)
    assert workload.max_num_seqs <= 64
    assert workload.max_num_tokens <= 1024
    assert 8 <= len(workload.for_family("decode").batches) <= 16
    assert 8 <= len(workload.for_family("mixed").batches) <= 16
    assert workload == load_workload("azure-conv", page_size=128)


def test_json_round_trip_keeps_everything() -> None:
    table = Batch(q_lens=(1,), kv_lens=(130,), num_decode=1, page_table=((7, 3),))
    workload = make_workload((DECODE, 0.25), (BOTH, 0.25), (table, 0.5))
    again = Workload.from_dict(json.loads(json.dumps(workload.to_dict())))
    assert again == workload
    assert again.digest == workload.digest


def test_digest_follows_content_and_not_the_name() -> None:
    one = make_workload((DECODE, 0.5), (BOTH, 0.5))
    assert one.digest == make_workload((DECODE, 0.5), (BOTH, 0.5), name="other").digest
    assert one.digest != make_workload((DECODE, 0.4), (BOTH, 0.6)).digest
    assert len(one.digest) == 16


def test_for_family_keeps_its_batches_whole_and_renormalises() -> None:
    workload = make_workload((DECODE, 0.75), (BOTH, 0.25))
    mixed = workload.for_family("mixed")
    assert [wb.batch for wb in mixed.batches] == [BOTH]
    assert mixed.batches[0].weight == 1.0
    assert workload.for_family("decode") == workload
    with pytest.raises(ValueError, match="never launches family 'prefill'"):
        workload.for_family("prefill")


def test_limits_cover_every_batch() -> None:
    workload = make_workload((DECODE, 0.5), (BOTH, 0.5))
    assert (workload.max_num_seqs, workload.max_num_tokens) == (2, 65)
    assert workload.max_context_tokens == 500
    assert workload.num_pages(128) == 5  # 4 pages of 500 tokens and 1 of 64


@pytest.mark.parametrize("weights", [(0.5, 0.6), (1.0, 0.0)])
def test_weights_must_be_shares(weights: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match="weight"):
        make_workload((DECODE, weights[0]), (BOTH, weights[1]))


def test_unknown_name_says_what_there_is() -> None:
    with pytest.raises(UsageError, match="unknown workload 'azure-cnv'") as caught:
        load_workload("azure-cnv", page_size=128)
    assert "did you mean azure-conv?" in caught.value.hint
    assert "mooncake" in caught.value.hint


def test_a_weighted_set_is_the_batches_of_all_with_their_share_of_launches() -> None:
    parts = [load_workload(name, page_size=128) for name in ("azure-conv", "azure-code")]
    whole = load_workload({"azure-conv": 3, "azure-code": 1}, page_size=128)
    assert [wb.batch for wb in whole.batches] == [wb.batch for p in parts for wb in p.batches]
    num = len(parts[0].batches)
    assert sum(wb.weight for wb in whole.batches[:num]) == pytest.approx(0.75)
    assert whole.name == "75 % azure-conv + 25 % azure-code"
    assert parts[1].source in whole.source
    same = load_workload({"azure-conv": 0.75, "azure-code": 0.25}, page_size=128)
    assert same.digest == whole.digest
    assert whole.digest not in {part.digest for part in parts}


def test_a_family_sees_the_launches_of_a_set_that_have_it() -> None:
    """A part that launches a family seldom counts little in that family's share."""
    decode_only = make_workload((DECODE, 1.0), name="a")
    seldom = make_workload((DECODE, 0.9), (BOTH, 0.1), name="b")
    often = make_workload((BOTH, 1.0), name="c")
    mixed = combine([decode_only, seldom, often], [2, 1, 1]).for_family("mixed")
    assert [wb.weight for wb in mixed.batches] == pytest.approx([0.1 / 1.1, 1 / 1.1])


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"azure-conv": 0.7, "azure-code": 0}, "weight of workload 'azure-code'"),
        ({"azure-conv": 0.7, "azure-code": "most"}, "above 0, got 'most'"),
        ({"azure-conv": 0.7, "azure-code": True}, "above 0, got True"),
        ({"azure-conv": float("inf")}, "above 0, got inf"),
        ({"azure-cnv": 1.0}, "unknown workload 'azure-cnv'"),
        ({"azure-conv": 0.7, "seed": 1}, "unknown key 'azure-conv'"),
        ({}, "missing key 'requests'"),
    ],
)
def test_errors_of_weighted_sets_name_the_part(spec, message) -> None:
    with pytest.raises(UsageError, match=message):
        load_workload(spec, page_size=128)


@pytest.mark.parametrize("name", ["Azure_Conv", "AZURE-CONV", "azure conv"])
def test_presets_and_traces_are_found_however_they_are_spelt(name: str) -> None:
    assert mapping_of(name) == mapping_of("azure-conv")
    assert preset_mapping(name)["name"] == "azure-conv"
    rules = TraceRules(max_model_len=8192, drop_bad=True, limit=5)
    assert load_trace(name, rules) == load_trace("azure-conv", rules)
    assert load_trace("azure_conv_2023", rules).name == "azure-conv"


def test_a_file_comes_before_another_spelling_of_a_trace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("Mooncake").write_text("TIMESTAMP,ContextTokens,GeneratedTokens\n0,7,3\n")
    trace = load_trace("Mooncake", TraceRules(max_model_len=8192))
    assert [request.prompt_tokens for request in trace.requests] == [7]
    with pytest.raises(TraceError) as caught:
        load_trace("azure-cnv", TraceRules(max_model_len=8192))
    assert "did you mean azure-conv?" in caught.value.hint


@pytest.mark.parametrize("steady", [True, False])
def test_what_is_kept_does_not_depend_on_whether_all_is_served(steady) -> None:
    """The steps after the last arrival count for the engine's numbers alone."""
    spec = read_spec(
        {"requests": {"count": 40, "prompt_tokens": 30, "output_tokens": 50},
         "arrivals": {"process": "poisson", "request_rate": 60},
         "engine": {"max_num_seqs": 4, "max_num_batched_tokens": 16, "max_model_len": 128},
         "compress": {"steady_state": steady}},
        page_size=16,
    )  # fmt: skip
    whole, cut = build_workload(spec), build_workload(spec, to_the_end=False)
    assert cut.workload == whole.workload
    assert cut.workload.digest == whole.workload.digest
    assert (cut.served.num_all_steps < whole.served.num_all_steps) == steady
    assert whole.served.stats.num_finished == 40
