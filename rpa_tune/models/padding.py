"""What the KV cache's padding costs, worked out from its layout and said in one line. No jax."""

from typing import Protocol

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
    def kv_dtype(self) -> str:
        """Dtype name of the KV cache."""
        ...


def token_bytes(cached: Cached, kv_dtype: str | None = None) -> int:
    """Bytes of one token in the KV cache, padding included; of another dtype if one is named."""
    _, _, words, pack, lanes = layout.kv_cache_shape(
        num_pages=1,
        page_size=1,
        num_kv_heads=cached.num_kv_heads,
        head_dim=cached.head_dim,
        kv_dtype=kv_dtype or cached.kv_dtype,
    )
    return words * pack * lanes * layout.dtype_bytes(kv_dtype or cached.kv_dtype)


def useful_token_bytes(cached: Cached) -> int:
    """Bytes of one token's K and V alone."""
    return 2 * cached.num_kv_heads * cached.head_dim * layout.dtype_bytes(cached.kv_dtype)


def padding_note(cached: Cached) -> str:
    """How much of the cache is padding, and which wider dtypes would move no more bytes.

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
    return note
