"""The defaults of types.yaml against those of the installed transformers, type by type.

Skipped where transformers is not installed (`pip install 'rpa-tune[models]'`); PyTorch is not
needed. Files are made from a type alone and from a type with some keys, so that what a class
derives is compared as well as what it defaults to.
"""

import dataclasses

import pytest

from rpa_tune.errors import UsageError
from rpa_tune.hf import installed, keys
from rpa_tune.hf.read import load_types, read_config

transformers = pytest.importorskip("transformers", reason="pip install 'rpa-tune[models]'")
TYPES = load_types()["types"]
# The defaults are those of 5.24.0; others are compared where they have the type.
KNOWN = [name for name in TYPES if name in transformers.CONFIG_MAPPING]

VARIANTS = {
    "nothing": {},
    "heads": {"num_attention_heads": 24, "hidden_size": 24 * 96},
    "KV heads": {"num_attention_heads": 24, "num_key_value_heads": 6, "hidden_size": 24 * 96},
    "null KV heads": {"num_key_value_heads": None},
    "window": {"sliding_window": 640},
    "used window": {"sliding_window": 640, "use_sliding_window": True, "num_hidden_layers": 36},
    "layers": {"num_hidden_layers": 13},
}


def read(config, ask):
    """The layers, or the reason why there are none."""
    try:
        model = read_config(config, name="x", source="", ask=ask)
    except UsageError as error:
        return error.args[0]
    return model.kinds, model.num_other


def fields(model_type):
    made = transformers.CONFIG_MAPPING[model_type]
    return {field.name for field in dataclasses.fields(made)} | set(made.attribute_map)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("model_type", KNOWN)
def test_a_file_means_the_same_with_and_without_transformers(model_type, variant):
    """`read_config` itself refuses a file that the two read differently."""
    changes = {key: value for key, value in VARIANTS[variant].items() if key in fields(model_type)}
    config = {"model_type": model_type, **changes}
    answer = installed.complete(config, model_type)
    if answer.config is None:
        assert set(changes) & {"num_key_value_heads", "num_hidden_layers", "num_attention_heads",
                               "hidden_size"}  # fmt: skip
        return  # the class does not take such a file
    assert read(config, ask=True) == read(config, ask=False)


def test_nearly_all_types_are_compared():
    """A newer or older transformers may lack some; without most of them nothing is compared."""
    assert len(KNOWN) > 0.9 * len(TYPES)


@pytest.mark.parametrize("model_type", KNOWN)
def test_every_key_of_a_known_type_is_read_or_without_effect(model_type):
    flat = keys.flatten(installed.complete({}, model_type).config)
    if isinstance(read({"model_type": model_type}, ask=False), str):
        return  # refused as a whole, whatever its other keys say
    assert not keys.unread_attention_keys(flat, TYPES[model_type].get("no_effect", ()))


@pytest.mark.parametrize("outer", load_types()["text"])
def test_the_text_inside_a_multimodal_model_is_of_the_type_that_its_class_says(outer):
    if outer not in transformers.CONFIG_MAPPING:
        pytest.skip(f"transformers {transformers.__version__} has no {outer}")
    config = transformers.CONFIG_MAPPING[outer]()
    assert config.text_config.model_type == load_types()["text"][outer]


# Types that types.yaml does not have; the class says what their files leave out.
@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"model_type": "iquestcoder"}, None),
        ({"model_type": "muse_glimmer_text"}, "qk_scale_factor"),
        ({"model_type": "inkling2_text"}, "not understood"),
        ({"model_type": "minimax_m3_vl_text"}, "index_"),
        ({"model_type": "biogpt"}, None),
    ],
)
def test_a_type_that_only_transformers_knows(config, expected):
    if config["model_type"] not in transformers.CONFIG_MAPPING:
        pytest.skip("not in this transformers")
    assert config["model_type"] not in TYPES
    if expected is None:
        model = read_config(config, name="x", source="")
        made = transformers.CONFIG_MAPPING[config["model_type"]]()
        assert {kind.num_q_heads for kind in model.kinds} == {made.num_attention_heads}
        assert "is not known here" in model.notes[0]
    else:
        with pytest.raises(UsageError, match=expected):
            read_config(config, name="x", source="")


def test_a_file_that_transformers_reads_differently_is_refused_with_both():
    """The class makes the last layer a full one, whatever the file says."""
    config = {"model_type": "gemma4_text", "sliding_window_pattern": 6, "num_hidden_layers": 7,
              "layer_types": ["full_attention"] + ["sliding_attention"] * 6}  # fmt: skip
    with pytest.raises(UsageError, match=r"transformers .* reads this file"):
        read_config(config, name="x", source="")
