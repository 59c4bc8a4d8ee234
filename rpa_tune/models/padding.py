"""What the KV cache's padding costs, worked out from its layout and said in one line. No jax."""

import math
from typing import Any, Protocol

from rpa_kernels import layout


class Cached(Protocol):
    """What decides the layout of a token: a `Problem`, or the key of a row."""

    @property
    def num_kv_heads(self) -> int:
        """KV heads on this device."""
        ...

    @property
    def head_dim(self) -> int:
        """Head size in elements."""
        ...

    @property
    def rope_dim(self) -> int | None:
        """Elements of a rope row, where `head_dim` is that of a latent row; else None or 0."""
        ...

    @property
    def kv_dtype(self) -> str:
        """Dtype name of the KV cache."""
        ...

    @property
    def kv_layout(self) -> str:
        """Layout of the KV cache."""
        ...


def token_bytes(cached: Cached, kv_dtype: str | None = None, kv_layout: str | None = None) -> int:
    """Bytes of one token in the KV cache, padding included; of another dtype or layout if named."""
    dtype = kv_dtype or cached.kv_dtype
    if cached.rope_dim:
        lanes = (layout.align(dim, layout.LANES) for dim in (cached.head_dim, cached.rope_dim))
        return sum(lanes) * layout.dtype_bytes(dtype)
    sizes: dict[str, Any] = {
        "num_kv_heads": cached.num_kv_heads, "head_dim": cached.head_dim, "kv_dtype": dtype,
    }  # fmt: skip
    if (kv_layout or cached.kv_layout) == layout.SEQ_ALONG_LANE:
        elements = math.prod(layout.lane_page_shape(num_tokens=1, **sizes))
    else:
        elements = math.prod(layout.kv_cache_shape(num_pages=1, page_size=1, **sizes))
    return elements * layout.dtype_bytes(dtype)


def bytes_by_layout(cached: Cached) -> dict[str, int]:
    """Bytes of one token in each layout that takes the dtype, padding included."""
    lanes_too = cached.kv_dtype in layout.SEQ_ALONG_LANE_DTYPES and not cached.rope_dim
    allowed = {layout.HEAD_ALONG_SUBLANE: True, layout.SEQ_ALONG_LANE: lanes_too}
    return {name: token_bytes(cached, kv_layout=name) for name, is_one in allowed.items() if is_one}


def useful_token_bytes(cached: Cached) -> int:
    """Bytes of one token's K and V alone, or of its latent and rope row."""
    elements = 2 * cached.num_kv_heads * cached.head_dim
    if cached.rope_dim:
        elements = cached.head_dim + cached.rope_dim
    return elements * layout.dtype_bytes(cached.kv_dtype)


def padding_note(cached: Cached) -> str:
    """How much of the cache is padding, which wider dtypes and which layout would move no more.

    Returns:
      One line, or the empty string where nothing is padded.
    """
    stored, useful = token_bytes(cached), useful_token_bytes(cached)
    if stored == useful:
        return ""
    note = f"padding: {stored - useful:,} of the {stored:,} bytes of a token in the KV cache"
    width = layout.dtype_bytes(cached.kv_dtype)
    as_wide = [
        dtype
        for dtype in layout.KV_DTYPES
        if layout.dtype_bytes(dtype) > width and token_bytes(cached, dtype) <= stored
    ]
    if as_wide:
        note += f"; {cached.kv_dtype} moves as many bytes as {' or '.join(as_wide)} would"
    name, least = min(bytes_by_layout(cached).items(), key=lambda pair: pair[1])
    if least < stored:
        note += f"; kv_layout {name} stores {least:,}"
    return note
