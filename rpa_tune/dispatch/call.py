"""What the public attention call says, and what it refuses.

The conditions are those of `static_validate_inputs` and `dynamic_validate_inputs` of
tpu-inference 0.32.0 (v3, and v3 hd64 for head_dim 64); tests/interpret/test_public_call.py holds
them against each other case by case. Wider than there: int8 caches, and for head_dim 64 every
feature of the others. Narrower: queries other than bfloat16 and float32, caches in other
floating-point types, and what only debugs the public kernel. `attention_chunk_size` and
`return_lse` are of this call alone, `kv_layout` is one of the public batched function.
"""

from collections.abc import Collection
from typing import Any, NamedTuple, TypedDict, Unpack

import jax.numpy as jnp
import numpy as np

from rpa_kernels import layout
from rpa_kernels.checks import check_mask_value, check_whole
from rpa_kernels.problem import Problem

BlockSizes = tuple[int, int, int, int]


class Features(TypedDict, total=False):
    """Keyword arguments of the public function, and what goes beyond it; all static.

    Attributes:
      use_causal_mask: Whether a query sees only keys at or before its own position.
      update_kv_cache: Whether new keys and values are written to the cache.
      skip_kv_mask: A promise of the caller that lets the public kernel skip work, only without a
        causal mask; these kernels need no such promise and compute the same either way.
      sm_scale: Factor on q @ k.T.
      sliding_window: Tokens a query may look back, itself included, or None.
      soft_cap: Cap of the logits, or None.
      out_dtype: Dtype of the output and the accumulators, or None for that of the queries. The
        accumulators are float32 whatever it says, and one as wide as the queries' changes
        nothing, as in the public kernel (which runs with no other).
      mask_value: Logit of a masked key there. Here a masked key has no weight at all, which is
        the same for any value far below all scores; others make the public kernel's answer
        depend on its block sizes.
      q_scale: Queries are divided by it, and rounded to the cache's dtype; or None.
      k_scale: Scale of the stored keys, or None.
      v_scale: Scale of the stored values, or None.
      attention_chunk_size: A query sees keys of its own chunk of so many positions only, or None.
        Of this function alone; with a causal mask, and no window.
      kv_layout: Layout of the cache, `head_along_sublane` (the default) or `seq_along_lane`, as in
        the public batched function, whose `KVLayout` may be given.
      return_lse: Whether to return the log-sum-exp of each query's logits as well: natural
        logarithm, after scale and soft cap, a sink among them. Of this function alone. Without
        causal mask and cache update it makes the call one part of several (`merge_attention`),
        whose `kv_lens` count cached tokens, from 0 on.
      decode_query_size: Most new tokens of a sequence in the decode slot, 1 to 8, as newer public
        functions have it: with 1 + drafts, speculative decoding is decode. Each has from 1 to that
        many, whatever the others have.
      chunk_prefill_size: Static query length of the sequences in the prefill slot, or None, with
        which the public function leaves them out; these kernels serve them either way.
      d_block_sizes: Block sizes of the public kernel. Checked as there, and not used: a plan
        says what is launched. So are `p_block_sizes`, `m_block_sizes` and `vmem_limit_bytes`.
      p_block_sizes: See `d_block_sizes`.
      m_block_sizes: See `d_block_sizes`.
      vmem_limit_bytes: See `d_block_sizes`.
      debug_mode: Refused when True.
      disable_bounds_checks: Refused when False.
      disable_semaphore_checks: Refused when False.
    """

    use_causal_mask: bool
    update_kv_cache: bool
    skip_kv_mask: bool
    sm_scale: float
    sliding_window: int | None
    soft_cap: float | None
    out_dtype: Any
    mask_value: float | None
    q_scale: float | None
    k_scale: float | None
    v_scale: float | None
    attention_chunk_size: int | None
    kv_layout: str
    return_lse: bool
    decode_query_size: int
    chunk_prefill_size: int | None
    d_block_sizes: BlockSizes | None
    p_block_sizes: BlockSizes | None
    m_block_sizes: BlockSizes | None
    vmem_limit_bytes: int | None
    debug_mode: bool
    disable_bounds_checks: bool
    disable_semaphore_checks: bool


