"""config.json files of real models, and of kinds that real files are of, as layers."""

import dataclasses
import json
import math

import published_models as published
import pytest

from rpa_tune.errors import UsageError
from rpa_tune.hf import installed, keys
from rpa_tune.hf.latent import latent_layer
from rpa_tune.hf.read import read_config, read_file

S, F, L = "sliding_attention", "full_attention", "linear_attention"


def read(ask=False, **config):
    return read_config(config, name="x", source="", ask=ask)


def shapes(model):
    """(layers, KV heads, head size, window) of every kind that is served."""
    return {
        (k.num_layers, k.num_kv_heads, k.head_dim, k.sliding_window_tokens) for k in model.served
    }


@pytest.mark.parametrize("ask", [False, True], ids=["alone", "with transformers"])
@pytest.mark.parametrize("name", published.MODELS)
def test_a_published_file_gives_the_layers_of_the_models_documentation(name, ask):
    if ask:
        pytest.importorskip("transformers")
    config, kinds, other = published.MODELS[name]
    model = read(ask=ask, **config)
    found = {
        (k.num_layers, k.num_q_heads, k.num_kv_heads, k.head_dim,
         k.sliding_window_tokens or k.chunk_tokens, k.sm_scale, k.reads_other_cache)
        for k in model.served
    }  # fmt: skip
    assert found == kinds
    assert model.other_layers == other
    assert {k.has_sinks for k in model.served} == {name.startswith("gpt-oss")}
    assert model.notes == ()


def test_chunks_are_a_kind_unless_the_context_ends_before():
    model = read(**published.MODELS["llama-4-scout"][0])
    full, chunked = model.served
    assert (full.num_layers, full.chunk_tokens) == (12, None)
    assert (chunked.num_layers, chunked.chunk_tokens) == (36, 8192)
    assert shapes(model.within(8192)) == {(48, 8, 128, None)}
    assert [kind.label for kind in model.within(16384).kinds] == ["full", "chunk 8192"]


def test_a_window_as_long_as_the_context_is_none():
    model = read(model_type="ministral", num_attention_heads=32)  # 4096 in all layers
    assert shapes(model.within(4096)) == {(32, 8, 128, None)}
    assert shapes(model.within(4097)) == {(32, 8, 128, 4096)}


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({**published.DEEPSEEK, "index_topk": 2048}, r"sparse .*\(index_topk=2048\)"),
        ({"model_type": "deepseek_v32"}, r"sparse .*\(index_topk=2048\)"),
        ({"model_type": "glm_moe_dsa"}, r"sparse .*\(index_topk=2048\)"),
        ({"model_type": "longcat_flash"}, "two latent attentions"),
        ({"model_type": "kimi_linear"}, "latent attention between layers of linear attention"),
        ({"model_type": "bloom", "n_head": 32}, "alibi"),
        ({"model_type": "falcon", "alibi": True}, "alibi"),
        ({"model_type": "mpt", "attn_config": {"alibi": True}}, "alibi"),
        ({"model_type": "diffllama"}, "differential attention"),
        ({"model_type": "deepseek_v4"}, "compressed sparse attention"),
        ({"model_type": "gpt2", "scale_attn_by_inverse_layer_idx": True}, "every layer"),
        ({"model_type": "gemma3_text", "use_bidirectional_attention": True}, "later ones"),
        ({"model_type": "qwen3", "layer_types": ["qwen_sparse_attention"] * 32}, "sparse"),
        ({"model_type": "mimo_v2_flash"}, "values of 128 elements beside keys of 192"),
        ({"model_type": "llama", "is_encoder_decoder": True}, "encoder"),
    ],
)
def test_what_no_kernel_serves_is_refused_by_name(config, reason):
    with pytest.raises(UsageError, match=reason):
        read(**config)


def stretched(**rope_scaling):
    return {**published.DEEPSEEK, "rope_scaling": rope_scaling}


