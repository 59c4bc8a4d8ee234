"""Models by name and by config.json, and the problems made from them."""

import json
import re
from pathlib import Path

import published_models as published
import pytest
import yaml

from rpa_kernels.batch import Batch
from rpa_tune.errors import UsageError
from rpa_tune.models import catalog
from rpa_tune.models.catalog import load_model, load_models, model_name, problem_for, problems_for
from rpa_tune.workload.workload import WeightedBatch, Workload


def workload(*batches):
    weighted = tuple(WeightedBatch(batch=b, weight=1 / len(batches)) for b in batches)
    return Workload(name="test", source="test", batches=weighted)


SMALL = workload(
    Batch(q_lens=(1, 1, 1), kv_lens=(700, 20, 129), num_decode=3),
    Batch(q_lens=(1, 100), kv_lens=(1025, 300), num_decode=1),
)


ROWS = yaml.safe_load((Path(catalog.__file__).parent / "catalog.yaml").read_text())
REFUSED = ("deepseek-v3.2", "glm5")


def test_every_model_is_whole_and_says_where_it_is_from():
    text = (Path(catalog.__file__).parent / "catalog.yaml").read_text()
    places = set(re.findall(r"^#   (\S+) ", text, re.MULTILINE))
    for name, row in ROWS.items():
        assert re.fullmatch(r"[\w.-]+/[\w.-]+", row["source"]), name
        assert row["checked"].split()[0].partition("@")[0] in places, name
    assert sorted(set(ROWS) - set(load_models())) == sorted(REFUSED)
    for name, model in load_models().items():
        assert model.name == name
        for kind in model.served:
            assert kind.num_q_heads % kind.num_kv_heads == 0
            layers = model.name_of(kind)
            long = workload(Batch(q_lens=(1,), kv_lens=(300_000,), num_decode=1))
            problem = problem_for(model, workload=long, page_size=128, layers=layers)
            assert (
                problem.head_dim, problem.sliding_window, problem.attention_chunk_size,
            ) == (kind.head_dim, kind.sliding_window_tokens, kind.chunk_tokens)  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_a_model_that_no_kernel_serves_is_known_by_name_and_says_why(name):
    for word in (name, ROWS[name]["source"]):
        with pytest.raises(UsageError, match=r"sparse .*\(index_topk=2048\)") as caught:
            load_model(word)
        assert caught.value.where == f"the model {name}"


@pytest.mark.parametrize(
    ("row", "name"),
    [("llama3-8b", "llama-3.1-8b"), ("llama4-scout", "llama-4-scout"),
     ("qwen3-30b-a3b", "qwen3-30b-a3b"), ("qwen3-next-80b-a3b", "qwen3-next-80b-a3b"),
     ("qwen3.5-35b-a3b", "qwen3.5-moe-35b-a3b"), ("gemma3-27b", "gemma-3-27b"),
     ("gemma3n-e4b", "gemma-3n-e4b"), ("gemma4-31b", "gemma-4-31b"),
     ("gpt-oss-120b", "gpt-oss-120b")],
)  # fmt: skip
def test_rows_are_what_the_models_documentation_says(row, name):
    _, kinds, other = published.MODELS[name]
    model = load_models()[row]
    assert model.other_layers == other
    assert kinds == {
        (k.num_layers, k.num_q_heads, k.num_kv_heads, k.head_dim,
         k.sliding_window_tokens or k.chunk_tokens, k.sm_scale, k.reads_other_cache)
        for k in model.served
    }  # fmt: skip


def test_granites_attention_layers_stand_among_mamba_layers():
    """Four of forty, and a scale of its own; the mambas weigh (IBM's cards: 32B of which 9B)."""
    small = load_model("ibm-granite/granite-4.0-h-small")
    assert small.layers_text == "4 full, 36 mamba (no attention)"
    (kind,) = small.kinds
    assert (kind.num_q_heads, kind.num_kv_heads, kind.head_dim) == (32, 8, 128)
    assert kind.sm_scale == 1 / 128


