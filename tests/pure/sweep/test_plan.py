"""Plans: what they mean, and errors that say file and line."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from rpa_tune.errors import UsageError
from rpa_tune.families.registry import load_family
from rpa_tune.models.buckets import shape_of
from rpa_tune.models.server import Server
from rpa_tune.sweep.plan import load_plan
from rpa_tune.sweep.shapes import ServedWorkload, groups_of
from rpa_tune.sweep.study import build_studies
from rpa_tune.workload.workload import load_workload

GOOD = """\
about: a question
chip: v6e
model: llama3-8b
families: [decode, mixed]
page_size: 128
workload: {requests: {count: 8, prompt_tokens: 100, output_tokens: 20}, compress: {batches: 2}}
space:
  decode:
    bkv_sz: [128, 512 tokens, 8 pages]
search: {simulate: 5, wave: 2, deadline: 1.5m, seed: 3}
budget: 90s
"""


def plan_of(tmp_path, text=GOOD):
    path = tmp_path / "plan.yaml"
    path.write_text(text)
    return load_plan(path)


def test_a_good_plan(tmp_path):
    plan = plan_of(tmp_path)
    assert (plan.chips, plan.models, plan.page_sizes) == (("v6e",), ("llama3-8b",), (128,))
    assert plan.overrides == {"decode": {"bkv_sz": (128, 512, 1024)}}
    assert (plan.search.simulate, plan.search.wave, plan.search.seed) == (5, 2, 3)
    assert plan.search.deadline_s == 90.0
    assert plan.budget_s == 90.0
    assert plan.name == "plan"
    names = [study.name for study in build_studies(plan)]
    assert names == ["v6e/llama3-8b/decode", "v6e/llama3-8b/mixed"]


def test_blocks_that_are_a_part_of_a_page_and_switches_that_are_off(tmp_path):
    text = GOOD.replace("space:", "space:\n  mixed: {bkv_sz: [32, 64], mxu_sums: [0, 1]}")
    overrides = plan_of(tmp_path, text).overrides
    assert overrides["mixed"] == {"bkv_sz": (32, 64), "mxu_sums": (0, 1)}
    with pytest.raises(
        UsageError, match="mxu_sums=2 must be an integer of at least 0 and at most 1"
    ):
        plan_of(tmp_path, text.replace("[0, 1]", "[2]"))


def test_a_weighted_set_of_workloads_is_one_workload(tmp_path):
    weighted = re.sub("workload: .*", "workload: {azure-conv: 0.7, azure-code: 0.3}", GOOD)
    alone = re.sub("workload: .*", "workload: azure-conv", GOOD)
    studies = build_studies(plan_of(tmp_path, weighted))
    assert [study.family.name for study in studies] == ["decode", "mixed"]
    first = build_studies(plan_of(tmp_path, alone))[0].workload
    both = studies[0].workload
    assert len(both.batches) > len(first.batches)
    assert sum(batch.weight for batch in both.batches) == pytest.approx(1)
    assert "azure-conv" in both.name
    assert "azure-code" in both.name


def test_lists_are_crossed(tmp_path):
    text = GOOD.replace("chip: v6e", "chip: [v5e, v6e]").replace(
        "page_size: 128", "page_size: [64, 128]"
    )
    text = text.replace("8 pages", "1024").replace("512 tokens", "512")
    studies = build_studies(plan_of(tmp_path, text))
    assert len(studies) == 8
    assert len({study.name for study in studies}) == 8
    assert len({(s.chip, s.problem, s.family) for s in studies}) == 8


def test_layers_with_and_without_a_window_are_two_studies(tmp_path):
    text = GOOD.replace("llama3-8b", "gemma3-27b")
    short = build_studies(plan_of(tmp_path, text))
    assert {study.problem.sliding_window for study in short} == {None}  # contexts of 120 tokens
    studies = build_studies(plan_of(tmp_path, text.replace("tokens: 100", "tokens: 1500")))
    assert {study.problem.sliding_window for study in studies} == {None, 1024}


@pytest.mark.parametrize(
    ("old", "new", "line", "message", "hint"),
    [
        ("chip: v6e", "chip: v6", 2, "unknown chip 'v6'", "did you mean v6e"),
        ("[decode, mixed]", "[decoder]", 4, "unknown family 'decoder'", "did you mean decode"),
        ("about:", "abuot:", 1, "unknown key 'abuot'", "did you mean about"),
        ("simulate: 5", "simulates: 5", 10, "unknown key 'simulates'", "did you mean simulate"),
        ("bkv_sz:", "bkv_size:", 9, "unknown key 'bkv_size'", "did you mean bkv_sz"),
        ("512 tokens", "512 bytes", 9, "unknown unit 'bytes'", "tokens, pages"),
        ("budget: 90s", "budget: 90 parsecs", 11, "unknown unit 'parsecs'", "s, m or h"),
        ("budget: 90s", "budget: 90", 11, "budget=90 has no unit", "s, m or h"),
        ("8 pages", "2.5 pages", 9, "bkv_sz='2.5 pages' is not a whole number", ""),
        ("budget: 90s", "budget: soon", 11, "not a number", ""),
        ("[128, 512", "[100, 512", 9, "bkv_sz=100 is not a multiple of page_size=128", "128, 256"),
        ("[128, 512", "[0, 512", 9, "bkv_sz=0 must be an integer of at least 1", ""),
        ("page_size: 128", "page_size: 0", 5, "must be an integer of at least 1", ""),
        ("page_size: 128", "page_size: [128", 6, "not YAML", ""),
        ("simulate: 5", "simulate: many", 10, "simulate='many'", ""),
        ("chip: v6e", "chip: []", 2, "chip is empty", ""),
        ("chip: v6e", "chip: v6e\nchip: v5e", 3, "appears twice", ""),
        ("families: [decode, mixed]\n", "", None, "missing families", ""),
        ("budget: 90s", "dtype: fp16", 11, "unknown dtype 'fp16'", "bfloat16"),
        ("budget: 90s", "workload: 3", 11, "appears twice", ""),
        ("budget: 90s", "objective: fastest", 11, "unknown objective 'fastest'", "expected_time"),
        ("seed: 3", "sampler: krigin", 10, "unknown sampler 'krigin'", "did you mean kriging"),
        ("seed: 3", "configs: 9", 10, "configs=9: a row has at most 8", ""),
        ("seed: 3", "configs: 0", 10, "must be an integer of at least 1", ""),
        ("seed: 3", "seed: -1", 10, "must be an integer of at least 0", ""),
        ("seed: 3", "seed: true", 10, "must be an integer", ""),
        ("[128, 512 tokens, 8 pages]", "[]", 9, "bkv_sz has no values", ""),
        ("  decode:", "  prefill:", 8, "unknown key 'prefill' in space", ""),
        ("workload: {", "workload: 3 #", 6, "workload must be a preset", ""),
    ],
)
def test_errors_name_file_and_line(tmp_path, old, new, line, message, hint):
    with pytest.raises(UsageError) as caught:
        plan_of(tmp_path, GOOD.replace(old, new, 1))
    error = caught.value
    assert message in error.args[0]
    assert hint in error.hint
    where = error.where.split(" ")[0]
    assert where == str(tmp_path / "plan.yaml") + (f":{line}" if line else "")


@pytest.mark.parametrize(
    ("old", "new", "line", "message"),
    [
        ("llama3-8b", "llama3-8", 3, "unknown model 'llama3-8'"),
        ("workload: {requests", "workload: {request", 6, "unknown key"),
        ("budget: 90s", "tp: 3", 11, "cannot run at tp=3"),
        ("workload: {", "workload: {azure-conv: 0.7, azure-cod: 0.3} # {", 6, "azure-cod"),
        ("workload: {", "workload: {azure-conv: 0.7, azure-code: -1} # {", 6, "azure-code"),
        ("prompt_tokens:", "promt_tokens:", 6, "prompt_tokens"),
        ("output_tokens: 20", "output_tokens: 1", 4, "never launches family 'decode'"),
    ],
)
def test_errors_found_while_building_name_the_line_too(tmp_path, old, new, line, message):
    with pytest.raises(UsageError) as caught:
        build_studies(plan_of(tmp_path, GOOD.replace(old, new, 1)))
    assert message in str(caught.value)
    assert caught.value.where.split(" ")[0] == str(tmp_path / f"plan.yaml:{line}")


def test_a_shipped_plan_is_found_by_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    plan = load_plan(Path("quickstart"))
    assert plan == load_plan(SHIPPED_FOLDER / "quickstart.yaml")
    assert (plan.name, plan.path) == ("quickstart", SHIPPED_FOLDER / "quickstart.yaml")


def test_a_file_comes_before_a_shipped_plan_of_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "quickstart").write_text(GOOD)
    assert load_plan(Path("quickstart")).path == Path("quickstart")


def test_a_name_of_no_plan_lists_the_shipped_ones():
    with pytest.raises(UsageError, match="neither a file nor a plan") as caught:
        load_plan(Path("quick"))
    assert all(path.stem in caught.value.hint for path in SHIPPED)
    for other in ("quickstart.yaml", "folder/quickstart"):
        with pytest.raises(UsageError, match="No such file"):
            load_plan(Path(other))


def test_files_that_are_no_plans(tmp_path):
    with pytest.raises(UsageError, match="No such file"):
        load_plan(tmp_path / "none.yaml")
    with pytest.raises(UsageError, match="empty"):
        plan_of(tmp_path, "# nothing\n")
    with pytest.raises(UsageError, match="must be a mapping"):
        plan_of(tmp_path, "- a\n- b\n")


SHIPPED_FOLDER = Path(__file__).resolve().parents[3] / "sweeps"
SHIPPED = sorted(SHIPPED_FOLDER.glob("*.yaml"))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_plans_load_and_say_why(path):
    assert load_plan(path).about
    assert path.read_text().startswith("# ")


def test_common_spellings_are_understood(tmp_path):
    text = (
        GOOD.replace("chip: v6e", "chip: [Trillium, tpu7x, v5litepod-16]")
        .replace("model: llama3-8b", "model: Qwen/Qwen3-32B")
        .replace("[decode, mixed]", "[Decode, MIXED]")
        .replace(
            "page_size: 128",
            "page_size: 128\ndtype: bf16\nkv_dtype: [fp8, FP8_E5M2]\nkv_layout: [Seq-along-lane]",
        )
        .replace("seed: 3", "seed: 3, sampler: Kriging")
    )
    plan = plan_of(tmp_path, re.sub("workload: .*", "workload: Azure_Conv", text))
    assert plan.chips == ("v6e", "v7x", "v5e")
    assert plan.models == ("qwen3-32b",)
    assert plan.families == ("decode", "mixed")
    assert (plan.q_dtype, plan.kv_dtypes) == ("bfloat16", ("float8_e4m3fn", "float8_e5m2"))
    assert plan.search.sampler == "kriging"
    study = build_studies(plan)[0]
    assert study.workload.name == "azure-conv"
    assert (study.problem.kv_layout, *plan.kv_layouts) == ("seq_along_lane", "seq_along_lane")


SERVER = GOOD + "server: {max_num_seqs: 8, max_num_batched_tokens: 64, max_model_len: 1024}\n"


def test_a_server_has_a_study_for_each_row_but_those_that_another_fills(tmp_path):
    studies = build_studies(plan_of(tmp_path, SERVER))
    assert [study.name for study in studies] == [
        "v6e/llama3-8b/64 tokens/decode",
        *(f"v6e/llama3-8b/{n} tokens/mixed" for n in (16, 32, 64)),
    ]
    decode, *mixed = studies
    assert [problem.max_num_tokens for problem in decode.fills] == [16, 32]
    for study in mixed:
        problem = study.problem
        assert study.fills == ()
        assert (problem.max_num_seqs, problem.max_context_tokens) == (8, 1024)
        above = problem.max_num_tokens // 2 if problem.max_num_tokens > 16 else 0
        for weighted in study.workload.batches:
            assert not weighted.batch.misfit(problem)
            # Every prompt has 100 tokens, so that all of these shapes are met.
            assert above < weighted.batch.num_tokens <= problem.max_num_tokens
        assert sum(weighted.weight for weighted in study.workload.batches) == pytest.approx(1)


def test_steps_are_served_once_and_assigned_to_the_shapes_they_would_run_in(tmp_path):
    """A server of 64 tokens a step cuts prompts of 100 at 64, and the rest lands where it fits."""
    mixed = {
        study.problem.max_num_tokens: study.workload
        for study in build_studies(plan_of(tmp_path, SERVER))
        if study.family.name == "mixed"
    }
    longest = {n: max(q for wb in w.batches for q in wb.batch.q_lens) for n, w in mixed.items()}
    assert longest[64] > 32
    assert "33 to 64 tokens a step" in mixed[64].name
    # No step of this server has 16 tokens or less: those are of one whose budget is 16.
    assert max(wb.batch.num_tokens for wb in mixed[16].batches) <= 16


def test_a_faster_model_has_fewer_requests_at_once(tmp_path):
    """The pace is that of model, chip and tp, not that of one model for all."""
    text = SERVER.replace("server: {max_num_seqs: 8,", "server: {max_num_seqs: 128,")
    text = text.replace("max_num_batched_tokens: 64", "max_num_batched_tokens: 1024")
    text = re.sub("workload: .*", "workload: {preset: azure-conv, requests: {limit: 200}}", text)
    seqs = {}
    for model in ("llama3.2-1b", "llama3-8b"):
        decode = build_studies(plan_of(tmp_path, text.replace("llama3-8b", model)))[0]
        seqs[model] = sum(wb.weight * wb.batch.num_seqs for wb in decode.workload.batches)
    assert 2 * seqs["llama3.2-1b"] < seqs["llama3-8b"]


def test_who_lists_the_prefill_family_has_a_server_that_uses_it(tmp_path):
    text = SERVER.replace("[decode, mixed]", "[decode, prefill]")
    text = text.replace("compress: {", "chunk_prefill_size: 36, compress: {")
    text = text.replace("1024}", "1024, tokens: 64}")
    families = [study.family.name for study in build_studies(plan_of(tmp_path, text))]
    assert families == ["decode", "prefill"]


def test_some_shapes_of_a_server(tmp_path):
    text = SERVER.replace("1024}", "1024, tokens: [16, 64]}")
    decode, *mixed = build_studies(plan_of(tmp_path, text))
    assert [problem.max_num_tokens for problem in (*decode.fills, decode.problem)] == [16, 64]
    assert [study.problem.max_num_tokens for study in mixed] == [16, 64]


def test_a_shape_that_no_step_is_padded_to_is_judged_on_those_that_fit(tmp_path):
    """Prompts of 100 tokens never fill 4096."""
    text = SERVER.replace("max_num_batched_tokens: 64", "max_num_batched_tokens: 4096")
    text = text.replace("1024}", "1024, tokens: 4096}")
    (decode, mixed) = build_studies(plan_of(tmp_path, text))
    assert decode.problem.max_num_tokens == mixed.problem.max_num_tokens == 4096
    assert "1 to 4096 tokens a step" in mixed.workload.name


FLEET = """\
servers:
  - {model: llama3-8b, chip: v6e, max_num_seqs: 8, max_num_batched_tokens: 64, max_model_len: 1024}
  - {model: qwen3-8b, chip: v6e, max_num_seqs: 8, max_num_batched_tokens: 64, max_model_len: 1024}
  - {model: llama3-8b, chip: v5e, tp: 2, max_num_seqs: 8, max_num_batched_tokens: 16}
