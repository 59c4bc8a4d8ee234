"""What `audit`, `compile`, `sweep` and `explain` make of real files: every kind of layers."""

import json

import published_models as published
import pytest
from click.testing import CliRunner

from rpa_tune.cli.main import cli
from rpa_tune.cli.question import resolve_question
from rpa_tune.errors import UsageError
from rpa_tune.sweep.plan import load_plan
from rpa_tune.sweep.study import build_studies

BATCH = {"q_lens": [1, 1, 1], "kv_lens": [70000, 900, 30], "num_decode": 3}
LONG = ["--chip", "v6e", "--max-num-seqs", "8", "--max-num-batched-tokens", "16",
        "--max-model-len", "32768"]  # fmt: skip

# Every fourth layer attends to the sequence itself, the others to something else.
CROSS = {
    "model_type": "llama", "num_hidden_layers": 48, "num_attention_heads": 40,
    "num_key_value_heads": 8, "head_dim": 128, "hidden_size": 5120,
    "layer_types": [*["cross_attention"] * 3, "full_attention"] * 12,
}  # fmt: skip


@pytest.fixture(params=published.MODELS)
def real(request, tmp_path):
    """(path of a real model's file, its kinds as `published.MODELS` has them)."""
    config, kinds, _ = published.MODELS[request.param]
    folder = tmp_path / request.param
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    return folder, {(q, kv, dim, window, not shared) for _, q, kv, dim, window, _, shared in kinds}


def shape(p):
    return (p.num_q_heads, p.num_kv_heads, p.head_dim, p.reach_tokens, p.update_kv_cache)


def run(*arguments):
    return CliRunner().invoke(cli, [str(one) for one in arguments])


def studies(tmp_path, *models, families="[decode]"):
    (tmp_path / "batch.csv").write_text("arrival_s,prompt_tokens,output_tokens\n0,30000,20\n")
    plan = tmp_path / "plan.yaml"
    plan.write_text(
        f"chip: v6e\nmodel: {json.dumps([str(m) for m in models])}\nfamilies: {families}\n"
        f"page_size: 128\nworkload: {tmp_path / 'batch.csv'}\n"
    )
    return build_studies(load_plan(plan))


def test_a_sweep_has_a_study_for_every_kind_with_a_name_of_its_own(real, tmp_path):
    folder, kinds = real
    found = studies(tmp_path, folder)
    assert {shape(study.problem) for study in found} == kinds
    assert len({study.name for study in found}) == len(found) == len(kinds)


def test_an_audit_looks_up_every_kind(real):
    folder, kinds = real
    result = run("audit", "--model", folder, *LONG, "--json")
    report = json.loads(result.stdout)
    of_kinds = {
        (k["num_q_heads"], k["num_kv_heads"], k["head_dim"],
         k["sliding_window_tokens"] or k["chunk_tokens"], not k["reads_other_cache"])
        for k in report["kinds"] if not k["unserved"]
    }  # fmt: skip
    assert of_kinds == kinds
    names = {k["name"] for k in report["kinds"] if not k["unserved"]}
    assert {entry["layers"] for entry in report["entries"]} == names
    assert len(report["entries"]) == 2 * len(kinds)  # one bucket, two families


def test_explain_takes_each_kind_by_its_name_and_says_which_there_are(real, tmp_path):
    folder, kinds = real
    (tmp_path / "batch.json").write_text(json.dumps(BATCH))
    asked = {
        "chip": "v6e", "family": "decode", "model": str(folder), "workload": None,
        "batch_file": tmp_path / "batch.json", "config_text": "", "page_size": 128,
    }  # fmt: skip
    model = resolve_question(**asked).loaded
    problems = {
        shape(resolve_question(**asked, layers=model.name_of(kind)).candidate.problem)
        for kind in model.served
    }
    assert problems == kinds
    with pytest.raises(UsageError) as caught:
        resolve_question(**asked, layers="third")
    assert all(model.name_of(kind) in caught.value.hint for kind in model.kinds)


def test_a_compile_has_plans_for_every_kind(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(published.MODELS["gemma-4-31b"][0]))
    result = run("compile", "--model", tmp_path, *LONG, "--dry-run", "--json")
    plans = json.loads(result.stdout)["plans"]
    assert {plan["layers"] for plan in plans} == {"full", "window 1024"}
    assert "10 full, 50 window 1024" in result.stderr


