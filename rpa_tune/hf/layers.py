"""What each layer of a `config.json` is, and the attention of each.

First what the layers are: the file says it in one of a dozen ways, or leaves it to its model type.
Then the heads, window and scale of each. Layers that are alike become one kind.
"""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rpa_tune.errors import UsageError
from rpa_tune.hf.latent import is_latent, latent_layer
from rpa_tune.models.model import LayerKind, merge_kinds

Config = Mapping[str, Any]

FULL, WINDOW, CHUNK = "full_attention", "sliding_attention", "chunked_attention"
# Names of layers in files -> what they are here.
_NAMES = {
    **dict.fromkeys(("full_attention", "attention", "global", "global_attention", "hybrid"), FULL),
    **dict.fromkeys(("sliding_attention", "local", "hybrid_sliding"), WINDOW),
    CHUNK: CHUNK,
}
# Layers without attention, under the names of files.
_NO_ATTENTION = {
    "linear_attention": "linear_attention", "mamba": "mamba", "mamba2": "mamba",
    "recurrent": "recurrent", "conv": "conv", "moe": "moe", "mlp": "mlp", "skipped": "skipped",
}  # fmt: skip
# Attention that no kernel family has -> what it is.
_REFUSED = {
    **dict.fromkeys(
        ("indexed_attention", "deepseek_sparse_attention", "qwen_sparse_attention",
         "compressed_sparse_attention", "heavily_compressed_attention", "minimax_m3_sparse"),
        "sparse attention over chosen keys",
    ),
    "reference_sliding_attention": "a window over generated tokens beside the whole prompt",
    "cross_attention": "cross attention, whose keys are not the sequence's own",
}  # fmt: skip
# One letter a layer. Source: hybrid_override_pattern of Nemotron-H; L and G of EXAONE 4.
_LETTERS = {"M": "mamba", "*": FULL, "-": "mlp", "E": "moe", "L": WINDOW, "G": FULL}
# Keys that say what each layer is; a file that has one needs no default of another.
NAMING = ("layer_types", "hybrid_override_pattern", "hybrid_layer_pattern", "block_configs",
          "attention_types", "block_types", "attn_layer_indices", "full_attn_idxs",
          "local_layer_ids", "cross_attention_layers")  # fmt: skip
# Keys that say how often a layer of full attention comes.
_EVERY = {"sliding_window_pattern", "_sliding_window_pattern", "full_attention_interval"}
# Keys whose value may differ by layer, in `per_layer_config` or as a list.
_BY_LAYER = ("num_attention_heads", "num_key_value_heads", "head_dim", "v_head_dim",
             "sliding_window", "attention_chunk_size")  # fmt: skip


def read_layers(config: Config, facts: Config) -> tuple[tuple[LayerKind, ...], dict[str, int]]:
    """The kinds of attention layers, and how many layers are something else.

    Args:
      config: A file's keys after `flatten`, the defaults of its model type among them.
      facts: What `types.yaml` says of the type.

    Raises:
      UsageError: A name, number or count of layers that is missing, out of its range or not
        understood; heads that do not divide; a window without layers.
    """
    names = _layer_names(config, facts)
    other = Counter(_NO_ATTENTION[name] for name in names if name in _NO_ATTENTION)
    return merge_kinds(_attention_layers(config, facts, names)), dict(other)


def _layer_names(config: Config, facts: Config) -> list[str]:
    """What each layer is: full, sliding or chunked attention, or a name of something else."""
    num = _num_layers(config)
    named = _named(config, num)
    if named is not None:
        if len(named) > num and len(named) - num == config.get("num_nextn_predict_layers"):
            named = named[:num]  # the rest predicts further tokens
        if len(named) != num:
            raise UsageError(f"{len(named)} layer types for num_hidden_layers={num}")
        return _windowed_throughout(config, facts, [_known(name) for name in named])
    if isinstance(pattern := facts.get("pattern"), Mapping):
        return _windowed_throughout(config, facts, _by_pattern(config, pattern, num))
    if every := config.get("full_attention_interval"):
        return _turns(num, every, every - 1, "linear_attention")
    if "all_layers" in facts or _window(config) is None:
        return [facts.get("all_layers", FULL)] * num
    return _with_window(config, facts, num)


def _windowed_throughout(config: Config, facts: Config, names: list[str]) -> list[str]:
    """In some types every attention layer has the window, though other layers stand between."""
    said = config.get("layer_types") and facts.get("windows") != "always"
    if facts.get("windows") not in ("all", "always") or said or _window(config) is None:
        return names
    return [WINDOW if name == FULL else name for name in names]