workload: {requests: {count: 8, prompt_tokens: 100, output_tokens: 20}, compress: {batches: 2}}
"""


def test_a_fleet_has_each_problem_once(tmp_path):
    """Both models have the same attention; their own pace gives each its own batches."""
    plan = plan_of(tmp_path, FLEET)
    assert (plan.chips, plan.families) == (("v6e", "v5e"), ("decode", "mixed"))
    studies = build_studies(plan)
    keys = [study.key for study in studies]
    assert len(keys) == len(set(keys)) == 4 + 2
    both = studies[0]
    assert "llama3-8b/tp 1" in both.name
    assert "qwen3-8b/tp 1" in both.name
    assert {study.problem.page_size for study in studies} == {64, 256}  # the engine's choice
    only_v7x = build_studies(plan.on_chip("v7x"))
    assert {study.chip.name for study in only_v7x} == {"v7x"}


def test_limits_that_the_key_rounds_alike_are_one_study(tmp_path):
    """Buckets of 128, 256, 384 and 512 tokens have three keys."""
    text = FLEET.replace("max_num_batched_tokens: 64", "max_num_batched_tokens: 512")
    text = "\n".join(line for line in text.splitlines() if "qwen" not in line and "v5e" not in line)
    text = text.replace("1024}", "1024, padding_gap: 128, tokens: [256, 384, 512]}")
    sizes = [
        (s.family.name, s.problem.max_num_tokens) for s in build_studies(plan_of(tmp_path, text))
    ]
    assert sizes == [("decode", 512), ("mixed", 256), ("mixed", 512)]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("servers: []", "servers is empty"),
        ("servers: [{model: llama3-8b}]", "missing chip in a server"),
        ("servers: [{model: llama3-8b, chip: v6e, max_seqs: 8}]", "unknown key 'max_seqs'"),
        ("servers: [{model: llama3-8b, chip: v6e, dp: 3}]", "dp=3 does not divide"),
        ("servers: [{model: llama3-8b, chip: v6e, tp: 3}]", "cannot run at tp=3"),
        ("servers: [{model: llama3-8b, chip: v6e, engine: sglang-jax}]", "pages of one token"),
        ("servers: [{model: llama3-8b, chip: v6e, bucket_seqs: 1}]", "must be true or false"),
        (
            "families: [prefill]\nservers: [{model: llama3-8b, chip: v6e}]",
            "no server has sequences",
        ),
        ("chip: v6e\nservers: [{model: llama3-8b, chip: v6e}]", "chip beside servers"),
    ],
)
def test_a_bad_fleet_is_named_with_its_line(tmp_path, line, message):
    with pytest.raises(UsageError, match=re.escape(message)) as caught:
        build_studies(plan_of(tmp_path, f"{line}\nworkload: azure-conv\n"))
    assert "plan.yaml:1" in caught.value.where


@pytest.mark.parametrize(
    ("server", "message", "hint"),
    [
        ("{max_num_seqs: 8}", "missing max_num_batched_tokens, max_model_len in server", ""),
        ("{max_num_seq: 8}", "unknown key 'max_num_seq' in server", "did you mean max_num_seqs"),
        ("8", "server must be a mapping", ""),
        ("{max_num_seqs: 8, max_num_batched_tokens: 64, max_model_len: 1024, tokens: [8]}",
         "tokens=8 is no shape of this server", "16, 32, 64"),
        ("{max_num_seqs: 8, max_num_batched_tokens: 64, max_model_len: 1024, tokens: []}",
         "tokens is empty", ""),
        ("{max_num_seqs: 8, max_num_batched_tokens: 64, max_model_len: 1024, bucket_seqs: 1}",
         "bucket_seqs must be true or false", ""),
    ],
)  # fmt: skip
def test_a_bad_server_is_named_with_its_line(tmp_path, server, message, hint):
    with pytest.raises(UsageError, match=re.escape(message)) as caught:
        plan_of(tmp_path, f"{GOOD}server: {server}\n")
    assert caught.value.where.endswith("plan.yaml:12")
    assert hint in caught.value.hint


def test_stored_batches_are_dealt_out_to_the_shapes_they_are_padded_to(tmp_path):
    plan = plan_of(tmp_path)
    whole = load_workload(plan.workload, page_size=128)
    (tmp_path / "stored.json").write_text(json.dumps(whole.to_dict()))
    most = shape_of(whole.max_num_tokens, whole.max_num_seqs)
    server = Server(
        model="llama3-8b", chip="v6e", page_size=128, max_model_len=1024,
        max_num_seqs=most.num_seqs, max_num_batched_tokens=most.num_tokens,
        only_tokens=(most.num_tokens,),
    )  # fmt: skip
    stored, family = str(tmp_path / "stored.json"), load_family("mixed")
    (group,) = groups_of(server, server.layers()[0].problem, family)
    found = ServedWorkload(stored, server).of(group, family)
    padded = [
        wb.batch
        for wb in whole.for_family("mixed").batches
        if group.largest.holds(wb.batch.num_tokens, wb.batch.num_seqs)
    ]
    assert [wb.batch for wb in found.batches] == padded
    assert padded
    tiny = replace(server, max_num_seqs=1, max_num_batched_tokens=16, only_tokens=())
    (group,) = groups_of(tiny, tiny.layers()[0].problem, family)
    with pytest.raises(UsageError, match="no batch with mixed sequences that fits 16 tokens"):
        ServedWorkload(stored, tiny).of(group, family)