@pytest.mark.parametrize(
    ("config", "row", "heads", "scale"),
    [
        (published.DEEPSEEK, (512, 64), 128, 192**-0.5),
        # As the wheel of tpu-inference 0.32.0 has it beside its tuned blocks (mla/v2).
        (stretched(type="yarn", factor=40, mscale_all_dim=1.0), (512, 64), 128, 0.1352337788608801),
        (stretched(type="yarn", factor=1, mscale_all_dim=1.0), (512, 64), 128, 192**-0.5),
        (stretched(type="yarn", factor=40), (512, 64), 128, 192**-0.5),
        ({"model_type": "minicpm3"}, (256, 32), 40, 96**-0.5),
        ({"model_type": "mistral4"}, (256, 64), 32, 128**-0.5 * (0.1 * math.log(128) + 1) ** 2),
        ({"model_type": "glm4_moe_lite"}, (512, 64), 20, 256**-0.5),
    ],
)  # fmt: skip
def test_latents_are_one_kv_head_that_all_query_heads_share(config, row, heads, scale):
    (kind,) = read(**config).kinds
    assert (kind.head_dim, kind.rope_dim) == row
    assert (kind.num_q_heads, kind.num_kv_heads) == (heads, 1)
    assert kind.sm_scale == pytest.approx(scale, rel=1e-12)
    assert (kind.is_latent, kind.label) == (True, "latent")


def test_layers_that_are_refused_may_leave_sizes_of_latents_out():
    kind = latent_layer({"kv_lora_rank": 512}, q_heads=64, refusal="sparse attention")
    assert (kind.head_dim, kind.is_latent, kind.refusal) == (512, True, "sparse attention")
    with pytest.raises(UsageError, match="qk_rope_head_dim is missing"):
        latent_layer({"kv_lora_rank": 512}, q_heads=64, refusal="")


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"qk_rope_head_dim": None}, "qk_rope_head_dim is missing"),
     ({"qk_nope_head_dim": "128"}, "qk_nope_head_dim='128' must be an integer"),
     ({"rope_scaling": {"type": "yarn", "mscale_all_dim": 1.0}}, "factor=None of the rope")],
)  # fmt: skip
def test_a_size_of_latents_that_is_missing_or_none_is_named(changes, message):
    with pytest.raises(UsageError, match=message):
        read(**{**published.DEEPSEEK, **changes})


