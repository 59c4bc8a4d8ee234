"""Exports: what an engine's own look-up finds, and what is left out with the reason."""

import json
from dataclasses import replace

import pytest
from click.testing import CliRunner
from table_rows import PROBLEM, make_row, timed_row

from rpa_tune.cli.tables import tables
from rpa_tune.errors import UsageError
from rpa_tune.interop.export import EXPORTERS, export_env, export_kwargs
from rpa_tune.interop.export_rows import OURS
from rpa_tune.interop.public.tokamax.table import call_spec
from rpa_tune.interop.sglang_jax_tables import table_key
from rpa_tune.interop.tpu_inference_tables import hd64_key
from rpa_tune.tables.lint import lint_folder
from rpa_tune.tables.reader import load_tables
from rpa_tune.tables.row import Clause
from rpa_tune.tables.writer import merge_into

DECODE = {"bq_sz": 1, "bkv_sz": 256, "bq_csz": 1, "bkv_csz": 128}
MIXED = {"bq_sz": 32, "bkv_sz": 256, "bq_csz": 16, "bkv_csz": 128}
BATCHED = {"bq_sz": 1, "bq_c_sz": 1, "bkv_sz": 256, "batch_size": 4, "n_buffer": 3}
HD64 = replace(PROBLEM, head_dim=64)


def public_rows():
    return [
        timed_row("public-v3-decode", configs=[DECODE]),
        timed_row("public-v3-mixed", configs=[MIXED]),
        timed_row("public-batched-decode", configs=[BATCHED]),
        timed_row("public-hd64", problem=HD64, configs=[{"bq_sz": 32, "bkv_sz": 128}]),
    ]


def test_keywords_of_both_cases_come_together():
    calls = json.loads(export_kwargs(public_rows()).text)["calls"]
    found = {call["kernel"]: call["kwargs"] for call in calls}
    assert found["v3"] == {
        "d_block_sizes": [1, 256, 1, 128],
        "m_block_sizes": [32, 256, 16, 128],
    }
    assert found["batched"] == {"decode_block_sizes": BATCHED}
    assert found["hd64"] == {"num_kv_pages_per_block": 8, "num_queries_per_block": 32}


def test_variables_are_one_set_for_the_process():
    rows = public_rows()[:2]
    assert export_env(rows).text == (
        "export RPA_V3_DECODE_BLOCK_SIZES=1,256,1,128\n"
        "export RPA_V3_MIXED_BLOCK_SIZES=32,256,16,128\n"
    )
    wider = replace(PROBLEM, max_num_seqs=16)
    other = make_row("public-v3-decode", problem=wider, configs=[{**DECODE, "bkv_sz": 128}])
    with pytest.raises(UsageError, match=r"max_num_seqs \(8, 16\)"):
        export_env([*rows, other])


@pytest.mark.parametrize("form", list(EXPORTERS))
def test_rows_that_beat_nothing_are_left_out_with_the_reason(form):
    rows = [
        replace(row, evidence=replace(row.evidence, heuristic_us=None))
        for row in [*public_rows(), *tokamax_rows()]
    ]
    export = EXPORTERS[form](rows)
    assert not export.exported
    assert len(export.left_out) == len(rows)
    assert any("no time to compare with" in left.why for left in export.left_out)


@pytest.mark.parametrize("form", list(EXPORTERS))
def test_our_own_rows_and_rules_are_never_dropped_in_silence(form):
    ours = make_row("decode")
    rule = (Clause(feature="num_seqs", at_most=4, use=1), Clause(use=0))
    ruled = make_row("public-v3-decode", configs=[DECODE, {**DECODE, "bkv_sz": 128}], rule=rule)
    found = EXPORTERS[form]([ours, ruled])
    assert not found.exported
    reasons = [left.why for left in found.left_out]
    assert OURS in reasons
    assert len(reasons) == 2


def test_v3_has_no_table_in_tpu_inference_and_the_export_says_so():
    found = EXPORTERS["tpu-inference"](public_rows())
    assert {row.key.family for row in found.exported} == {"public-batched-decode", "public-hd64"}
    assert all("reads no table" in left.why for left in found.left_out)


def test_sglang_key_of_decode_has_one_token_a_sequence():
    expected = ("d", None, "bfloat16", "bfloat16", 8, 2, 128, 16, 8)
    assert table_key(PROBLEM, is_decode=True) == expected
    assert table_key(PROBLEM, is_decode=False) == ("m", *expected[1:8], 32)
    decode = public_rows()[0]
    longer = timed_row(
        "public-v3-decode", problem=replace(PROBLEM, pages_per_seq=64), configs=[DECODE]
    )
    found = EXPORTERS["sglang-jax"]([decode, longer])
    assert [left.row for left in found.left_out] == [longer]
    namespace = {"TUNED_BLOCK_SIZES_V3": {}}
    exec(found.text.split("TUNED_BLOCK_SIZES_V3\n", 1)[1], namespace)
    assert namespace["TUNED_BLOCK_SIZES_V3"] == {"TPU v6e": {expected: (1, 256, 1, 128)}}


def test_hd64_key():
    assert hd64_key(HD64, "v6e") == (
        "TPU v6e", 16, "q_bfloat16_kv_bfloat16", "q_head-8_kv_head-2_head-64",
        "max_model_len-256-sw-None",
    )  # fmt: skip


@pytest.mark.parametrize("form", ["tpu-inference", "sglang-jax"])
def test_rows_that_do_not_say_what_was_timed_are_left_out(form):
    old = make_row("public-hd64", problem=HD64, configs=[{"bq_sz": 32, "bkv_sz": 128}])
    if form == "sglang-jax":
        old = make_row("public-v3-decode", configs=[DECODE])
    found = EXPORTERS[form]([old])
    assert not found.exported
    assert "does not say the exact" in found.left_out[0].why


