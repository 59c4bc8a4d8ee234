"""Keys of a `config.json` → the matrices of the model beside its KV cache.

Source of what a layer of each type has: modeling_*.py of transformers 5.24.0. What is not known to
the point is refused: a share of a step made of guessed weights would say nothing.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from rpa_tune.errors import UsageError
from rpa_tune.models.model import LayerKind
from rpa_tune.models.weights import Weights

Config = Mapping[str, Any]

# Types whose layers are: projections of q, k, v and of the output; a gated MLP (three matrices)
# or experts of such; nothing else that has a matrix, but for what the functions below read.
_TYPES = frozenset({
    "deepseek_v3", "gemma2", "gemma3_text", "gemma4_text", "glm4_moe", "glm4_moe_lite", "gpt_oss",
    "granite", "granitemoehybrid", "kimi_k2", "llama", "llama4_text", "minimax_m2", "ministral3",
    "mistral", "mixtral", "phi3", "qwen2", "qwen3", "qwen3_5_moe_text", "qwen3_5_text", "qwen3_moe",
    "qwen3_next", "qwen3_vl_moe_text", "qwen3_vl_text",
})  # fmt: skip
# Types whose queries come with a gate of their size. Source: q_proj of these types.
_GATED_QUERIES = frozenset({"qwen3_next", "qwen3_5_text", "qwen3_5_moe_text"})
# Types whose head is the table of embeddings unless the file says otherwise.
# Source: tie_word_embeddings of the configuration classes of transformers 5.24.0.
_TIED = frozenset({"gemma2", "gemma3_text", "gemma4_text"})


def read_weights(
    config: Config, kinds: Sequence[LayerKind], other_layers: Mapping[str, int]
) -> Weights:
    """The weights of a model.

    Args:
      config: A file's keys after `flatten`, the defaults of its model type among them.
      kinds: Its attention layers.
      other_layers: Its layers without attention: what they are -> how many.

    Raises:
      UsageError: A type or layer whose matrices are not known here, or a missing key.
    """
    model_type = config.get("model_type")
    if any(kind.num_layers is None for kind in kinds):
        raise UsageError("num_hidden_layers is missing")
    if model_type == "nemotron_h":
        return _nemotron_h(config, kinds, other_layers)
    if model_type not in _TYPES:
        raise UsageError(f"the matrices of model type {model_type!r} are not known here")
    if unknown := set(other_layers) - {"linear_attention", "mamba"}:
        raise UsageError(f"the matrices of {', '.join(sorted(unknown))} layers are not known here")
    hidden, vocab = _size(config, "hidden_size"), _size(config, "vocab_size")
    always = sum(_attention(config, kind, hidden) for kind in kinds)
    if linear := other_layers.get("linear_attention"):
        always += linear * _linear_attention(config, hidden)
    if mambas := other_layers.get("mamba"):
        always += mambas * _mamba2(config, hidden, ("mamba_n_heads", "mamba_d_head"),
                                   ("mamba_n_groups", "mamba_d_state"))  # fmt: skip
    num_layers = sum(kind.num_layers or 0 for kind in kinds) + sum(other_layers.values())
    dense, expert, experts, chosen = _mlp(config, hidden, num_layers)
    embedding, beside = _per_layer_inputs(config, hidden, num_layers)
    tied = config.get("tie_word_embeddings")
    return Weights(
        embedding_params=vocab * hidden + embedding,
        always_params=always + dense + beside + _wider(config, kinds, hidden),
        head_params=vocab * hidden,
        head_is_embedding=model_type in _TIED if tied is None else bool(tied),
        expert_params=expert,
        num_experts=experts,
        experts_per_token=chosen,
    )


def _attention(config: Config, kind: LayerKind, hidden: int) -> int:
    """Projections of all layers of a kind: q (with its gate), k and v, output."""
    if kind.is_latent:
        return (kind.num_layers or 0) * _latent_attention(config, kind.num_q_heads, hidden)
    queries = kind.num_q_heads * kind.head_dim
    gated = config.get("model_type") in _GATED_QUERIES and config.get("attn_output_gate", True)
    # Gemma 4: the values of layers without a window are their keys, if the model says so.
    alike = config.get("attention_k_eq_v") and kind.sliding_window_tokens is None
    of_cache = 0 if kind.reads_other_cache else 1 if alike else 2
    columns = queries * (3 if gated else 2) + of_cache * kind.num_kv_heads * kind.head_dim
    return (kind.num_layers or 0) * hidden * columns


def _latent_attention(config: Config, heads: int, hidden: int) -> int:
    """A layer with latents: q by its own rank if it has one, latents and back, output."""
    nope, rope = _size(config, "qk_nope_head_dim"), _size(config, "qk_rope_head_dim")
    rank, values = _size(config, "kv_lora_rank"), _size(config, "v_head_dim")
    columns = heads * (nope + rope)
    queries = hidden * columns
    if config.get("q_lora_rank") is not None:
        queries = _size(config, "q_lora_rank") * (hidden + columns)
    latents = hidden * (rank + rope) + rank * heads * (nope + values)
    return queries + latents + heads * values * hidden


def _linear_attention(config: Config, hidden: int) -> int:
    """A layer of Gated DeltaNet: q, k, v, z, the two rates a head, output."""
    keys = _size(config, "linear_num_key_heads") * _size(config, "linear_key_head_dim")
    heads = _size(config, "linear_num_value_heads")
    values = heads * _size(config, "linear_value_head_dim")
    return hidden * (2 * keys + 2 * values + 2 * heads + values)


def _mamba2(config: Config, hidden: int, heads: tuple[str, str], state: tuple[str, str]) -> int:
    """A layer of Mamba-2: x, gate, B, C and a rate a head, output. Types name the sizes apart."""
    num_heads, head_dim, groups, size = (_size(config, name) for name in (*heads, *state))
    inner = num_heads * head_dim
    return hidden * (2 * inner + 2 * groups * size + num_heads + inner)


def _nemotron_h(
    config: Config, kinds: Sequence[LayerKind], other_layers: Mapping[str, int]
) -> Weights:
    """Nemotron-H: a layer is attention, Mamba-2, an MLP of two matrices, or experts of such."""
    hidden, vocab = _size(config, "hidden_size"), _size(config, "vocab_size")
    always = sum(_attention(config, kind, hidden) for kind in kinds)
    if mambas := other_layers.get("mamba"):
        always += mambas * _mamba2(config, hidden, ("mamba_num_heads", "mamba_head_dim"),
                                   ("n_groups", "ssm_state_size"))  # fmt: skip
    if mlps := other_layers.get("mlp"):
        always += mlps * 2 * hidden * _size(config, "intermediate_size")
    expert = experts = chosen = 0
    if layers := other_layers.get("moe"):
        experts, chosen = _size(config, "n_routed_experts"), _size(config, "num_experts_per_tok")
        narrow = config.get("moe_latent_size") or hidden
        between = 2 * hidden * narrow if narrow != hidden else 0
        shared = 2 * hidden * _size(config, "moe_shared_expert_intermediate_size")
        always += layers * (hidden * experts + shared + between)
        expert = layers * 2 * narrow * _size(config, "moe_intermediate_size")
    return Weights(
        embedding_params=vocab * hidden,
        always_params=always,
        head_params=vocab * hidden,
        head_is_embedding=bool(config.get("tie_word_embeddings")),
        expert_params=expert,
        num_experts=experts,
        experts_per_token=chosen,
    )


def _mlp(config: Config, hidden: int, num_layers: int) -> tuple[int, int, int, int]:
    """Matrices of all MLPs, routers and shared experts; of one expert a layer; experts; chosen."""
    experts = _first(config, "num_experts", "num_local_experts", "n_routed_experts") or 0
    if not experts:
        wide = config.get("shared_intermediate_size") or _size(config, "intermediate_size")
        return num_layers * 3 * hidden * wide, 0, 0, 0
    chosen = _first(config, "num_experts_per_tok", "experts_per_token", "top_k_experts")
    if not chosen:
        raise UsageError("num_experts_per_tok is missing")
    width = config.get("moe_intermediate_size") or _size(config, "intermediate_size")
    step = config.get("interleave_moe_layer_step") or config.get("decoder_sparse_step") or 1
    with_experts = num_layers // step - (config.get("first_k_dense_replace") or 0)
    with_experts -= len(config.get("mlp_only_layers") or ())
    dense = num_layers - with_experts
    a_dense = config.get("intermediate_size_mlp") or config.get("intermediate_size") or 0
    if config.get("model_type") == "gemma4_text":
        dense = num_layers  # experts stand beside the MLP
    if dense and not a_dense:
        raise UsageError("intermediate_size is missing")
    matrices = dense * 3 * hidden * a_dense
    matrices += with_experts * hidden * (experts + 3 * _shared_width(config, width))
    return matrices, with_experts * 3 * hidden * width, experts, chosen


def _shared_width(config: Config, width: int) -> int:
    """Width of what a layer's tokens all go through beside their experts."""
    if config.get("model_type") == "llama4_text":
        return width
    said = _first(config, "shared_expert_intermediate_size", "shared_intermediate_size")
    return (config.get("n_shared_experts") or 0) * width if said is None else said


def _per_layer_inputs(config: Config, hidden: int, num_layers: int) -> tuple[int, int]:
    """Gemma 4 E: the table of per-layer embeddings, and the matrices that mix them in."""
    width = config.get("hidden_size_per_layer_input") or 0
    if not width:
        return 0, 0
    rows = config.get("vocab_size_per_layer_input") or _size(config, "vocab_size")
    return rows * num_layers * width, 3 * num_layers * hidden * width


def _wider(config: Config, kinds: Sequence[LayerKind], hidden: int) -> int:
    """Gemma 4 E2B: layers that read another's cache have an MLP of twice the width."""
    if not config.get("use_double_wide_mlp"):
        return 0
    layers = sum(kind.num_layers or 0 for kind in kinds if kind.reads_other_cache)
    return layers * 3 * hidden * _size(config, "intermediate_size")


def _first(config: Config, *names: str) -> int | None:
    return next((config[name] for name in names if config.get(name) is not None), None)


def _size(config: Config, name: str) -> int:
    value = config.get(name)
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise UsageError(f"{name} is missing" if value is None else f"{name}={value!r}")
    return value