# Right values by the classes of transformers 5.24.0 and by the models' own code.
@pytest.mark.parametrize(
    ("config", "expected"),
    [
        # Absent is not null.
        ({"model_type": "mistral", "num_attention_heads": 64, "head_dim": 128},
         {(32, 8, 128, 4096)}),
        ({"model_type": "mistral", "num_key_value_heads": None, "sliding_window": None},
         {(32, 32, 128, None)}),
        ({"model_type": "qwen2", "num_attention_heads": 64, "hidden_size": 8192},
         {(32, 32, 128, None)}),
        ({"model_type": "glm4"}, {(40, 2, 128, None)}),
        ({"model_type": "qwen3", "hidden_size": 5120, "num_attention_heads": 64},
         {(32, 32, 128, None)}),
        # A window without layer_types.
        ({"model_type": "cohere2"}, {(10, 64, 128, None), (30, 64, 128, 4096)}),
        ({"model_type": "exaone4"}, {(8, 32, 128, None), (24, 32, 128, 4096)}),
        ({"model_type": "olmo3"}, {(8, 32, 128, None), (24, 32, 128, 4096)}),
        ({"model_type": "exaone4", "sliding_window_pattern": "LLLG"},
         {(8, 32, 128, None), (24, 32, 128, 4096)}),
        ({"model_type": "qwen2", "use_sliding_window": True, "num_hidden_layers": 36},
         {(28, 32, 128, None), (8, 32, 128, 4096)}),
        ({"model_type": "cwm", "num_hidden_layers": 5}, {(2, 8, 128, None), (3, 8, 128, 8192)}),
        # Other names, and numbers that hold for some layers.
        ({"model_type": "gpt_bigcode", "n_head": 48, "n_embd": 6144, "n_layer": 40},
         {(40, 1, 128, None)}),
        ({"model_type": "gpt_bigcode", "multi_query": False}, {(12, 12, 64, None)}),
        ({"model_type": "RefinedWeb", "n_head": 128, "n_head_kv": 8, "n_layer": 60,
          "hidden_size": 8192}, {(60, 8, 64, None)}),
        ({"model_type": "chatglm", "num_layers": 28, "num_attention_heads": 32,
          "multi_query_attention": True, "multi_query_group_num": 2, "kv_channels": 128},
         {(28, 2, 128, None)}),
        ({"model_type": "step3_text", "num_hidden_layers": 61, "num_attention_heads": 64,
          "num_attention_groups": 1, "head_dim": 256}, {(61, 1, 256, None)}),
        ({"model_type": "dbrx", "n_heads": 48, "d_model": 6144, "n_layers": 40,
          "attn_config": {"kv_n_heads": 8, "clip_qkv": 8}}, {(40, 8, 128, None)}),
        ({"model_type": "nemotron-nas", "hidden_size": 8192, "num_attention_heads": 64,
          "num_hidden_layers": 4, "num_key_value_heads": None, "block_configs": [
              {"attention": {"n_heads_in_group": 8}}, {"attention": {"n_heads_in_group": 16}},
              {"attention": {"no_op": True, "n_heads_in_group": None}},
              {"attention": {"n_heads_in_group": 8}}]},
         {(2, 8, 128, None), (1, 4, 128, None)}),
        ({"model_type": "openelm", "num_transformer_layers": 3, "num_hidden_layers": 3,
          "num_query_heads": [12, 12, 16], "num_kv_heads": [3, 3, 4], "head_dim": 64},
         {(2, 3, 64, None), (1, 4, 64, None)}),
        ({"model_type": "laguna", "num_hidden_layers": 4, "layer_types": [F, S, S, S],
          "num_attention_heads_per_layer": [48, 64, 64, 64]},
         {(1, 8, 128, None), (3, 8, 128, 512)}),
        ({"model_type": "mimo_like", "num_hidden_layers": 4, "hybrid_layer_pattern": [0, 1, 1, 1],
          "num_attention_heads": 64, "num_key_value_heads": 4, "head_dim": 192,
          "v_head_dim": 192, "swa_num_attention_heads": 64, "swa_num_key_value_heads": 8,
          "swa_head_dim": 192, "swa_v_head_dim": 192, "sliding_window": 128},
         {(1, 4, 192, None), (3, 8, 192, 128)}),
        ({"model_type": "step3p5", "num_hidden_layers": 4, "layer_types": [F, S, S, S, F],
          "num_nextn_predict_layers": 1, "sliding_window": 512,
          "attention_other_setting": {"num_attention_heads": 96, "num_attention_groups": 8}},
         {(1, 8, 128, None), (3, 8, 128, 512)}),
        ({"model_type": "gemma4_text", "num_hidden_layers": 6, "num_key_value_heads": 16,
          "num_attention_heads": 32, "layer_types": [S] * 5 + [F], "sliding_window": 1024,
          "per_layer_config": {"5": {"head_dim": 512, "num_key_value_heads": 4}}},
         {(1, 4, 512, None), (5, 16, 256, 1024)}),
        # Fewer KV heads for full layers only where keys are values, too.
        ({"model_type": "gemma4_text", "num_global_key_value_heads": 2},
         {(5, 4, 512, None), (25, 4, 256, 512)}),
        # Layers without attention between.
        ({"model_type": "nemotron_h", "hybrid_override_pattern": "MEM*EM-*",
          "num_key_value_heads": 2}, {(2, 2, 128, None)}),
        ({"model_type": "bamba", "attn_layer_indices": [9, 18, 27]}, {(3, 8, 128, None)}),
        ({"model_type": "lfm2", "full_attn_idxs": [2, 5]}, {(2, 8, 80, None)}),
        ({"model_type": "recurrent_gemma"}, {(8, 10, 256, 2048)}),
        ({"model_type": "mllama", "text_config": {"model_type": "mllama_text_model"}},
         {(32, 8, 128, None)}),
        # The text inside.
        ({"model_type": "llava", "text_config": {"num_attention_heads": 40, "hidden_size": 5120}},
         {(32, 40, 128, None)}),
        ({"model_type": "qwen2_vl", "num_hidden_layers": 28, "hidden_size": 3584,
          "num_attention_heads": 28, "num_key_value_heads": 4}, {(28, 4, 128, None)}),
        ({"model_type": "internvl_chat", "llm_config": {"model_type": "qwen2"}},
         {(32, 32, 128, None)}),
    ],
)  # fmt: skip
def test_geometry_of_files_that_say_it_in_their_own_way(config, expected):
    assert shapes(read(**config)) == expected


