"""Multi-head latent attention in a `config.json`: what the cache holds, and the factor on logits.

A kernel sees the absorbed form: one latent row (`kv_lora_rank`) and one rope row
(`qk_rope_head_dim`) a token, shared by all query heads. The heads' own sizes of keys and values
(`qk_nope_head_dim`, `v_head_dim`) belong to the matrices around it.
"""

import math
from collections.abc import Mapping
from typing import Any

from rpa_tune.errors import UsageError
from rpa_tune.models.model import LayerKind

Config = Mapping[str, Any]


def is_latent(config: Config) -> bool:
    """Whether the layers of a file cache latents."""
    return bool(config.get("kv_lora_rank"))


def latent_layer(config: Config, q_heads: int, refusal: str) -> LayerKind:
    """One layer.

    Args:
      config: A file's keys.
      q_heads: Query heads.
      refusal: What it does that no kernel family can; sizes may then be missing.

    Raises:
      UsageError: A size is missing.
    """
    return LayerKind(
        num_layers=1,
        num_q_heads=q_heads,
        num_kv_heads=1,
        head_dim=_size(config, "kv_lora_rank"),
        rope_dim=0 if refusal else _size(config, "qk_rope_head_dim"),
        sm_scale=1.0 if refusal else _scale(config),
        refusal=refusal,
    )


def _scale(config: Config) -> float:
    """The factor on the logits: by the size of a head's keys, and by how far YaRN stretches it.

    Source: `yarn_apply_mscale` in modeling_deepseek_v3.py of transformers 5.24.0, which the other
    types with latents share.

    Raises:
      UsageError: A size is missing, or YaRN's factor is no number.
    """
    dim = _size(config, "qk_nope_head_dim") + _size(config, "qk_rope_head_dim")
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    weight = rope.get("mscale_all_dim")
    if not weight or rope.get("rope_type", rope.get("type", "default")) == "default":
        return float(dim**-0.5)
    factor = rope.get("factor")
    if isinstance(factor, bool) or not isinstance(factor, int | float) or factor <= 0:
        raise UsageError(f"factor={factor!r} of the rope scaling must be a number above 0")
    stretch = 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0
    return float(dim**-0.5 * stretch**2)


def _size(config: Config, name: str) -> int:
    """A size that latent attention needs.

    Raises:
      UsageError: It is missing, or no whole number from 1 on.
    """
    value = config.get(name)
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        said = " is missing" if value is None else f"={value!r} must be an integer from 1 on"
        raise UsageError(name + said, hint="multi-head latent attention (kv_lora_rank) needs it")
    return value
