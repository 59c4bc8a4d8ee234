"""Plans: what they mean, and errors that say file and line."""

import re
from pathlib import Path

import pytest

from rpa_tune.errors import UsageError
from rpa_tune.sweep.plan import load_plan
from rpa_tune.sweep.study import build_studies

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


def test_a_weighted_set_of_workloads_is_one_workload(tmp_path):
    weighted = re.sub("workload: .*", "workload: {azure-conv: 0.7, azure-code: 0.3}", GOOD)
    alone = re.sub("workload: .*", "workload: azure-conv", GOOD)
    studies = build_studies(plan_of(tmp_path, weighted))
    assert [study.family for study in studies] == ["decode", "mixed"]
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
        ("page_size: 128", "page_size: 0", 5, "must be an integer of at least 1", ""),
        ("page_size: 128", "page_size: [128", 6, "not YAML", ""),
        ("simulate: 5", "simulate: many", 10, "simulate='many'", ""),
        ("chip: v6e", "chip: []", 2, "chip is empty", ""),
        ("chip: v6e", "chip: v6e\nchip: v5e", 3, "appears twice", ""),
        ("families: [decode, mixed]\n", "", None, "missing families", ""),
        ("budget: 90s", "dtype: bf16", 11, "unknown dtype 'bf16'", "bfloat16"),
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


def test_files_that_are_no_plans(tmp_path):
    with pytest.raises(UsageError, match="No such file"):
        load_plan(tmp_path / "none.yaml")
    with pytest.raises(UsageError, match="empty"):
        plan_of(tmp_path, "# nothing\n")
    with pytest.raises(UsageError, match="must be a mapping"):
        plan_of(tmp_path, "- a\n- b\n")


SHIPPED = sorted((Path(__file__).resolve().parents[3] / "sweeps").glob("*.yaml"))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_plans_load_and_say_why(path):
    assert load_plan(path).about
    assert path.read_text().startswith("# ")