@pytest.mark.parametrize(
    ("config", "scale"),
    [
        ({"model_type": "granitemoe", "attention_multiplier": 0.015625}, 0.015625),
        ({"model_type": "granite"}, 1.0),  # the class's own default
        ({"model_type": "hyperclovax", "attention_multiplier": None}, 128**-0.5),
        ({"model_type": "vaultgemma", "query_pre_attn_scalar": 100}, 0.1),
        ({"model_type": "gemma4_unified_text"}, 1.0),
        ({"model_type": "gpt_neo"}, 1.0),
        ({"model_type": "gpt2", "scale_attn_weights": False}, 1.0),
        ({"model_type": "gpt2"}, 1 / 8),
    ],
)
def test_scale_of_the_logits(config, scale):
    assert {kind.sm_scale for kind in read(**config).kinds} == {scale}


def test_sinks_of_all_layers_or_of_those_with_a_window():
    assert {k.has_sinks for k in read(model_type="granitemoe_swa").kinds} == {True}
    said = read(model_type="mellum", layer_types=[F] + [S] * 27, add_swa_attention_sink_bias=True)
    assert [k.has_sinks for k in said.kinds] == [False, True]


# None of these models or keys is in a list of the code.
@pytest.mark.parametrize(
    ("config", "key"),
    [
        ({"model_type": "llama", "kv_merge_ratio": 2}, "kv_merge_ratio=2"),
        ({"model_type": "qwen3", "head_wise_window": [64, 128]}, "head_wise_window"),
        ({"model_type": "olmo2", "use_cla": True, "cla_share_factor": 2}, "cla_share_factor=2"),
        ({"model_type": "glm4", "dual_chunk_attention_config": {"chunk_size": 8}}, "dual_chunk"),
        ({"model_type": "phi3", "sparse_attention_block": 64}, "sparse_attention_block=64"),
        ({"model_type": "ernie4_5", "num_sink_tokens": 4}, "num_sink_tokens=4"),
        ({"model_type": "seed_oss", "relative_attention_bias": True}, "relative_attention_bias"),
        ({"model_type": "nemotron", "qk_scale_factor": 3.9}, "qk_scale_factor=3.9"),
    ],
)
def test_a_key_that_changes_attention_and_is_not_understood_is_refused_by_name(config, key):
    with pytest.raises(UsageError, match="not understood") as caught:
        read(**config)
    assert key in str(caught.value)
    off = {name: value if name == "model_type" else None for name, value in config.items()}
    assert read(**off).served


@pytest.mark.parametrize(
    ("config", "key"),
    [({"model_type": "minimax_m2"}, {"attn_type_list": [1] * 62}),
     ({"model_type": "phi3"}, {"full_attn_mod": 1})],
)  # fmt: skip
def test_keys_that_only_the_models_own_code_had_change_nothing(config, key):
    """In the files of MiniMax-M2 and Phi-4 mini; transformers does not read them."""
    assert read(**config, **key) == read(**config)


@pytest.mark.parametrize(
    "key",
    ["attention_bias", "attention_dropout", "attn_pdrop", "qk_layernorm", "num_experts_per_tok",
     "rope_scaling", "moe_layer_start_index", "image_token_index", "mamba_num_heads",
     "linear_key_head_dim", "_attn_implementation_autoset", "decoder_sparse_step",
     "tie_word_embeddings", "head_bias", "sliding_window_rope_theta"],
)  # fmt: skip
def test_keys_that_change_nothing_a_kernel_sees_are_passed_over(key):
    assert read(model_type="llama", **{key: 1}) == read(model_type="llama")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"num_attention_heads": 0}, "num_attention_heads=0 must be at least 1"),
        ({"head_dim": "x"}, "head_dim='x' must be an integer"),
        ({"head_dim": 64.5}, "head_dim=64.5 must be an integer"),
        ({"hidden_size": None}, "hidden_size is missing"),
        ({"hidden_size": 8}, "hidden_size=8 is less than num_attention_heads=32"),
        ({"num_hidden_layers": -1}, "num_hidden_layers=-1"),
        ({"num_key_value_heads": True}, "num_key_value_heads=True must be an integer"),
        ({"num_key_value_heads": 5}, "not a multiple of num_key_value_heads=5"),
        ({"num_key_value_heads": 8, "num_kv_heads": 4}, "num_kv_heads=4 disagree"),
        ({"layer_types": [F] * 3}, "3 layer types for num_hidden_layers=32"),
        ({"layer_types": ["fancy"] * 32}, "layers of type 'fancy' are not understood"),
        ({"layer_types": 7}, "layer_types=7 is not understood"),
        ({"layer_types": [S] * 32}, "sliding_attention, but no sliding_window"),
        ({"sliding_window": 64}, "sliding_window=64, but not which layers"),
        ({"sliding_window": "64"}, "sliding_window='64'"),
        ({"attention_multiplier": 0}, "attention_multiplier=0 must be above 0"),
        ({"attention_multiplier": "a"}, "attention_multiplier='a' must be a number"),
        ({"block_configs": [{"ffn": {}}] * 3}, "3 layer types"),
        ({"block_configs": [3] * 32}, "block_configs"),
        ({"per_layer_config": {"99": {}}}, "per_layer_config names layer '99'"),
        ({"layer_types": [L] * 32}, "none of the 32 layers is an attention layer"),
        ({"num_kv_shared_layers": "two"}, "num_kv_shared_layers='two'"),
        ({"text_config": []}, "text_config is a JSON list"),
    ],
)
def test_bad_values_are_one_error_with_key_and_file(tmp_path, config, message):
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"model_type": "llama", **config}))
    with pytest.raises(UsageError) as caught:
        read_file(path)
    assert message in str(caught.value)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("model_type", ["gemma4_text", "unknown"])
