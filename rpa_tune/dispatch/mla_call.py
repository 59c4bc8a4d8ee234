"""What the public MLA call says, and what it refuses.

The conditions are those of `static_validate_inputs` of tpu-inference 0.32.0, mla/v2. Narrower: the
queries of a call are bfloat16, float32 or float8; a row of the cache is one 32-bit word of tokens
or whole vector registers (`Problem.kv_packing`); `transpose_kv_cache` and what only debugs the
public kernel are refused. Block sizes are checked as there, and not used: a plan says what is
launched.
"""

from typing import Any, NamedTuple, TypedDict, Unpack

import jax.numpy as jnp

from rpa_kernels import layout
from rpa_kernels.checks import check_mask_value, check_whole
from rpa_kernels.problem import Problem
from rpa_tune.dispatch.call import check_metadata, check_names

Blocks = tuple[int, int, int] | int


class LatentFeatures(TypedDict, total=False):
    """Keyword arguments of the public MLA function; all static.

    Attributes:
      sm_scale: Factor on the scores.
      sliding_window: Tokens a query may look back, itself included, or None.
      soft_cap: Cap of the logits, or None.
      mask_value: Logit of a masked key there; without effect here.
      q_scale: Factor that turns the queries given into real ones, or None for 1.
      k_scale: The same for latents and rope rows, in scores.
      v_scale: The same for latents as values.
      chunk_prefill_size: Static query length of the sequences in the prefill slot, or None, with
        which the public function leaves them out; these kernels serve them either way.
      num_kv_pages_per_block: Block sizes of the public kernel. Checked as there, and not used; so
        are `num_queries_per_block`, `decode_batch_size`, `mixed_q_split` and `vmem_limit_bytes`.
      num_queries_per_block: See `num_kv_pages_per_block`.
      vmem_limit_bytes: See `num_kv_pages_per_block`.
      decode_batch_size: See `num_kv_pages_per_block`.
      mixed_q_split: See `num_kv_pages_per_block`.
      s_dtype: Dtype that the public kernel rounds scores to. Here they are float32.
      transpose_kv_cache: Refused when True.
      two_step_flash_attention: How the public kernel orders its products; either is accepted.
      p_same_dtype_as_v: Whether the public kernel rounds probabilities to the dtype of the cache.
        Here they are never rounded to float8.
      debug_mode: Refused when True.
      decode_query_size: Most new tokens of a sequence in the decode slot, 1 to 8. Of this function
        alone: the public one has one each, and takes drafts for mixed.
    """

    sm_scale: float
    sliding_window: int | None
    soft_cap: float | None
    mask_value: float | None
    q_scale: float | None
    k_scale: float | None
    v_scale: float | None
    chunk_prefill_size: int | None
    num_kv_pages_per_block: Blocks | None
    num_queries_per_block: Blocks | None
    vmem_limit_bytes: int | None
    decode_batch_size: int
    mixed_q_split: int
    s_dtype: Any
    transpose_kv_cache: bool
    two_step_flash_attention: bool
    p_same_dtype_as_v: bool
    debug_mode: bool
    decode_query_size: int


class LatentArrays(NamedTuple):
    """Arrays of the public MLA call, in its order; see `attention.mla_ragged_paged_attention`."""

    ql_nope: Any
    q_pe: Any
    new_kv_c: Any
    new_k_pe: Any
    cache_kv: Any
    kv_lens: Any
    page_indices: Any
    cu_q_lens: Any
    distribution: Any

    def flat(self) -> tuple[Any, ...]:
        """All of them, as a program takes them."""
        return tuple(self)


def latent_problem_of(arrays: LatentArrays, **features: Unpack[LatentFeatures]) -> Problem:
    """The problem that a call's arrays and features describe.

    Args:
      arrays: Only shapes and dtypes are read.
      features: See `LatentFeatures`.

    Raises:
      TypeError: A keyword that is none of `LatentFeatures`.
      ValueError: The shapes, dtypes or features do not belong together; the message names them.
    """
    check_names(features, LatentFeatures)
    _check_features(**features)
    _check_new(arrays)
    _check_cache(arrays)
    check_metadata(arrays)
    heads, tokens, latent = arrays.ql_nope.shape
    num_pages, rows, packing, _ = arrays.cache_kv.shape
    num_seqs = arrays.kv_lens.shape[0]
    return Problem(
        num_q_heads=heads,
        num_kv_heads=1,
        head_dim=latent,
        rope_dim=arrays.q_pe.shape[2],
        kv_packing=packing,
        page_size=rows * packing,
        max_num_tokens=tokens,
        max_num_seqs=num_seqs,
        pages_per_seq=arrays.page_indices.shape[0] // num_seqs,
        num_pages=num_pages,
        q_dtype=str(arrays.ql_nope.dtype),
        kv_dtype=str(arrays.cache_kv.dtype),
        sm_scale=features.get("sm_scale", 1.0),
        sliding_window=features.get("sliding_window"),
        soft_cap=features.get("soft_cap"),
        q_scale=features.get("q_scale"),
        k_scale=features.get("k_scale"),
        v_scale=features.get("v_scale"),
        decode_query_size=features.get("decode_query_size", 1),
    ).without_idle_window()