class Arrays(NamedTuple):
    """Arrays of the public call, in its order; see `runtime.ragged_paged_attention`."""

    queries: Any
    keys: Any
    values: Any
    kv_cache: Any
    kv_lens: Any
    page_indices: Any
    cu_q_lens: Any
    distribution: Any
    attention_sink: Any = None
    tree_mask: Any = None

    def flat(self) -> tuple[Any, ...]:
        """Those that there are, as a program takes them."""
        return (*self[:8], *(array for array in self[8:] if array is not None))


def problem_of(arrays: Arrays, **features: Unpack[Features]) -> Problem:
    """The problem that a call's arrays and features describe.

    Args:
      arrays: Only shapes and dtypes are read.
      features: See `Features`.

    Raises:
      TypeError: A keyword that is none of `Features`.
      ValueError: The shapes, dtypes or features do not belong together; the message names them.
    """
    check_names(features, Features)
    _check_new(arrays.queries, arrays.keys, arrays.values)
    kv_layout = _kv_layout(features.get("kv_layout", layout.HEAD_ALONG_SUBLANE))
    page_size = _page_size(arrays.kv_cache, kv_layout)
    _check_cache(arrays, page_size, kv_layout)
    _check_sink(arrays.attention_sink, arrays.queries)
    _check_tree_mask(arrays.tree_mask, arrays.queries)
    check_metadata(arrays)
    _check_features(page_size, **features)
    queries, kv_cache, num_seqs = arrays.queries, arrays.kv_cache, arrays.kv_lens.shape[0]
    return Problem(
        num_q_heads=queries.shape[1],
        num_kv_heads=arrays.keys.shape[1],
        head_dim=queries.shape[2],
        page_size=page_size,
        max_num_tokens=queries.shape[0],
        max_num_seqs=num_seqs,
        pages_per_seq=arrays.page_indices.shape[0] // num_seqs,
        num_pages=kv_cache.shape[0],
        q_dtype=str(queries.dtype),
        kv_dtype=str(kv_cache.dtype),
        out_dtype=_out_dtype(features.get("out_dtype"), queries.dtype),
        sm_scale=features.get("sm_scale", 1.0),
        sliding_window=features.get("sliding_window"),
        soft_cap=features.get("soft_cap"),
        causal=features.get("use_causal_mask", True),
        update_kv_cache=features.get("update_kv_cache", True),
        has_sinks=arrays.attention_sink is not None,
        q_scale=features.get("q_scale"),
        k_scale=features.get("k_scale"),
        v_scale=features.get("v_scale"),
        attention_chunk_size=features.get("attention_chunk_size"),
        kv_layout=kv_layout,
        return_lse=features.get("return_lse", False),
        decode_query_size=features.get("decode_query_size", 1),
        has_tree_mask=arrays.tree_mask is not None,
    ).without_idle_window()


def check_names(given: Collection[str], known: type) -> None:
    """Refuses keywords that a call does not have.

    Args:
      given: Their names.
      known: A `TypedDict` of those that it has.

    Raises:
      TypeError: Names those that it has not.
    """
    if unknown := set(given) - set(known.__annotations__):
        raise TypeError(f"unknown arguments: {', '.join(sorted(unknown))}")


