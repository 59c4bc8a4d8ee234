"""The names that keys of a `config.json` go by, and which keys change attention.

A key that may change attention and that this code does not read must not be passed over: the
model would look plainer than it is. `unread_attention_keys` finds such keys by the words in their
names.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from rpa_tune.errors import UsageError

# The name that the code here uses -> other names of the same number.
# Source: attribute_map and fields of configuration_*.py of transformers 5.24.0; chatglm, step3 and
# nemotron-nas (code in the models' own repositories); OpenELM (num_query_heads, num_kv_heads).
ALIASES: Mapping[str, tuple[str, ...]] = {
    "num_hidden_layers": ("n_layer", "n_layers", "num_layers", "layers"),
    "hidden_size": ("n_embd", "d_model", "embed_dim", "model_dim"),
    "num_attention_heads": ("n_head", "n_heads", "num_heads", "attention_heads", "num_query_heads"),
    "num_key_value_heads": (
        "num_kv_heads", "n_kv_heads", "n_head_kv", "num_query_groups", "num_attention_groups",
        "kv_n_heads", "num_key_value_heads_per_layer",
    ),
    "head_dim": ("attention_head_dim", "kv_channels", "d_head"),
    "sliding_window": ("sliding_window_size", "attention_window_size", "window_size"),
    "layer_types": ("layers_block_type",),
    "num_attention_heads_per_layer": ("num_query_heads_per_layer",),
}  # fmt: skip

# Other keys that `layers.py` reads.
READ = frozenset({
    "model_type", "alibi", "attention_chunk_size", "attention_k_eq_v", "attention_multiplier",
    "attention_other_setting", "attention_types", "attn_layer_indices", "attn_layer_offset",
    "attn_layer_period", "attn_logit_softcapping", "add_full_attention_sink_bias",
    "add_swa_attention_sink_bias", "block_configs", "block_types", "cross_attention_layers",
    "full_attention_interval", "full_attn_idxs", "global_attn_every_n_layers", "global_head_dim",
    "hybrid_layer_pattern", "hybrid_override_pattern", "index_topk", "is_causal",
    "is_encoder_decoder", "kv_lora_rank", "local_layer_ids", "max_window_layers", "multi_query",
    "multi_query_attention", "multi_query_group_num", "new_decoder_architecture", "no_rope_layers",
    "no_rope_layer_interval", "num_global_key_value_heads", "num_kv_shared_layers",
    "num_sliding_attention_heads", "per_layer_config", "q_lora_rank", "qk_nope_head_dim",
    "qk_rope_head_dim", "query_pre_attn_scalar", "rope_parameters", "rope_scaling",
    "scale_attn_by_inverse_layer_idx", "scale_attn_weights", "sliding_window_pattern",
    "_sliding_window_pattern", "softmax_scale", "swa_head_dim", "swa_num_attention_heads",
    "swa_num_key_value_heads", "swa_v_head_dim", "use_bidirectional_attention",
    "use_sliding_window", "v_head_dim",
})  # fmt: skip

# Keys with a word of attention in their name that change nothing a kernel sees: they act on
# projections before it or on its output, on precision, or on no attention at all.
_NO_EFFECT = frozenset({
    "attention_layers", "attn_config", "attn_impl", "attn_output_gate", "attn_type",
    "attn_uses_sequence_id", "chunk_size_feed_forward", "clip_qkv", "cross_attention_hidden_size",
    "final_logit_softcapping", "first_k_dense_replace", "keys_to_ignore_at_inference",
    "num_key_value_groups", "num_ln_in_parallel_attn", "parallel_attn", "qk_head_dim",
    "use_attention_gate", "use_flash_attention", "use_flash_attn", "use_logn_attn",
})  # fmt: skip
# Words of such keys, and words of attention.
_HARMLESS = re.compile(
    r"dropout|pdrop|bias|norm|rope|rotary|expert|moe|router|routed|mlp|ffn|token|image|vision|"
    r"visual|video|audio|mamba|ssm|conv|lm_head|embed|implementation|fp32|upcast|mtp|"
    r"nextn|quant|label|output_attentions|loss|linear_(num|key|value|head)|decoder_sparse_step|"
    r"task|resampler|_layernorm|^qk_ln$|layer_idx$|hidden_act|intermediate_size"
)
_NEVER_HARMLESS = re.compile(r"sink|relative|alibi|position_bias|rel_pos|rel_extent")
_WORDS = frozenset({
    "alibi", "attention", "attentions", "attn", "bidirectional", "cap", "causal", "chunk",
    "chunked", "cla", "dsa", "global", "gqa", "head", "heads", "index", "indexer", "k", "key",
    "keys", "kv", "latent", "local", "mla", "moba", "mqa", "nsa", "q", "qk", "qkv", "queries",
    "query", "rel", "relative", "sink", "sinks", "sliding", "softcap", "softcapping", "softmax",
    "sparse", "swa", "v", "window", "windowed", "windows",
})  # fmt: skip


def flatten(config: Mapping[str, Any]) -> dict[str, Any]:
    """The file's keys under the names of this module, those of a nested `attn_config` among them.

    Raises:
      UsageError: Two names of one number disagree.
    """
    nested = config.get("attn_config")
    flat = {**(nested if isinstance(nested, Mapping) else {}), **config}
    for name, others in ALIASES.items():
        for other in others:
            if other not in flat:
                continue
            value = flat.pop(other)
            if flat.get(name) is None or value is None:
                flat.setdefault(name, value)
                flat[name] = value if flat[name] is None else flat[name]
            elif flat[name] != value:
                raise UsageError(f"{name}={flat[name]} and {other}={value} disagree")
    return flat


def changes_attention(name: str, value: object) -> bool:
    """Whether a key may change what attention computes, by the words of its name.

    A value of nothing (null, false, an empty list) says that the feature is off.
    """
    if value is None or value is False or value in ([], {}, ""):
        return False
    if name in _NO_EFFECT or name.startswith("_attn_implementation"):
        return False
    if _NEVER_HARMLESS.search(name):
        return True
    return bool(_WORDS & set(name.strip("_").lower().split("_"))) and not _HARMLESS.search(name)


def unread_attention_keys(
    config: Mapping[str, Any], no_effect: Iterable[str] = ()
) -> dict[str, Any]:
    """Keys that may change attention and that `layers.py` does not read.

    Args:
      config: A file's keys after `flatten`.
      no_effect: Keys that change nothing in models of this type.
    """
    read = READ | set(ALIASES) | set(no_effect)
    return {
        name: value
        for name, value in config.items()
        if name not in read and changes_attention(name, value)
    }
