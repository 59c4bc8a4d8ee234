"""TPU tiling arithmetic and the KV cache layout. All alignment lives here. No jax.

A KV cache has one of two layouts, both of public kernels, so that a cache filled by one can be read
by the other. K and V of a head sit next to each other (k0, v0, k1, v1, ...), and `packing`
neighbouring rows share one 32-bit sublane. What the rows are is the difference:

    head_along_sublane   rows of a token's heads, head_dim along lanes: that of RPA v3
    seq_along_lane       rows of head_dim for each head of a page, its tokens along lanes

The first pads K and V of few heads to whole words (float8 and one KV head: half of every page), the
second pads nothing, but copies whole lane tiles of 128 tokens.
"""

from rpa_kernels.ints import cdiv

LANES = 128  # elements in the minor dimension of a vector register; jax pltpu.TpuInfo.num_lanes
SUBLANES = 8  # 32-bit rows of a vector register; jax pltpu.TpuInfo.num_sublanes
WORD_BYTES = 4  # one sublane of one lane

DTYPE_BYTES = {
    "float32": 4,
    "bfloat16": 2,
    "float8_e4m3fn": 1,
    "float8_e5m2": 1,
    "int8": 1,
}
Q_DTYPES = ("bfloat16", "float32")
LATENT_Q_DTYPES = (*Q_DTYPES, "float8_e4m3fn", "float8_e5m2")
KV_DTYPES = tuple(DTYPE_BYTES)
# Source: `KVLayout` of tpu-inference 0.32.0, batched_rpa/configs.py; the names are its values.
HEAD_ALONG_SUBLANE, SEQ_ALONG_LANE = "head_along_sublane", "seq_along_lane"
KV_LAYOUTS = (HEAD_ALONG_SUBLANE, SEQ_ALONG_LANE)
# Source: `RpaConfigs.validate_inputs` there: no integers in the KV cache.
SEQ_ALONG_LANE_DTYPES = tuple(name for name in KV_DTYPES if name != "int8")
OUT_DTYPES = ("bfloat16", "float32", "float16", "float8_e4m3fn", "float8_e5m2")


def align(value: int, multiple: int) -> int:
    """The least multiple of `multiple` at or above `value`."""
    return cdiv(value, multiple) * multiple


def next_power_of_2(value: int) -> int:
    """The least power of two at or above `value`, at least 1."""
    return 1 << max(0, value - 1).bit_length()


def dtype_bytes(dtype: str) -> int:
    """Bytes of one element."""
    return DTYPE_BYTES[dtype]


def packing(dtype: str) -> int:
    """Elements that share one 32-bit sublane."""
    return WORD_BYTES // DTYPE_BYTES[dtype]


def fuses_kv(head_dim: int) -> bool:
    """Whether K and V of a head share one row of lanes (head_dim 64: K below, V above).

    Source:
      `kernel_hd64.merge_kv` of tpu-inference 0.32.0: no padding of K and V to 128 lanes.
    """
    return 2 * head_dim == LANES


def kv_rows(num_kv_heads: int, head_dim: int) -> int:
    """Rows that one token takes in the KV cache before packing."""
    return num_kv_heads if fuses_kv(head_dim) else 2 * num_kv_heads


def kv_cache_shape(
    *, num_pages: int, page_size: int, num_kv_heads: int, head_dim: int, kv_dtype: str
) -> tuple[int, int, int, int, int]:
    """KV cache shape of the public RPA v3 function (v3 hd64 for head_dim 64).

    Returns:
      [num_pages, page_size, words, packing, padded head_dim], where `words` 32-bit rows of
      `packing` elements hold a token's K and V rows.

    Source:
      `get_kv_cache_shape` of tpu-inference 0.32.0, ragged_paged_attention/v3.
    """
    pack = packing(kv_dtype)
    words = cdiv(kv_rows(num_kv_heads, head_dim), pack)
    return (num_pages, page_size, words, pack, align(head_dim, LANES))


def lane_page_shape(
    *, num_kv_heads: int, head_dim: int, kv_dtype: str, num_tokens: int
) -> tuple[int, int, int, int]:
    """Shape of `num_tokens` tokens along lanes, those of a page for one.

    Returns:
      [2 * KV heads, words, packing, tokens], where `words` 32-bit rows of `packing` elements hold
      the padded head_dim of k0, of v0, of k1, ...

    Source:
      `get_kv_cache_shape` of tpu-inference 0.32.0, batched_rpa/wrapper.py.
    """
    pack = packing(kv_dtype)
    words = align(head_dim, SUBLANES * pack) // pack
    return (2 * num_kv_heads, words, pack, num_tokens)


def check_kv_layout(name: str, page_size: int, kv_dtype: str) -> None:
    """Refuses a layout that is none, or that a cache cannot have.

    Raises:
      ValueError: Unknown; or tokens along lanes with parts of lane tiles, or with integers.
    """
    if name not in KV_LAYOUTS:
        raise ValueError(f"kv_layout={name!r} is not one of {KV_LAYOUTS}")
    if name != SEQ_ALONG_LANE:
        return
    if page_size % LANES:
        raise ValueError(
            f"page_size={page_size} must be a multiple of {LANES} tokens with kv_layout={name}"
        )
    if kv_dtype not in SEQ_ALONG_LANE_DTYPES:
        raise ValueError(
            f"kv_dtype={kv_dtype} is not one of {SEQ_ALONG_LANE_DTYPES} with kv_layout={name}"
        )


def odd(value: int) -> int:
    """The least odd number at or above `value`.

    Strided loads walk the VMEM banks with the stride of a token; an odd stride meets no bank
    twice in a vector register.
    """
    return value | 1


def tiled_bytes(shape: tuple[int, ...], dtype: str) -> int:
    """VMEM bytes of an array after padding its two minor dimensions to tiles.

    A tile is 128 lanes by the least power of two of rows that holds the second minor dimension,
    from one packed word up to 8 words.
    """
    *major, rows, lanes = shape
    pack = packing(dtype)
    tile = min(SUBLANES * pack, max(pack, next_power_of_2(rows)))
    size = align(rows, tile) * align(lanes, LANES) * dtype_bytes(dtype)
    for dim in major:
        size *= dim
    return size