def _with_window(config: Config, facts: Config, num: int) -> list[str]:
    """Layers of a file that has a window and does not say which layers use it."""
    every = config.get("sliding_window_pattern") or config.get("_sliding_window_pattern")
    if every:
        return _turns(num, every, every - 1, WINDOW)
    if config.get("max_window_layers") is not None and "use_sliding_window" in config:
        return [WINDOW if i >= config["max_window_layers"] else FULL for i in range(num)]
    if "max_window_layers" in facts:
        return [WINDOW if i >= facts["max_window_layers"] else FULL for i in range(num)]
    if facts.get("windows") == "all":
        return [WINDOW] * num
    raise UsageError(
        f"sliding_window={_window(config)}, but not which layers have it",
        hint="say it as layer_types: one of full_attention and sliding_attention for each layer",
    )


def _named(config: Config, num: int) -> list[str] | None:
    """The layers as the file names them, or None when it does not."""
    readers: dict[str, Callable[[Any], list[str]]] = {
        "layer_types": list,
        "hybrid_override_pattern": lambda text: [_LETTERS.get(letter, letter) for letter in text],
        "hybrid_layer_pattern": lambda flags: [WINDOW if flag else FULL for flag in flags],
        "block_configs": lambda blocks: [_block_name(block) for block in blocks],
        "attention_types": lambda types: [name for ts, n in types for name in list(ts) * n],
        "block_types": lambda types: (list(types) * num)[:num],
        "attn_layer_indices": lambda at: [FULL if i in at else "mamba" for i in range(num)],
        "full_attn_idxs": lambda at: [FULL if i in at else "conv" for i in range(num)],
        "local_layer_ids": lambda at: [WINDOW if i in at else FULL for i in range(num)],
        "cross_attention_layers": lambda at: [
            "cross_attention" if i in at else FULL for i in range(num)
        ],
    }
    if config.get("attention_chunk_size") and "no_rope_layers" in config:
        # Llama 4: layers with rotary embeddings attend within chunks.
        readers["no_rope_layers"] = lambda flags: [CHUNK if flag else FULL for flag in flags]
    if isinstance(letters := config.get("sliding_window_pattern"), str):
        readers["sliding_window_pattern"] = lambda _: [
            _LETTERS.get(letter, letter) for letter in (letters * num)[:num]
        ]
    for key, reader in readers.items():
        value = config.get(key)
        if value is None or (key == "no_rope_layers" and not value):
            continue
        try:
            return reader(value)
        except (TypeError, ValueError, AttributeError) as error:
            raise UsageError(f"{key}={str(value)[:60]} is not understood: {error}") from error
    return None


def _block_name(block: Mapping[str, Any]) -> str:
    """What a layer of an architecture search is. Source: block_configs of Nemotron NAS."""
    attention = block["attention"] if isinstance(block.get("attention"), Mapping) else {}
    if attention.get("no_op"):
        return "skipped"
    return "linear_attention" if attention.get("replace_with_linear") else FULL


def _by_pattern(config: Config, pattern: Config, num: int) -> list[str]:
    """Layers that take turns, as the model type has it unless the file says otherwise."""
    others = pattern.get("others", WINDOW)
    reach = {WINDOW: _window(config), CHUNK: config.get("attention_chunk_size")}
    if reach.get(others, 1) is None:
        return [FULL] * num
    said = [config[key] for key in pattern.get("keys", ()) if config.get(key) is not None]
    every = _integer("layers between two of full attention", said[0] if said else pattern["every"])
    for key in _EVERY - set(pattern.get("keys", ())):
        if config.get(key) not in (None, every):
            raise UsageError(
                f"{key}={config[key]}, but models of type {config.get('model_type')} have full "
                f"attention in every layer {every}",
                hint="say what the layers are as layer_types",
            )
    firsts = [config[key] for key in pattern.get("first_keys", ()) if config.get(key) is not None]
    names = _turns(num, every, firsts[0] if firsts else pattern.get("first", every - 1), others)
    if "below" in pattern:
        end = config[pattern["below"]]
        names = [name if i < end else FULL for i, name in enumerate(names)]
    if pattern.get("also") is not None:
        names[pattern["also"]] = FULL
    if "last" in pattern:
        names[-1] = pattern["last"]
    return names


def _turns(num: int, every: int, first: int, others: str) -> list[str]:
    return [FULL if i % every == first else others for i in range(num)]


