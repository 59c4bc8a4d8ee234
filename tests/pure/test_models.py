"""Models by name and by config.json, and the problems made from them."""

import dataclasses
import json

import pytest

from rpa_kernels.batch import Batch
from rpa_tune.errors import UsageError
from rpa_tune.models import Model, load_model, load_models, model_name, problem_for
from rpa_tune.workload.workload import WeightedBatch, Workload


def workload(*batches):
    weighted = tuple(WeightedBatch(batch=b, weight=1 / len(batches)) for b in batches)
    return Workload(name="test", source="test", batches=weighted)


SMALL = workload(
    Batch(q_lens=(1, 1, 1), kv_lens=(700, 20, 129), num_decode=3),
    Batch(q_lens=(1, 100), kv_lens=(1025, 300), num_decode=1),
)


def test_every_model_is_whole_and_says_where_it_is_from():
    for name, model in load_models().items():
        assert model.name == name
        assert model.num_q_heads % model.num_kv_heads == 0
        assert model.source.startswith("config.json of ")
        assert model.checked.startswith(("hf ", "maxtext ", "LLM-Prof@", "slime ")), name
        assert problem_for(model, workload=SMALL, page_size=128).head_dim == model.head_dim


def test_llama3_8b_is_what_the_quickstart_means():
    model = load_model("llama3-8b")
    assert (model.num_q_heads, model.num_kv_heads, model.head_dim) == (32, 8, 128)


def test_unknown_model_offers_the_nearest():
    with pytest.raises(UsageError) as caught:
        load_model("lama3-8b")
    assert "did you mean llama3-8b?" in caught.value.hint


@pytest.mark.parametrize(
    ("tp", "heads"), [(1, (64, 8)), (4, (16, 2)), (8, (8, 1)), (16, (4, 1)), (64, (1, 1))]
)
def test_tensor_parallel_shares_heads_and_repeats_kv_heads(tp, heads):
    share = load_model("qwen3-32b").at_tp(tp)
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
    assert problem_for(gemma, workload=SMALL, page_size=16).sliding_window is None
    assert problem_for(gemma, workload=SMALL, page_size=16, windowed=True).sliding_window == 1024
    assert problem_for(mistral, workload=SMALL, page_size=16).sliding_window == 4096
    assert problem_for(gemma, workload=SMALL, page_size=16).sm_scale == 168**-0.5
    for model, windowed in ((mistral, False), (load_model("llama3-8b"), True)):
        with pytest.raises(UsageError, match="windowed="):
            problem_for(model, workload=SMALL, page_size=16, windowed=windowed)


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
        tmp_path, num_attention_heads=16, num_key_value_heads=4, hidden_size=2048, head_dim=None
    )
    for name in (str(path), str(tmp_path)):
        model = load_model(name)
        assert (model.num_q_heads, model.num_kv_heads, model.head_dim) == (16, 4, 128)
        assert model.windowed_layers == "none"