def test_command_writes_data_to_stdout_and_reasons_to_stderr(tmp_path):
    merge_into(tmp_path, [*public_rows(), make_row("decode")])
    result = CliRunner().invoke(tables, ["export", str(tmp_path), "--format", "kwargs"])
    assert result.exit_code == 0, result.output
    assert len(json.loads(result.stdout)["calls"]) == 3
    assert f"1 {OURS}" in result.stderr
    result = CliRunner().invoke(tables, ["export", str(tmp_path), "--format", "tpu-inference"])
    assert result.exit_code == 3
    assert "reads no table" in result.stderr


def test_rows_of_public_kernels_pass_lint_and_stale_ones_do_not(tmp_path):
    merge_into(tmp_path, public_rows())
    digests = {row.key.family: row.evidence.kernel_digest for row in load_tables([tmp_path])}
    assert [f for f in lint_folder(tmp_path, digests) if f.rule != "evidence"] == []
    other = dict.fromkeys(digests, "tpu-inference-9.9.9/1")
    assert {f.rule for f in lint_folder(tmp_path, other)} >= {"stale"}


def tokamax_rows(chip="v6e", **mixed):
    decode = {"bq_sz": 1, "bq_c_sz": 1, "bkv_sz": 256, "batch_size": 4, "n_buffer": 2}
    blocks = {"bq_sz": 64, "bq_c_sz": 32, "bkv_sz": 256, "batch_size": 1, "n_buffer": 2, **mixed}
    return [
        timed_row("public-tokamax-decode", chip=chip, configs=[decode]),
        timed_row("public-tokamax-mixed", chip=chip, configs=[blocks]),
    ]


def test_two_rows_make_one_entry_of_tokamax_by_its_own_names():
    rows = tokamax_rows()
    found = EXPORTERS["tokamax"](rows)
    assert found.exported == rows
    ((call, entry),) = json.loads(found.text).items()
    assert json.loads(call) == call_spec(PROBLEM)
    assert json.loads(call)["kv_cache"] == "bf16[128,16,2,2,128]"
    ((config, data),) = entry.items()
    assert json.loads(config) == {
        "prefill_bq_sz": 64, "prefill_bq_c_sz": 32, "bkv_sz": 256, "n_buffer": 2,
        "decode_batch_size": 4, "prefill_batch_size": 1, "kv_layout": "HEAD_ALONG_SUBLANE",
    }  # fmt: skip
    assert data["metadata"]["rpa_tune"]["mixed"].startswith("simulated")


@pytest.mark.parametrize(
    ("rows", "why"),
    [(tokamax_rows()[:1], "no mixed row for the same call"),
     (tokamax_rows(n_buffer=3), "the rows say n_buffer 2 and 3"),
     (public_rows(), "tokamax has no kernel of this kind"),
     ([replace(r, evidence=replace(r.evidence, problem=None)) for r in tokamax_rows()], "old row")],
)  # fmt: skip
def test_what_tokamax_cannot_say_is_left_out(rows, why):
    found = EXPORTERS["tokamax"](rows)
    assert not found.exported
    assert json.loads(found.text) == {}
    assert all(why in left.why for left in found.left_out)
    assert len(found.left_out) == len(rows)


def test_winners_that_do_not_agree_make_room_for_timed_configs_that_do():
    decode, mixed = tokamax_rows(n_buffer=3)
    others = [  # the second is what the mixed winner shares, and loses least of both together
        {"config": {**decode.configs[0], "bkv_sz": 512}, "time_us": 50.5},
        {"config": {**decode.configs[0], "n_buffer": 3, "batch_size": 8}, "time_us": 52.0},
    ]
    slow = [{"config": {**mixed.configs[0], "n_buffer": 2}, "time_us": 58.0}]
    rows = [
        replace(row, evidence=replace(row.evidence, runners_up=tuple(after)))
        for row, after in ((decode, others), (mixed, slow))
    ]
    found = EXPORTERS["tokamax"](rows)
    assert found.exported == rows
    ((entry),) = json.loads(found.text).values()
    ((config, data),) = entry.items()
    config = json.loads(config)
    assert (config["bkv_sz"], config["n_buffer"], config["decode_batch_size"]) == (256, 3, 8)
    assert data["evaluation_times_ms"] == [pytest.approx(0.102)]
    said = data["metadata"]["rpa_tune"]
    assert (
        said["decode"]
        == "simulated 52.0 us, made-up; by itself 50.0 us with bkv_sz 256, n_buffer 2"
    )
    assert said["mixed"] == "simulated 50.0 us, made-up"


def test_keys_of_tokamax_have_the_pages_of_the_callers_cache(tmp_path):
    merge_into(tmp_path, tokamax_rows())
    asked = ["export", str(tmp_path), "--num-pages", "4096", "--format"]
    result = CliRunner().invoke(tables, [*asked, "tokamax"])
    (call,) = json.loads(result.stdout)
    assert json.loads(call) == call_spec(replace(PROBLEM, num_pages=4096))
    refused = CliRunner().invoke(tables, [*asked, "env"])
    assert "--num-pages=4096 says nothing to --format env" in str(refused.exception)


def test_a_table_of_tokamax_is_for_one_device():
    with pytest.raises(UsageError, match="rows are for v6e, v7x"):
        EXPORTERS["tokamax"]([*tokamax_rows(), *tokamax_rows(chip="v7x")])