@pytest.mark.parametrize("command", ["audit", "compile", "explain", "sweep"])
def test_a_model_without_a_kernel_family_is_refused_by_name(tmp_path, command):
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**published.DEEPSEEK, "index_topk": 2048}))
    if command == "sweep":
        with pytest.raises(UsageError, match="sparse attention") as caught:
            studies(tmp_path, path)
        assert "plan.yaml:2" in str(caught.value) or str(path) in str(caught.value)
        return
    options = ["--family", "decode", "--chip", "v6e", "--workload", "azure-conv"]
    result = run(command, "--model", path, *(options if command == "explain" else LONG))
    assert isinstance(result.exception, UsageError)
    assert "sparse attention over chosen keys" in str(result.exception)


def test_latent_layers_are_audited_compiled_and_planned_for_as_any_others():
    result = run("audit", "--model", "deepseek-v3", "--tp", "8", *LONG, "--json")
    assert result.exit_code == 3  # nobody has tuned them
    entries = json.loads(result.stdout)["entries"]
    assert {entry["family"] for entry in entries} == {"mla-decode", "mla-mixed"}
    assert {(e["layers"], e["num_q_heads"], e["rope_dim"]) for e in entries} == {
        ("latent", 128, 64)
    }
    assert {entry["coverage"] for entry in entries} == {"heuristic"}
    compiled = run("compile", "--model", "deepseek-v3", "--tp", "8", *LONG, "--dry-run", "--json")
    plans = json.loads(compiled.stdout)["plans"]
    assert {plan["layers"] for plan in plans} == {"latent"}


def test_layers_that_no_kernel_serves_are_said_and_are_a_miss(tmp_path):
    """Twelve of 48 layers can be served: no audit may call that covered."""
    (tmp_path / "config.json").write_text(json.dumps(CROSS))
    result = run("audit", "--model", tmp_path, *LONG)
    assert result.exit_code == 3
    assert "36 full (not served: cross attention" in result.stdout


def test_chunks_are_served_and_end_with_the_context(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(published.MODELS["llama-4-scout"][0]))
    result = run("audit", "--model", tmp_path, *LONG)
    assert "12 full, 36 chunk 8192" in result.stdout
    assert ", chunk 8192, contexts to 32,768 tokens" in result.stdout
    short = [*LONG[:-1], "8192"]  # no context reaches beyond its first chunk
    result = run("audit", "--model", tmp_path, *short, "--fail-on", "infeasible")
    assert result.exit_code == 0, result.stdout
    assert "48 full" in result.stdout


def test_kv_heads_of_every_kind_have_to_divide(tmp_path):
    """Gemma 4: 16 KV heads in layers with a window, 4 in the others; 3 divides neither."""
    (tmp_path / "config.json").write_text(json.dumps(published.MODELS["gemma-4-31b"][0]))
    result = run("audit", "--model", tmp_path, *LONG, "--tp", "8", "--json")
    heads = {(k["num_q_heads"], k["num_kv_heads"]) for k in json.loads(result.stdout)["kinds"]}
    assert heads == {(32, 4), (32, 16)}  # of the whole model
    result = run("audit", "--model", tmp_path, *LONG, "--tp", "3")
    assert "use one of [1, 2, 4, 8, 16, 32]" in str(result.exception)


def test_two_models_with_one_problem_are_one_study_under_both_names(tmp_path):
    """Llama 3 8B and Mistral 7B have the same heads."""
    found = studies(tmp_path, "llama3-8b", "mistral-7b", "qwen3-32b")
    assert [study.name for study in found] == [
        "v6e/llama3-8b/decode and v6e/mistral-7b/decode", "v6e/qwen3-32b/decode",
    ]  # fmt: skip


def test_a_sweep_says_which_layers_it_leaves_out(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(CROSS))
    studies(tmp_path, tmp_path)
    result = run("sweep", tmp_path / "plan.yaml", "--dry-run", "--store", tmp_path / "s.jsonl")
    assert "36 full (not served: cross attention" in result.stderr