def check_lengths(arrays: Any, problem: Problem) -> None:
    """Refuses lengths and pages that cannot be launched.

    More than the public check: decode sequences have one token each, or as many as the problem
    allows, and come first.

    Args:
      arrays: Of a call; lengths, pages and distribution are on the host.
      problem: That of the call.

    Raises:
      ValueError: The first thing that is wrong.
    """
    max_num_tokens, num_pages = problem.max_num_tokens, problem.num_pages
    page_size = problem.page_size
    pages = arrays.page_indices.reshape(arrays.kv_lens.shape[0], -1)
    d, p, n = (int(end) for end in arrays.distribution)
    if not 0 <= d <= p <= n <= len(pages):
        raise ValueError(f"distribution ({d}, {p}, {n}) must rise from 0 to at most {len(pages)}")
    starts, kv_lens = arrays.cu_q_lens[: n + 1], arrays.kv_lens[:n]
    if starts[-1] > max_num_tokens:
        raise ValueError(f"{starts[-1]} query tokens, but queries has {max_num_tokens} rows")
    q_lens, most = np.diff(starts), problem.decode_query_size
    if starts[0] != 0 or ((q_lens[:d] < 1) | (q_lens[:d] > most)).any():
        need = "one token each" if most == 1 else f"1 to {most} tokens each (decode_query_size)"
        raise ValueError(f"cu_q_lens {starts[: d + 1]}: {d} decode sequences need {need}")
    counts = -(-kv_lens // page_size)
    used = np.arange(pages.shape[1]) < counts[:, None]
    outside = ((pages[:n] < 0) | (pages[:n] >= num_pages)) & used
    fit = ("need 0 < q_len <= kv_len", (q_lens <= 0) | (q_lens > kv_lens))
    if problem.sees_cache_only:
        fit = ("need 0 < q_len and 0 <= kv_len", (q_lens <= 0) | (kv_lens < 0))
    for what, wrong in (
        fit,
        (f"kv_len exceeds {pages.shape[1]} pages of {page_size}", counts > pages.shape[1]),
        (f"a page is not one of {num_pages}", outside.any(axis=1)),
    ):
        if wrong.any():
            i = int(np.argmax(wrong))
            raise ValueError(f"sequence {i}: {what}, got q_len={q_lens[i]}, kv_len={kv_lens[i]}")


def _check_new(q: Any, k: Any, v: Any) -> None:
    if not q.ndim == k.ndim == v.ndim == 3:
        raise ValueError(
            f"queries, keys and values must be [tokens, heads, head_dim], "
            f"got {q.shape}, {k.shape} and {v.shape}"
        )
    if k.shape != v.shape:
        raise ValueError(f"keys {k.shape} and values {v.shape} must have one shape")
    if (q.shape[0], q.shape[2]) != (k.shape[0], k.shape[2]):
        raise ValueError(f"queries {q.shape} and keys {k.shape} must agree in tokens and head_dim")


def _kv_layout(asked: Any) -> str:
    """Its plain name: `KVLayout` of the public function is a string, too."""
    if asked not in layout.KV_LAYOUTS:
        raise ValueError(f"kv_layout={asked!r} is not one of {layout.KV_LAYOUTS}")
    return layout.KV_LAYOUTS[layout.KV_LAYOUTS.index(asked)]


def _page_size(cache: Any, kv_layout: str) -> int:
    """Tokens of a page, by the shape of the cache; 0 for one of too few dimensions."""
    axis = 4 if kv_layout == layout.SEQ_ALONG_LANE else 1
    return cache.shape[axis] if len(cache.shape) > axis else 0


def _check_cache(arrays: Arrays, page_size: int, kv_layout: str) -> None:
    cache, keys, values = arrays.kv_cache, arrays.keys, arrays.values
    if not cache.dtype == keys.dtype == values.dtype:
        raise ValueError(
            f"kv_cache {cache.dtype}, keys {keys.dtype} and values {values.dtype} "
            "must have one dtype; quantise new keys and values before the call"
        )
    dtype = str(cache.dtype)
    if dtype not in layout.KV_DTYPES:
        raise ValueError(f"kv_cache is {dtype}, not one of {layout.KV_DTYPES}")
    num_pages = (*cache.shape, 0)[0]
    sizes: dict[str, Any] = {
        "num_kv_heads": keys.shape[1],
        "head_dim": keys.shape[2],
        "kv_dtype": dtype,
    }
    if kv_layout == layout.SEQ_ALONG_LANE:
        expected = (num_pages, *layout.lane_page_shape(num_tokens=page_size, **sizes))
    else:
        expected = layout.kv_cache_shape(num_pages=num_pages, page_size=page_size, **sizes)
    if cache.shape != expected:
        raise ValueError(f"kv_cache is {cache.shape}, must be {expected} with {kv_layout}")


def _check_sink(sink: Any, queries: Any) -> None:
    if sink is not None and (sink.shape != queries.shape[1:2] or sink.dtype != jnp.float32):
        raise ValueError(
            f"attention_sink must be float32({queries.shape[1]},), got {sink.dtype}{sink.shape}"
        )


def _check_tree_mask(mask: Any, queries: Any) -> None:
    if mask is not None and (mask.shape != queries.shape[:1] or mask.dtype != jnp.int32):
        raise ValueError(
            f"tree_mask must be int32({queries.shape[0]},), got {mask.dtype}{mask.shape}"
        )


def check_metadata(arrays: Any) -> None:
    """Refuses int32 arrays of a call whose shapes do not belong together.

    Raises:
      ValueError: The first thing that is wrong.
    """
    for name in ("kv_lens", "page_indices", "cu_q_lens", "distribution"):
        array = getattr(arrays, name)
        if array.ndim != 1 or array.dtype != jnp.int32:
            raise ValueError(f"{name} must be int32 and flat, got {array.dtype}{array.shape}")
    if arrays.distribution.shape != (3,):
        raise ValueError(f"distribution must have 3 entries, got {arrays.distribution.shape}")
    num_seqs, num_indices = arrays.kv_lens.shape[0], arrays.page_indices.shape[0]
    if not num_seqs or num_indices % num_seqs or arrays.cu_q_lens.shape[0] != num_seqs + 1:
        raise ValueError(
            f"kv_lens says {num_seqs} sequences; page_indices has {num_indices} entries "
            f"and cu_q_lens {arrays.cu_q_lens.shape[0]}, need a multiple of it and one more"
        )


def _check_features(page_size: int, **features: Unpack[Features]) -> None:
    if features.get("use_causal_mask", True) and features.get("skip_kv_mask", False):
        raise ValueError("skip_kv_mask=True needs use_causal_mask=False")
    # What becomes a field of `Problem` is checked there.
    for name in ("chunk_prefill_size", "vmem_limit_bytes"):
        value: Any = features.get(name)
        if value is not None:
            check_whole(name, value)
    if (mask_value := features.get("mask_value")) is not None:
        check_mask_value(mask_value)
    for name in ("d_block_sizes", "p_block_sizes", "m_block_sizes"):
        sizes: Any = features.get(name)
        if sizes is None:
            continue
        bq_sz, bkv_sz, bq_csz, bkv_csz = sizes
        if min(bq_csz, bkv_csz) <= 0 or bq_sz % bq_csz or bkv_sz % bkv_csz:
            raise ValueError(f"{name}={sizes}: fetch blocks must be whole compute blocks")
        if bkv_sz % page_size or bkv_csz % page_size:
            raise ValueError(f"{name}={sizes}: KV blocks must be whole pages of {page_size}")
    for name, usual in (
        ("debug_mode", False), ("disable_bounds_checks", True), ("disable_semaphore_checks", True)
    ):  # fmt: skip
        if features.get(name, usual) != usual:
            raise ValueError(f"{name}={not usual} is for debugging the public kernel")


def _out_dtype(asked: Any, q_dtype: Any) -> str | None:
    """`Problem.out_dtype`: None when the output takes the queries' place, as in public calls."""
    if asked is None:
        return None
    dtype = jnp.dtype(asked)
    if not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(f"out_dtype={dtype} must be a floating-point type")
    return None if dtype.itemsize == jnp.dtype(q_dtype).itemsize else str(dtype)