def _known(name: object) -> str:
    if isinstance(name, str):
        for known in (_NAMES, _NO_ATTENTION):
            if name in known:
                return known[name]
        if name in _REFUSED:
            return name
    raise UsageError(
        f"layers of type {name!r} are not understood",
        hint=f"known are {', '.join([*_NAMES, *_NO_ATTENTION, *_REFUSED])}",
    )


def _attention_layers(config: Config, facts: Config, names: Sequence[str]) -> list[LayerKind]:
    """The attention of each layer that has one, in order."""
    refusal = _refusal(config, facts)
    num_shared = config.get("num_kv_shared_layers") or 0
    first_shared = len(names) - (num_shared and _integer("num_kv_shared_layers", num_shared))
    overrides = _overrides(config, facts, names)
    return [
        _layer({**config, **overrides[i]}, facts, name, shared=i >= first_shared, refusal=refusal)
        for i, name in enumerate(names)
        if name not in _NO_ATTENTION
    ]


def _layer(config: Config, facts: Config, name: str, *, shared: bool, refusal: str) -> LayerKind:
    q_heads = _integer("num_attention_heads", config.get("num_attention_heads"))
    if is_latent(config):
        return latent_layer(config, q_heads, refusal or _REFUSED.get(name, ""))
    kv_heads = _kv_heads(config, q_heads)
    head_dim = _head_dim(config, q_heads)
    if q_heads % kv_heads:
        raise UsageError(
            f"num_attention_heads={q_heads} is not a multiple of num_key_value_heads={kv_heads}"
        )
    v_head_dim = config.get("v_head_dim")
    if not refusal and v_head_dim is not None and v_head_dim != head_dim:
        refusal = f"values of {v_head_dim} elements beside keys of {head_dim} (v_head_dim)"
    window = _window(config) if name == WINDOW else None
    if name == WINDOW and window is None and not refusal:
        raise UsageError("layers with sliding_attention, but no sliding_window")
    chunk = config.get("attention_chunk_size")
    return LayerKind(
        num_layers=1,
        num_q_heads=q_heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        sm_scale=_scale(config, facts, head_dim),
        sliding_window_tokens=window,
        chunk_tokens=_integer("attention_chunk_size", chunk) if name == CHUNK else None,
        soft_cap=_number("attn_logit_softcapping", config.get("attn_logit_softcapping") or None),
        has_sinks=_has_sinks(config, facts, name),
        reads_other_cache=shared,
        refusal=refusal or _REFUSED.get(name, ""),
    )


def _overrides(config: Config, facts: Config, names: Sequence[str]) -> list[dict[str, Any]]:
    """What differs by layer, under the names of `_BY_LAYER`."""
    found: list[dict[str, Any]] = [_of_kind(config, facts, name) for name in names]
    for key in _BY_LAYER:
        values = config.get(f"{key}_per_layer") or config.get(key)
        if isinstance(values, list):
            if len(values) != len(names):
                raise UsageError(f"{key} has {len(values)} values for {len(names)} layers")
            for override, value in zip(found, values, strict=True):
                override[key] = value
    for index, block in enumerate(config.get("block_configs") or ()):
        attention = block.get("attention") or {}
        if attention.get("n_heads_in_group"):
            heads = _integer("num_attention_heads", config.get("num_attention_heads"))
            found[index]["num_key_value_heads"] = heads // attention["n_heads_in_group"]
        elif attention.get("num_key_value_heads"):
            found[index]["num_key_value_heads"] = attention["num_key_value_heads"]
    for key, changes in (config.get("per_layer_config") or {}).items():
        if not str(key).isdigit() or int(key) >= len(names):
            raise UsageError(f"per_layer_config names layer {key!r} of {len(names)}")
        found[int(key)] |= {name: changes[name] for name in _BY_LAYER if name in changes}
    return found


def _of_kind(config: Config, facts: Config, name: str) -> dict[str, Any]:
    """Keys that hold for the layers with a window only, or for those without."""
    if name == WINDOW:
        other = config.get("attention_other_setting") or {}
        pairs = {
            "num_attention_heads": (
                config.get("swa_num_attention_heads"), config.get("num_sliding_attention_heads"),
                other.get("num_attention_heads"),
            ),
            "num_key_value_heads": (
                config.get("swa_num_key_value_heads"), other.get("num_attention_groups"),
            ),
            "head_dim": (config.get("swa_head_dim"), other.get("head_dim")),
            "v_head_dim": (config.get("swa_v_head_dim"),),
        }  # fmt: skip
    elif name == FULL and "per_layer_config" not in config:
        # Gemma 4: fewer KV heads only where keys are values, too, if the model says so at all.
        fewer = config.get("attention_k_eq_v", True)
        pairs = {
            "head_dim": (config.get("global_head_dim"),),
            "num_key_value_heads": (config.get("num_global_key_value_heads") if fewer else None,),
        }
    else:
        return {}
    return {
        key: next(value for value in values if value is not None)
        for key, values in pairs.items()
        if any(value is not None for value in values)
    }


