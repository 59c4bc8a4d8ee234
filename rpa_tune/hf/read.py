"""A Hugging Face `config.json` → `Model`; what is not understood is refused by name."""

import dataclasses
import functools
import json
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from rpa_tune.errors import UsageError
from rpa_tune.hf import installed
from rpa_tune.hf.keys import flatten, unread_attention_keys
from rpa_tune.hf.layers import NAMING, read_layers
from rpa_tune.hf.weights import read_weights
from rpa_tune.models.model import Model
from rpa_tune.models.weights import Weights

# Keys under which multimodal models keep their language model, outermost first.
_NESTS = ("thinker_config", "text_config", "llm_config", "language_config")
# What `types.yaml` says beside keys of a file.
_RULES = frozenset(
    {"pattern", "all_layers", "windows", "sm_scale", "sinks", "refused", "no_effect"}
)
# Keys that say how many KV heads there are.
_KV_HEADS = ("num_key_value_heads", "multi_query", "multi_query_attention", "block_configs")
_NEEDED = (
    "num_attention_heads, num_key_value_heads and head_dim (null for hidden_size / heads) "
    "describe a model of any type"
)


@functools.cache
def load_types() -> Mapping[str, Mapping[str, Any]]:
    """`types.yaml`: defaults and rules by model type (`types`), types inside others (`text`)."""
    text = resources.files("rpa_tune.hf").joinpath("types.yaml").read_text(encoding="utf-8")
    return yaml.safe_load(text)  # type: ignore[no-any-return]


def read_file(path: Path) -> Model:
    """The model that a file describes.

    Raises:
      UsageError: The file cannot be read or describes no model, something in it changes attention
        and is not understood, or no kernel family serves any of its layers.
    """
    try:
        whole = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"not the config.json of a model: {error}", where=str(path)) from error
    if not isinstance(whole, dict):
        raise UsageError(
            f"not the config.json of a model: a JSON {type(whole).__name__}, not an object",
            where=str(path),
        )
    source = f"{path.name} of {whole.get('_name_or_path') or path.resolve().parent.name}"
    try:
        return read_config(whole, name=str(path), source=source)
    except UsageError as error:
        error.where = error.where or str(path)
        raise
    except (TypeError, ValueError, KeyError, AttributeError, IndexError) as error:
        raise UsageError(f"a value has the wrong type: {error}", where=str(path)) from error


def read_config(
    whole: Mapping[str, Any], *, name: str, source: str, checked: str = "", ask: bool = True
) -> Model:
    """The model of a `config.json` that is already parsed.

    Args:
      whole: Its outermost object.
      name: `Model.name`.
      source: `Model.source`.
      checked: `Model.checked`.
      ask: Whether an installed transformers is asked what the file leaves out.

    Raises:
      UsageError: As `read_file`.
    """
    config, model_type = text_config(whole)
    facts = load_types()["types"].get(model_type, {})
    answer = installed.complete(config, model_type) if ask else None
    completed = answer.config if answer else None
    model = Model(name=name, source=source, checked=checked, kinds=())
    if facts or completed is None:
        model = _with_layers(model, config, facts)
    if answer and answer.refusal:
        model = _noted(model, f"{answer.version} does not take this file: {answer.refusal}")
    if answer and completed is not None:
        asked = _with_layers(model, completed, facts)
        if facts and (asked.kinds, asked.num_other) != (model.kinds, model.num_other):
            raise UsageError(
                f"{answer.version} reads this file of type {model_type!r} as "
                f"{_described(asked)}; rpa-tune as {_described(model)}",
                hint="say in the file what it leaves to the defaults of its model type",
            )
        model = asked
    if not facts:
        model = _noted(
            model,
            f"model type {model_type or None!r} is not known here: what its file does not say is "
            "taken as plain (logits scaled by head_dim ** -0.5, no sinks, no position bias)",
        )
    return model


def text_config(whole: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
    """The language model inside a config, with its model type; empty when nothing says it.

    Raises:
      UsageError: A nested config is no object.
    """
    types = load_types()
    config, inside = dict(whole), ""
    for key in _NESTS:
        if config.get(key) is None:
            continue
        if not isinstance(config[key], dict):
            raise UsageError(f"{key} is a JSON {type(config[key]).__name__}, not an object")
        inside = str(config.get("model_type") or inside)
        config = dict(config[key])
    model_type = str(config.get("model_type") or types["text"].get(inside, ""))
    # Models of before transformers 4.52 keep the keys of their text outermost.
    model_type = model_type if model_type in types["types"] else (
        types["text"].get(model_type, model_type)
    )  # fmt: skip
    return config, model_type


def _with_layers(model: Model, config: Mapping[str, Any], facts: Mapping[str, Any]) -> Model:
    """The model with the layers that a config gives.

    Raises:
      UsageError: As `read_file`.
    """
    flat = flatten(config)
    if not facts and not any(key in flat for key in _KV_HEADS):
        raise UsageError(
            "num_key_value_heads is missing, and what it is then is known for the model types of "
            f"rpa_tune/hf/types.yaml only; this is {config.get('model_type')!r}",
            hint=_NEEDED,
        )
    names = set(NAMING) if any(flat.get(key) is not None for key in NAMING) else set()
    defaults = {k: v for k, v in facts.items() if k not in _RULES and k not in names}
    whole = {**defaults, **flat}
    try:
        kinds, other = read_layers(whole, facts)
    except UsageError as error:
        error.hint = error.hint or _NEEDED
        raise
    if not kinds:
        raise UsageError(f"none of the {sum(other.values())} layers is an attention layer")
    weights: Weights | str
    try:
        weights = read_weights(whole, kinds, other)
    except UsageError as error:
        weights = error.args[0]
    model = dataclasses.replace(model, kinds=kinds, other_layers=other, weights=weights)
    if not model.served and all(kind.refusal for kind in kinds):
        raise UsageError(f"no kernel family serves its attention: {model.layers_text}")
    if unread := unread_attention_keys(flat, facts.get("no_effect", ())):
        said = ", ".join(f"{key}={str(value)[:60]}" for key, value in unread.items())
        raise UsageError(
            f"keys that change attention and are not understood: {said}",
            hint="a file without them describes the layers as if they were plain; take them out "
            "if they change nothing that a kernel computes",
        )
    return model


def _described(model: Model) -> str:
    """All that two readings of a file can differ in."""
    kinds = [
        f"{kind.num_layers} {kind.label} with {kind.num_q_heads}/{kind.num_kv_heads} heads of "
        f"{kind.head_dim}, scale {kind.sm_scale:.6g}"
        for kind in model.kinds
    ]
    return ", ".join([*kinds, f"{model.num_other} without attention"])


def _noted(model: Model, note: str) -> Model:
    return dataclasses.replace(model, notes=(*model.notes, note))
