"""What each layer is, by the key that says so; `test_read.py` has whole files of real models."""

import pytest

from rpa_tune.errors import UsageError
from rpa_tune.hf.layers import read_layers

BASE = {"num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 64, "num_hidden_layers": 6}
WINDOWED = {**BASE, "sliding_window": 512}


def reach(config, facts=None):
    """{label: layers}, and the layers without attention."""
    kinds, other = read_layers(config, facts or {})
    return {kind.label: kind.num_layers for kind in kinds}, other


@pytest.mark.parametrize(
    ("keys", "found", "other"),
    [
        ({}, {"full": 6}, {}),
        ({"layer_types": ["sliding_attention", "full_attention"] * 3},
         {"full": 3, "window 512": 3}, {}),
        ({"layer_types": ["mamba", "full_attention", "moe"] * 2},
         {"full": 2}, {"mamba": 2, "moe": 2}),
        ({"hybrid_override_pattern": "M*-EM*"}, {"full": 2}, {"mamba": 2, "mlp": 1, "moe": 1}),
        ({"hybrid_layer_pattern": [0, 1, 1, 0, 1, 1]}, {"full": 2, "window 512": 4}, {}),
        ({"attention_types": [[["global", "local"], 3]]}, {"full": 3, "window 512": 3}, {}),
        ({"block_types": ["recurrent", "recurrent", "attention"]}, {"full": 2}, {"recurrent": 4}),
        ({"attn_layer_indices": [0, 5]}, {"full": 2}, {"mamba": 4}),
        ({"full_attn_idxs": [1]}, {"full": 1}, {"conv": 5}),
        ({"local_layer_ids": [0, 1]}, {"full": 4, "window 512": 2}, {}),
        ({"full_attention_interval": 3}, {"full": 2}, {"linear_attention": 4}),
        ({"sliding_window_pattern": "LLG"}, {"full": 2, "window 512": 4}, {}),
        ({"sliding_window_pattern": 3}, {"full": 2, "window 512": 4}, {}),
        ({"use_sliding_window": True, "max_window_layers": 4}, {"full": 4, "window 512": 2}, {}),
        ({"use_sliding_window": False, "max_window_layers": 4}, {"full": 6}, {}),
        ({"attention_chunk_size": 64, "no_rope_layers": [1, 1, 1, 0, 1, 1]},
         {"full": 1, "chunk 64": 5}, {}),
        ({"block_configs": [{"attention": {"no_op": True}}, {}] * 3}, {"full": 3}, {"skipped": 3}),
    ],
)  # fmt: skip
def test_every_way_to_say_what_layers_are(keys, found, other) -> None:
    has_window = found != {"full": 6} or "use_sliding_window" in keys
    config = {**(WINDOWED if has_window else BASE), **keys}
    if "full_attention_interval" in keys:
        del config["sliding_window"]
    assert reach(config) == (found, other)


def test_layers_that_predict_further_tokens_are_left_out() -> None:
    names = ["full_attention"] * 7
    assert reach({**BASE, "layer_types": names, "num_nextn_predict_layers": 1}) == ({"full": 6}, {})
    with pytest.raises(UsageError, match="7 layer types for num_hidden_layers=6"):
        reach({**BASE, "layer_types": names})


def test_heads_may_differ_by_layer() -> None:
    kinds, _ = read_layers({**BASE, "num_key_value_heads": [2, 2, 4, 4, 8, 8]}, {})
    assert sorted((k.num_kv_heads, k.num_layers) for k in kinds) == [(2, 2), (4, 2), (8, 2)]
    override = {"2": {"num_key_value_heads": 1}}
    kinds, _ = read_layers({**BASE, "per_layer_config": override}, {})
    assert sorted((k.num_kv_heads, k.num_layers) for k in kinds) == [(1, 1), (2, 5)]


def test_the_type_says_what_the_file_leaves_out() -> None:
    pattern = {"pattern": {"every": 3, "first": 0}}
    assert reach(WINDOWED, pattern) == ({"full": 2, "window 512": 4}, {})
    assert reach(BASE, pattern) == ({"full": 6}, {})  # no window, so no turns
    assert reach(WINDOWED, {"windows": "all"}) == ({"window 512": 6}, {})
    assert reach(WINDOWED, {"max_window_layers": 1}) == ({"full": 1, "window 512": 5}, {})
    kinds, _ = read_layers(BASE, {"sm_scale": 0.5, "sinks": "all"})
    assert (kinds[0].sm_scale, kinds[0].has_sinks) == (0.5, True)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"sliding_window": 512}, "sliding_window=512, but not which layers have it"),
        ({"layer_types": ["sliding_attention"] * 6}, "layers with sliding_attention, but no slid"),
        ({"layer_types": 5}, "layer_types=5 is not understood"),
        ({"layer_types": ["fancy_attention"] * 6}, "fancy_attention"),
        ({"attention_types": ["global"]}, "attention_types=.* is not understood"),
        ({"num_attention_heads": 5}, "num_attention_heads=5 is not a multiple of num_key_value"),
        ({"num_hidden_layers": None}, "num_hidden_layers is missing"),
        ({"num_hidden_layers": 0}, "num_hidden_layers=0 must be at least 1"),
        ({"head_dim": "64"}, "head_dim='64' must be an integer"),
        ({"head_dim": None}, "hidden_size is missing"),
        ({"num_key_value_heads": [2, 2]}, "num_key_value_heads has 2 values for 6 layers"),
        ({"per_layer_config": {"6": {}}}, "per_layer_config names layer '6' of 6"),
        ({"softmax_scale": 0}, "softmax_scale=0 must be above 0"),
    ],
)
def test_what_cannot_be_read_is_refused_with_the_key(keys, message) -> None:
    with pytest.raises(UsageError, match=message):
        read_layers({**BASE, **keys}, {})
