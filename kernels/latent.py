"""Multi-head latent attention in its absorbed form: what is cached, and what may be asked. No jax.

The cache holds, for each token, one latent row c of `head_dim` elements (kv_lora_rank of a model's
configuration) and one rope row of `rope_dim`, side by side, each padded to whole lanes. All heads
share them: a score is q_nope . c + q_rope . k_rope, and the values are the latents. The matrices
that lead from a head's keys and values to latents are the caller's, before and after the call.

    row of the cache    [row_tokens, latent lanes | rope lanes]

`row_tokens` tokens make up the last two dimensions: those that share a 32-bit word, or as many as
fill vector registers (`Problem.kv_packing`). Copies move whole rows.
"""

from typing import Any

from rpa_kernels import layout
from rpa_kernels.checks import check_whole

# Features of other attention that no model with latents has, and their values without.
_ABSENT = {
    "num_kv_heads": 1,
    "causal": True,
    "update_kv_cache": True,
    "has_sinks": False,
    "attention_chunk_size": None,
    "kv_layout": layout.HEAD_ALONG_SUBLANE,
    "return_lse": False,
    "has_tree_mask": False,
    "out_dtype": None,
}


def in_tiles(problem: Any) -> bool:
    """Whether a new token is written with its neighbours: along lanes, and among latents."""
    return bool(problem.is_latent or problem.is_seq_along_lane)


def tile_tokens(problem: Any) -> int:
    """Tokens that are written together: a lane tile, or a row of latents."""
    return int(problem.row_tokens) if problem.is_latent else layout.LANES


def latent_cache_shape(
    num_pages: int, page_size: int, row_tokens: int, lanes: int
) -> tuple[int, int, int, int]:
    """Cache shape of the public MLA function: [pages, rows of a page, tokens of a row, lanes].

    Source:
      `get_kv_cache_shape` of tpu-inference 0.32.0, mla/v2, without `transpose_kv_cache`.
    """
    return (num_pages, page_size // row_tokens, row_tokens, lanes)


def check_latent(problem: Any) -> None:
    """Refuses what latent attention has not, and the fields of its own without it.

    Args:
      problem: A `Problem` in the making.

    Raises:
      ValueError: The first thing that is wrong.
    """
    if problem.rope_dim is None:
        if problem.kv_packing is not None:
            raise ValueError(
                f"kv_packing={problem.kv_packing} is a layout of latents; give rope_dim, too"
            )
        return
    check_whole("rope_dim", problem.rope_dim)
    for name, only in _ABSENT.items():
        if (value := getattr(problem, name)) != only:
            raise ValueError(f"{name}={value!r} must be {only!r} with rope_dim={problem.rope_dim}")
    if problem.kv_dtype == "int8":
        raise ValueError("kv_dtype=int8 must be a floating-point type with rope_dim")
    _check_packing(problem)


def _check_packing(problem: Any) -> None:
    tokens, pack = problem.kv_packing, layout.packing(problem.kv_dtype)
    if tokens is None:
        return
    check_whole("kv_packing", tokens)
    tile = pack * layout.SUBLANES
    if tokens != pack and (tokens % tile or tokens & (tokens - 1)):
        raise ValueError(
            f"kv_packing={tokens} must be {pack}, or a power of two from {tile} on, "
            f"with a KV cache of {problem.kv_dtype}"
        )
    if problem.page_size % tokens:
        raise ValueError(f"page_size={problem.page_size} must be a multiple of kv_packing={tokens}")