def test_no_value_of_any_key_ends_in_a_traceback(tmp_path, model_type, monkeypatch):
    monkeypatch.setattr(installed, "complete", lambda config, model_type: None)
    path = tmp_path / "config.json"
    whole = {"model_type": model_type, "num_hidden_layers": 4, "num_attention_heads": 8,
             "num_key_value_heads": 2, "hidden_size": 512, "sliding_window": 64}  # fmt: skip
    refusals = []
    for key in sorted({*keys.READ, *keys.ALIASES, "attn_config", "text_config"}):
        for value in ("x", -1, True, [], [1], {"a": 1}, {"1": 2}, 1e400):
            path.write_text(json.dumps({**whole, key: value}))
            try:
                read_file(path)
            except UsageError as error:
                refusals.append(str(error))
    assert len(refusals) > 100
    assert all(str(path) in refusal for refusal in refusals)


def test_a_pattern_that_the_type_does_not_have_is_refused():
    with pytest.raises(UsageError, match="sliding_window_pattern=5"):
        read(model_type="gemma4_text", sliding_window_pattern=5)


def test_an_unknown_type_says_its_heads_itself_and_what_was_taken_for_granted():
    own = {"model_type": "brandnew", "num_hidden_layers": 2, "num_attention_heads": 8}
    with pytest.raises(UsageError, match="num_key_value_heads is missing"):
        read(**own, head_dim=64)
    model = read(**own, head_dim=64, num_key_value_heads=None)
    assert shapes(model) == {(2, 8, 64, None)}
    assert "'brandnew' is not known" in model.notes[0]


def test_kinds_have_names_that_tell_them_apart():
    model = read(**published.MODELS["gemma-3n-e4b"][0])
    assert [model.name_of(kind) for kind in model.kinds] == [
        "full", "window 512", "full shared cache", "window 512 shared cache",
    ]  # fmt: skip
    heads = read(
        model_type="laguna", num_hidden_layers=2, num_attention_heads_per_layer=[48, 64],
        layer_types=[F, F],
    )  # fmt: skip
    assert [heads.name_of(kind) for kind in heads.kinds] == ["full 48/8 heads", "full 64/8 heads"]
    names = {heads.name_of(kind) for kind in heads.kinds}
    for name in names:
        kind = heads.pick(name.replace(" ", "-"))
        assert heads.name_of(kind) == name


def test_layers_that_read_another_cache_write_none():
    model = read(**published.MODELS["gemma-3n-e4b"][0])
    sizes = {
        "page_size": 16, "max_num_tokens": 16, "max_num_seqs": 8, "pages_per_seq": 64,
        "num_pages": 64,
    }  # fmt: skip
    updates = [kind.problem(**sizes).update_kv_cache for kind in model.kinds]
    assert updates == [True, True, False, False]
    assert dataclasses.replace(model.kinds[0], reads_other_cache=True) == dataclasses.replace(
        model.kinds[2], num_layers=4
    )