def test_llama3_8b_is_what_the_quickstart_means():
    (kind,) = load_model("llama3-8b").kinds
    assert (kind.num_layers, kind.num_q_heads, kind.num_kv_heads, kind.head_dim) == (32, 32, 8, 128)


def test_unknown_model_offers_the_nearest():
    with pytest.raises(UsageError) as caught:
        load_model("lama3-8b")
    assert "did you mean llama3-8b?" in caught.value.hint


@pytest.mark.parametrize(
    ("tp", "heads"), [(1, (64, 8)), (4, (16, 2)), (8, (8, 1)), (16, (4, 1)), (64, (1, 1))]
)
def test_tensor_parallel_shares_heads_and_repeats_kv_heads(tp, heads):
    (share,) = load_model("qwen3-32b").at_tp(tp).kinds
    assert (share.num_q_heads, share.num_kv_heads) == heads


@pytest.mark.parametrize("tp", [0, -1, 3, 128])
def test_heads_that_do_not_divide_are_refused_with_what_would(tp):
    with pytest.raises(UsageError) as caught:
        load_model("qwen3-32b").at_tp(tp)
    assert "[1, 2, 4, 8, 16, 32, 64]" in caught.value.hint


def test_tp_that_divides_q_heads_but_not_kv_heads_is_refused():
    with pytest.raises(UsageError) as caught:
        load_model("phi-4").at_tp(4)
    assert "[1, 2, 5, 10, 20, 40]" in caught.value.hint


def test_sizes_are_rounded_up_to_powers_of_two():
    problem = problem_for(load_model("llama3-8b"), workload=SMALL, page_size=128)
    assert problem.max_num_tokens == 128  # 101
    assert problem.max_num_seqs == 8  # 3, but servers start at 8
    assert problem.pages_per_seq == 16  # 9
    assert problem.num_pages == 16  # 9 + 3
    assert all(wb.batch.misfit(problem) is None for wb in SMALL.batches)
    assert problem.sm_scale == 128**-0.5


def test_a_layer_without_a_window_is_meant_unless_there_is_none():
    gemma, mistral = load_model("gemma3-27b"), load_model("mistral-7b-v0.1")
    long = workload(Batch(q_lens=(1,), kv_lens=(5000,), num_decode=1))
    assert problem_for(gemma, workload=SMALL, page_size=16).sliding_window is None
    assert problem_for(gemma, workload=SMALL, page_size=16, windowed=True).sliding_window == 1024
    assert problem_for(gemma, workload=SMALL, page_size=16, layers="window-1024") == problem_for(
        gemma, workload=SMALL, page_size=16, windowed=True
    )
    assert problem_for(mistral, workload=long, page_size=16).sliding_window == 4096
    assert problem_for(gemma, workload=SMALL, page_size=16).sm_scale == 168**-0.5
    for model, windowed in ((mistral, False), (load_model("llama3-8b"), True)):
        with pytest.raises(UsageError, match="windowed=") as caught:
            problem_for(model, workload=SMALL, page_size=16, windowed=windowed)
        assert model.layers_text in caught.value.hint
    with pytest.raises(UsageError, match="layers='window 8'"):
        problem_for(gemma, workload=SMALL, page_size=16, layers="window 8")


def test_a_window_beyond_the_longest_context_makes_no_problem_of_its_own():
    """Batches of up to 1,025 tokens: pages for 2,048."""
    mistral, gemma2 = load_model("mistral-7b-v0.1"), load_model("gemma2-9b")
    assert problem_for(mistral, workload=SMALL, page_size=16).sliding_window is None
    (share,) = problems_for(gemma2, workload=SMALL, page_size=16)
    assert (share.name, share.kind.num_layers) == ("full", 42)
    assert problem_for(gemma2, workload=SMALL, page_size=16, windowed=True) == share.problem