def _refusal(config: Config, facts: Config) -> str:
    """What all layers do that no kernel family can; empty when there is nothing."""
    if config.get("index_topk"):
        return f"sparse attention over chosen keys (index_topk={config['index_topk']})"
    if facts.get("refused"):
        return f"{facts['refused']} (model_type {config.get('model_type')})"
    if config.get("alibi"):
        return "position bias on the logits (alibi)"
    if config.get("scale_attn_by_inverse_layer_idx"):
        return "another scale in every layer (scale_attn_by_inverse_layer_idx)"
    if config.get("is_encoder_decoder"):
        return "an encoder beside the decoder (is_encoder_decoder)"
    # "vision" lets the tokens of an image see each other; text stays causal.
    if config.get("use_bidirectional_attention") in (True, "all") or (
        config.get("is_causal") is False
    ):
        return "tokens that see later ones (use_bidirectional_attention or is_causal)"
    return ""


def _kv_heads(config: Config, q_heads: int) -> int:
    """KV heads of a layer; a model that says multi-query has one, whatever the other keys hold."""
    given = config.get("num_key_value_heads")
    if config.get("multi_query") and not config.get("new_decoder_architecture"):
        if "new_decoder_architecture" not in config and given not in (None, 1, q_heads):
            raise UsageError(f"multi_query and num_key_value_heads={given} disagree")
        return 1
    if config.get("multi_query_attention"):
        return _integer("multi_query_group_num", config.get("multi_query_group_num"))
    return q_heads if given is None else _integer("num_key_value_heads", given)


def _head_dim(config: Config, q_heads: int) -> int:
    if config.get("head_dim") is not None:
        return _integer("head_dim", config["head_dim"])
    hidden = _integer("hidden_size", config.get("hidden_size"))
    if hidden < q_heads:
        raise UsageError(f"hidden_size={hidden} is less than num_attention_heads={q_heads}")
    return hidden // q_heads


def _scale(config: Config, facts: Config, head_dim: int) -> float:
    """The factor on the logits: as the file says it, as its type has it, or by the head size."""
    for key in ("attention_multiplier", "softmax_scale"):
        if (scale := _number(key, config.get(key))) is not None:
            return scale
    if (base := _number("query_pre_attn_scalar", config.get("query_pre_attn_scalar"))) is not None:
        return float(base**-0.5)
    if config.get("scale_attn_weights") is False:
        return 1.0
    return float(facts.get("sm_scale", head_dim**-0.5))


def _has_sinks(config: Config, facts: Config, name: str) -> bool:
    said = config.get(
        "add_swa_attention_sink_bias" if name == WINDOW else "add_full_attention_sink_bias"
    )
    if said is not None:
        return bool(said)
    return facts.get("sinks") == "all" or (facts.get("sinks") == "window" and name == WINDOW)


def _num_layers(config: Config) -> int:
    given = config.get("num_hidden_layers")
    for key in ("layer_types", "hybrid_override_pattern"):
        if given is None and config.get(key):
            return len(config[key])
    return _integer("num_hidden_layers", given)


def _window(config: Config) -> int | None:
    """The window of the layers that have one; 0 and a switch that is off say that none has."""
    window = config.get("sliding_window")
    if not window or config.get("use_sliding_window") is False:
        return None
    return _integer("sliding_window", window)


def _integer(name: str, value: object) -> int:
    if value is None:
        raise UsageError(f"{name} is missing")
    if isinstance(value, bool) or not isinstance(value, int):
        raise UsageError(f"{name}={value!r} must be an integer")
    if value < 1:
        raise UsageError(f"{name}={value} must be at least 1")
    return value


def _number(name: str, value: object) -> float | None:
    """A factor above zero, or None."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise UsageError(f"{name}={value!r} must be a number")
    if not 0 < value < math.inf:
        raise UsageError(f"{name}={value} must be above 0")
    return float(value)