@pytest.mark.parametrize(
    ("fields", "layers", "window"),
    [
        ({"sliding_window": 4096}, "all", 4096),
        ({"sliding_window": None}, "none", None),
        ({"sliding_window": 4096, "use_sliding_window": False}, "none", None),
        ({"sliding_window": 512, "sliding_window_pattern": 6}, "some", 512),
        ({"sliding_window": 512, "model_type": "gemma2"}, "some", 512),
        (
            {"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]},
            "some",
            8,
        ),
        ({"sliding_window": 8, "layer_types": ["full_attention"] * 2}, "none", None),
        ({"sliding_window": 8, "_sliding_window_pattern": 6}, "some", 8),
        ({"sliding_window": 8, "model_type": "qwen2"}, "none", None),
        (
            {
                "sliding_window": 8,
                "use_sliding_window": True,
                "model_type": "qwen2",
                "max_window_layers": 7,
                "num_hidden_layers": 9,
            },
            "some",
            8,
        ),
        (
            {
                "sliding_window": 8,
                "use_sliding_window": True,
                "model_type": "qwen2",
                "max_window_layers": 9,
                "num_hidden_layers": 9,
            },
            "none",
            None,
        ),
        ({"model_type": "gpt_oss"}, "some", 128),
    ],
)
def test_windows_of_config_json(tmp_path, fields, layers, window):
    path = config_file(tmp_path, num_attention_heads=8, head_dim=64, **fields)
    model = load_model(str(path))
    assert (model.windowed_layers, model.sliding_window_tokens) == (layers, window)


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
    # Only some configs say their scale: the others scale by the head size.
    scale_base = read.softmax_scale_base or read.head_dim
    assert scale_base == (built_in.softmax_scale_base or built_in.head_dim)
    same = {"name": name, "source": built_in.source, "checked": built_in.checked,
            "softmax_scale_base": built_in.softmax_scale_base}  # fmt: skip
    assert dataclasses.replace(read, **same) == built_in


def test_nested_text_config_sinks_and_caps(tmp_path):
    inner = {
        "model_type": "gpt_oss", "num_attention_heads": 8, "num_key_value_heads": 2,
        "head_dim": 64, "attn_logit_softcapping": 30.0, "query_pre_attn_scalar": 100,
    }  # fmt: skip
    model = load_model(str(config_file(tmp_path, text_config=inner)))
    assert (model.has_sinks, model.soft_cap, model.softmax_scale_base) == (True, 30.0, 100)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("[]", "a JSON list, not an object"),
        ("{", "Expecting property name"),
        ('{"num_attention_heads": 8}', "'hidden_size' is missing"),
        ('{"num_attention_heads": "x"}', "'hidden_size' is missing"),
        ('{"hidden_size": 8}', "'num_attention_heads' is missing"),
    ],
)
def test_a_file_that_describes_no_model_is_named_with_the_reason(tmp_path, content, reason):
    path = tmp_path / "config.json"
    path.write_text(content)
    with pytest.raises(UsageError, match=f"not the config.json of a model: {reason}") as caught:
        load_model(str(path))
    assert str(path) in str(caught.value)


def test_latent_attention_is_refused(tmp_path):
    path = config_file(tmp_path, num_attention_heads=8, head_dim=64, kv_lora_rank=512)
    with pytest.raises(UsageError, match="latent"):
        load_model(str(path))


def test_a_window_needs_layers():
    with pytest.raises(ValueError, match="window"):
        Model(
            name="x", source="y", num_q_heads=8, num_kv_heads=8, head_dim=64,
            sliding_window_tokens=4,
        )  # fmt: skip


@pytest.mark.parametrize(
    ("word", "name"),
    [("Qwen/Qwen3-32B", "qwen3-32b"), ("Qwen3-32B", "qwen3-32b"), ("qwen3_32b", "qwen3-32b"),
     ("meta-llama/Llama-3.1-8B-Instruct", "llama3-8b"), ("LLAMA3-8B", "llama3-8b"),
     ("google/gemma-3-27b-pt", "gemma3-27b"), ("mistralai/Mistral-7B-Instruct-v0.3", "mistral-7b"),
     ("openai/gpt-oss-20b", "gpt-oss-20b"), ("./not/there.json", "./not/there.json")],
)  # fmt: skip
def test_models_have_other_names(word, name):
    assert model_name(word) == name


def test_every_model_is_found_by_its_repository():
    """And no repository, in whatever spelling, is that of two models."""
    for name, model in load_models().items():
        repository = model.source.removeprefix("config.json of ").removesuffix(" on Hugging Face")
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
    (folder / "config.json").write_text(json.dumps(config))
    assert model_name("Qwen/Qwen3-32B") == "Qwen/Qwen3-32B"
    assert load_model("Qwen/Qwen3-32B").num_q_heads == 4