def _check_new(arrays: LatentArrays) -> None:
    """Queries and new rows: dimensions that agree, and dtypes."""
    dims = {"ql_nope": 3, "q_pe": 3, "new_kv_c": 2, "new_k_pe": 2}
    for name, ndim in dims.items():
        shape = getattr(arrays, name).shape
        if len(shape) != ndim:
            raise ValueError(f"{name} must have {ndim} dimensions, got {shape}")
    nope, rope, latents, keys = arrays[:4]
    for what, pairs in (
        ("heads", (("ql_nope", nope.shape[0]), ("q_pe", rope.shape[1]))),
        ("tokens", (("ql_nope", nope.shape[1]), ("q_pe", rope.shape[0]),
                    ("new_kv_c", latents.shape[0]), ("new_k_pe", keys.shape[0]))),
        ("elements of a latent", (("ql_nope", nope.shape[2]), ("new_kv_c", latents.shape[1]))),
        ("elements of a rope row", (("q_pe", rope.shape[2]), ("new_k_pe", keys.shape[1]))),
    ):  # fmt: skip
        if len({size for _, size in pairs}) > 1:
            said = ", ".join(f"{name} has {size}" for name, size in pairs)
            raise ValueError(f"{what} must agree: {said}")
    if nope.dtype != rope.dtype:
        raise ValueError(f"ql_nope {nope.dtype} and q_pe {rope.dtype} must have one dtype")


def _check_cache(arrays: LatentArrays) -> None:
    cache, latents, keys = arrays.cache_kv, arrays.new_kv_c, arrays.new_k_pe
    if not cache.dtype == latents.dtype == keys.dtype:
        raise ValueError(
            f"cache_kv {cache.dtype}, new_kv_c {latents.dtype} and new_k_pe {keys.dtype} must have "
            "one dtype; quantise new rows before the call"
        )
    if not jnp.issubdtype(cache.dtype, jnp.floating):
        raise ValueError(f"cache_kv is {cache.dtype}, must be a floating-point type")
    lanes = sum(layout.align(x.shape[1], layout.LANES) for x in (latents, keys))
    if len(cache.shape) != 4 or cache.shape[3] != lanes:
        raise ValueError(
            f"cache_kv is {cache.shape}, must be (pages, rows of a page, tokens of a row, {lanes}) "
            f"for {latents.shape[1]} + {keys.shape[1]} elements, each padded to {layout.LANES}"
        )


def _check_features(**features: Unpack[LatentFeatures]) -> None:
    for name in ("chunk_prefill_size", "vmem_limit_bytes", "decode_batch_size", "mixed_q_split"):
        value: Any = features.get(name)
        if value is not None:
            check_whole(name, value)
    if (mask_value := features.get("mask_value")) is not None:
        check_mask_value(mask_value)
    split = features.get("mixed_q_split", 1)
    for name in ("num_kv_pages_per_block", "num_queries_per_block"):
        given: Any = features.get(name)
        if given is None:
            continue
        sizes = given if isinstance(given, tuple | list) else (given,) * 3
        if len(sizes) != 3:
            raise ValueError(f"{name}={given!r} must be one size, or those of three cases")
        for size in sizes:
            check_whole(name, size)
        if name == "num_queries_per_block" and sizes[2] % split:
            raise ValueError(f"{name}={given!r} must be a multiple of mixed_q_split={split}")
    if features.get("transpose_kv_cache", False):
        raise ValueError(
            "transpose_kv_cache=True: these kernels read rows of tokens; "
            "leave MLA_TRANSPOSE_KV_CACHE unset"
        )
    if features.get("debug_mode", False):
        raise ValueError("debug_mode=True is for debugging the public kernel")