def test_sinks_and_soft_caps_reach_the_problem():
    assert problem_for(load_model("gpt-oss-20b"), workload=SMALL, page_size=16).has_sinks
    assert problem_for(load_model("gemma2-9b"), workload=SMALL, page_size=16).soft_cap == 50.0


@pytest.mark.parametrize("bad", [{"page_size": 0}, {"kv_dtype": "float64"}, {"q_dtype": "int4"}])
def test_what_no_kernel_has_is_a_usage_error(bad):
    with pytest.raises(UsageError):
        problem_for(load_model("llama3-8b"), **{"workload": SMALL, "page_size": 128, **bad})


def config_file(tmp_path, **fields):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(fields))
    return path


def test_config_json_with_its_folder_or_its_path(tmp_path):
    path = config_file(
        tmp_path, num_attention_heads=16, num_key_value_heads=4, hidden_size=2048, head_dim=None,
        num_hidden_layers=3,
    )  # fmt: skip
    for name in (str(path), str(tmp_path)):
        (kind,) = load_model(name).kinds
        assert (kind.num_q_heads, kind.num_kv_heads, kind.head_dim) == (16, 4, 128)
        assert kind.sliding_window_tokens is None


@pytest.mark.parametrize(
    ("fields", "windows"),
    [
        ({"sliding_window": None}, {None}),
        ({"sliding_window": 4096, "use_sliding_window": False}, {None}),
        ({"sliding_window": 512, "sliding_window_pattern": 2}, {None, 512}),
        ({"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]}, {None, 8}),
        ({"sliding_window": 8, "layer_types": ["full_attention"] * 2}, {None}),
        ({"sliding_window": 8, "layer_types": ["sliding_attention"] * 2}, {8}),
        ({"sliding_window": 8, "_sliding_window_pattern": 2}, {None, 8}),
        ({"sliding_window": 8, "use_sliding_window": True, "max_window_layers": 1}, {None, 8}),
        ({"sliding_window": 8, "use_sliding_window": True, "max_window_layers": 2}, {None}),
    ],
)
def test_windows_of_a_file_that_names_no_type(tmp_path, fields, windows):
    path = config_file(
        tmp_path, num_attention_heads=8, num_key_value_heads=8, head_dim=64, num_hidden_layers=2,
        **fields,
    )  # fmt: skip
    assert {kind.sliding_window_tokens for kind in load_model(str(path)).kinds} == windows


# What attention reads of config.json files as they are published, much left to defaults by some.
PUBLISHED = {
    "gemma3-12b": {"model_type": "gemma3", "text_config": {
        "hidden_size": 3840, "model_type": "gemma3_text", "num_attention_heads": 16,
        "num_hidden_layers": 48, "num_key_value_heads": 8, "sliding_window": 1024,
    }},
    "gemma3-4b": {"model_type": "gemma3", "text_config": {
        "hidden_size": 2560, "model_type": "gemma3_text", "num_hidden_layers": 34,
        "sliding_window": 1024,
    }},
    "gemma2-9b": {
        "attn_logit_softcapping": 50.0, "head_dim": 256, "hidden_size": 3584,
        "model_type": "gemma2", "num_attention_heads": 16, "num_hidden_layers": 42,
        "num_key_value_heads": 8, "query_pre_attn_scalar": 256, "sliding_window": 4096,
    },
    "gpt-oss-20b": {
        "head_dim": 64, "hidden_size": 2880, "model_type": "gpt_oss", "num_attention_heads": 64,
        "num_hidden_layers": 24, "num_key_value_heads": 8, "sliding_window": 128,
        "layer_types": ["sliding_attention", "full_attention"] * 12,
    },
    "mistral-small-24b": {
        "head_dim": 128, "hidden_size": 5120, "model_type": "mistral", "num_attention_heads": 32,
        "num_hidden_layers": 40, "num_key_value_heads": 8, "sliding_window": None,
    },
    "mistral-7b-v0.1": {
        "hidden_size": 4096, "model_type": "mistral", "num_attention_heads": 32,
        "num_hidden_layers": 32, "num_key_value_heads": 8, "sliding_window": 4096,
    },
    "llama3.2-1b": {
        "head_dim": 64, "hidden_size": 2048, "model_type": "llama", "num_attention_heads": 32,
        "num_hidden_layers": 16, "num_key_value_heads": 8,
    },
    "qwen2.5-72b": {
        "hidden_size": 8192, "max_window_layers": 70, "model_type": "qwen2",
        "num_attention_heads": 64, "num_hidden_layers": 80, "num_key_value_heads": 8,
        "sliding_window": 131072, "use_sliding_window": False,
    },
    "phi-4": {
        "hidden_size": 5120, "model_type": "phi3", "num_attention_heads": 40,
        "num_hidden_layers": 40, "num_key_value_heads": 10, "sliding_window": None,
    },
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_config_json_gives_what_is_built_in(tmp_path, name):
    read = load_model(str(config_file(tmp_path, **PUBLISHED[name])))
    built_in = load_model(name)
    assert (read.kinds, read.other_layers) == (built_in.kinds, built_in.other_layers)


def test_built_in_models_leave_nothing_to_guess():
    for name, model in load_models().items():
        assert not model.notes, name
        assert not model.unserved, name
        assert all(kind.num_layers for kind in model.kinds), name


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("[]", "not the config.json of a model: a JSON list, not an object"),
        ("{", "not the config.json of a model: Expecting property name"),
        ("[" * 100_000, "not the config.json of a model: maximum recursion depth"),
        ('{"num_attention_heads": 8}', "num_key_value_heads is missing"),
        ('{"hidden_size": 8, "num_key_value_heads": null}', "num_hidden_layers is missing"),
    ],
)
def test_a_file_that_describes_no_model_is_named_with_the_reason(tmp_path, content, reason):
    path = tmp_path / "config.json"
    path.write_text(content)
    with pytest.raises(UsageError, match=reason) as caught:
        load_model(str(path))
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("word", "name"),
    [("Qwen/Qwen3-32B", "qwen3-32b"), ("Qwen3-32B", "qwen3-32b"), ("qwen3_32b", "qwen3-32b"),
     ("meta-llama/Llama-3.1-8B-Instruct", "llama3-8b"), ("LLAMA3-8B", "llama3-8b"),
     ("google/gemma-3-27b-pt", "gemma3-27b"), ("mistralai/Mistral-7B-Instruct-v0.3", "mistral-7b"),
     ("google/gemma-4-26B-A4B-it", "gemma4-26b-a4b"), ("GLM-4.5-Air", "glm4.5-air"),
     ("openai/gpt-oss-20b", "gpt-oss-20b"), ("./not/there.json", "./not/there.json")],
)  # fmt: skip
def test_models_have_other_names(word, name):
    assert model_name(word) == name


def test_every_model_is_found_by_its_repository():
    """And no repository, in whatever spelling, is that of two models."""
    for name, row in ROWS.items():
        if name in REFUSED:
            continue
        repository = row["source"]
        for word in (repository, repository.upper(), repository.rpartition("/")[2], name.upper()):
            assert load_model(word).name == name


@pytest.mark.parametrize("word", ["somebody/Qwen3-32B", "qwen3", "Qwen/Qwen3-32B-FP8"])
def test_another_repository_is_only_offered(word):
    with pytest.raises(UsageError) as caught:
        load_model(word)
    assert "did you mean qwen3-" in caught.value.hint


def test_a_file_is_what_its_path_says(tmp_path, monkeypatch):
    """A folder of the repository's name is the model in it."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "Qwen" / "Qwen3-32B"
    folder.mkdir(parents=True)
    config = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 128}
    config["num_hidden_layers"] = 2
    (folder / "config.json").write_text(json.dumps(config))
    assert model_name("Qwen/Qwen3-32B") == "Qwen/Qwen3-32B"
    assert load_model("Qwen/Qwen3-32B").kinds[0].num_q_heads == 4
