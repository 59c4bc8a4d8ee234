"""The static half of an attention call: what a kernel is compiled for.

Neighbours: `batch.py` holds the lengths of one launch, each family's `config.py` the block
sizes. Nothing here depends on a chip. No jax.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from rpa_kernels import checks, layout
from rpa_kernels.dtypes import dtype_name
from rpa_kernels.ints import cdiv
from rpa_kernels.latent import check_latent, latent_cache_shape

_SIZES = (
    "num_q_heads", "num_kv_heads", "head_dim", "page_size", "max_num_tokens", "max_num_seqs",
    "pages_per_seq", "num_pages", "decode_query_size",
)  # fmt: skip
MAX_DECODE_QUERY = checks.MAX_DECODE_QUERY
_SCALES = ("q_scale", "k_scale", "v_scale")
_NUMBERS = ("sm_scale", "soft_cap", *_SCALES)
# Fields that came after rows, journals and artefacts had been written, and what they were before.
# The JSON form leaves them out at that value, so that digests and files of then stay as they are.
ADDED_FIELDS: Mapping[str, Any] = {
    "attention_chunk_size": None,
    "kv_layout": layout.HEAD_ALONG_SUBLANE,
    "return_lse": False,
    "decode_query_size": 1,
    "has_tree_mask": False,
    "rope_dim": None,
    "kv_packing": None,
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Problem:
    """Static shapes, dtypes and features of one ragged paged attention call.

    The names and meanings of the features are those of the public RPA v3 function.

    Attributes:
      num_q_heads: Query heads on this device.
      num_kv_heads: KV heads on this device; divides `num_q_heads`.
      head_dim: Head size in elements, before padding.
      page_size: Tokens in one KV cache page.
      max_num_tokens: Rows of `queries`: [max_num_tokens, num_q_heads, head_dim].
      max_num_seqs: Length of `kv_lens`.
      pages_per_seq: `page_indices` has `max_num_seqs * pages_per_seq` entries.
      num_pages: Pages in the KV cache.
      q_dtype: Dtype name of queries.
      kv_dtype: Dtype name of the KV cache and of new keys and values.
      out_dtype: Dtype name of the output, or None for that of the queries.
      sm_scale: Factor on q @ k.T.
      sliding_window: Tokens a query may look back, itself included, or None.
      soft_cap: Logits become `soft_cap * tanh(logits / soft_cap)`, or None.
      mask_value: Logit of a masked position in the public function; without effect here, where a
        masked position has no weight. See `mask.py`.
      causal: Whether a query sees only keys at or before its own position.
      update_kv_cache: Whether new keys and values are written to the cache.
      has_sinks: Whether a per-head sink logit joins the softmax denominator.
      q_scale: Queries are divided by it before the multiplication with quantised keys, or None.
        With `rope_dim` they come divided by it.
      k_scale: Factor that turns stored keys into real ones, or None for 1.
      v_scale: The same for values.
      attention_chunk_size: A query sees keys of its own chunk of so many positions only (chunked
        local attention, as in Llama 4), or None. With a causal mask and no window.
      kv_layout: Layout of the KV cache, one of `layout.KV_LAYOUTS`; see there.
      return_lse: Whether the log-sum-exp of each query's logits is an output, too: natural
        logarithm, after scale and soft cap, the sink among them.
      decode_query_size: Most new tokens of a sequence that decode serves, 1 to 8.
      has_tree_mask: Whether an operand says which new tokens of its sequence each new token of a
        decode sequence sees, as verification of a tree of drafts needs it; else those up to itself.
      rope_dim: Elements of a token's rope row, in multi-head latent attention; or None without.
        See `latent.py`: `head_dim` is then that of the latent row.
      kv_packing: Tokens that the second last dimension of a latent cache holds, or None for as
        many as share a 32-bit word.
    """

    num_q_heads: int
    num_kv_heads: int
    head_dim: int
    page_size: int
    max_num_tokens: int
    max_num_seqs: int
    pages_per_seq: int
    num_pages: int
    q_dtype: str = "bfloat16"
    kv_dtype: str = "bfloat16"
    out_dtype: str | None = None
    sm_scale: float = 1.0
    sliding_window: int | None = None
    soft_cap: float | None = None
    mask_value: float | None = None
    causal: bool = True
    update_kv_cache: bool = True
    has_sinks: bool = False
    q_scale: float | None = None
    k_scale: float | None = None
    v_scale: float | None = None
    attention_chunk_size: int | None = None
    kv_layout: str = layout.HEAD_ALONG_SUBLANE
    return_lse: bool = False
    decode_query_size: int = 1
    has_tree_mask: bool = False
    rope_dim: int | None = None
    kv_packing: int | None = None

    def __post_init__(self) -> None:
        """Refuses what can never be right: the one check of a call, an audit and a sweep.

        Raises:
          ValueError: A size that is no whole number from 1 on or too large for int32, heads that
            do not divide, pages of part of a word, an unknown dtype, or a feature out of its range.
        """
        self._check_sizes()
        q_dtypes = layout.Q_DTYPES if self.rope_dim is None else layout.LATENT_Q_DTYPES
        for name, allowed in (("q_dtype", q_dtypes), ("kv_dtype", layout.KV_DTYPES)):
            # `fp8` and `jnp.bfloat16` are taken, too; what is kept is the name.
            object.__setattr__(self, name, dtype_name(getattr(self, name), allowed, name))
        if self.out_dtype is not None and self.out_dtype not in layout.OUT_DTYPES:
            raise ValueError(f"out_dtype={self.out_dtype!r} is not one of {layout.OUT_DTYPES}")
        pack = layout.packing(self.kv_dtype)
        if self.page_size % pack:
            raise ValueError(
                f"page_size={self.page_size} must be a multiple of {pack} tokens "
                f"with a KV cache of {self.kv_dtype}"
            )
        layout.check_kv_layout(self.kv_layout, self.page_size, self.kv_dtype)
        self._check_features()
        check_latent(self)
        if self.kv_packing == pack:
            object.__setattr__(self, "kv_packing", None)  # one value for one layout

    def _check_sizes(self) -> None:
        for name in _SIZES:
            value = getattr(self, name)
            # A call makes a problem every step: the usual case is one comparison.
            if type(value) is not int or not 0 < value <= checks.MAX_INT32:
                checks.check_whole(name, value)
        if self.num_q_heads % self.num_kv_heads:
            raise ValueError(
                f"num_q_heads={self.num_q_heads} is not a multiple of "
                f"num_kv_heads={self.num_kv_heads}"
            )
        if self.max_context_tokens > checks.MAX_INT32:
            self._refuse_product("pages_per_seq", "page_size")
        if self.max_num_seqs * self.pages_per_seq > checks.MAX_INT32:
            self._refuse_product("max_num_seqs", "pages_per_seq")

    def _refuse_product(self, first: str, second: str) -> None:
        size = getattr(self, first) * getattr(self, second)
        raise ValueError(
            f"{first} * {second} = {size} must be at most {checks.MAX_INT32}, for int32"
        )

    def _check_features(self) -> None:
        if self.sliding_window is not None:
            checks.check_whole("sliding_window", self.sliding_window)
        checks.check_chunk(self)
        for name in _NUMBERS:
            value = getattr(self, name)
            if value is None and name != "sm_scale":
                continue
            checks.check_finite(name, value)
            if value <= 0 and name in _SCALES:
                raise ValueError(f"{name}={value!r} must be above zero")
        if self.mask_value is not None:
            checks.check_mask_value(self.mask_value)
        checks.check_decode(self)
        if self.soft_cap == 0.0:
            raise ValueError("soft_cap=0.0 must not be zero; use None for no cap")

    def to_dict(self) -> dict[str, Any]:
        """JSON form; `problem_from_dict` reads it back."""
        return {
            name: value
            for name, value in asdict(self).items()
            if name not in ADDED_FIELDS or value != ADDED_FIELDS[name]
        }

    @property
    def q_heads_per_kv_head(self) -> int:
        """Query heads that share one KV head (the GQA ratio)."""
        return self.num_q_heads // self.num_kv_heads

    @property
    def max_context_tokens(self) -> int:
        """Longest context a sequence's page list can hold, in tokens."""
        return self.pages_per_seq * self.page_size

    def without_idle_window(self) -> "Problem":
        """The same without a window or chunk as long as any context: one kernel for both."""
        if self.reach_tokens is None or self.reach_tokens < self.max_context_tokens:
            return self
        return replace(self, sliding_window=None, attention_chunk_size=None)

    @property
    def sees_cache_only(self) -> bool:
        """Whether queries have no place in the contexts that they attend to, which may be empty.

        That is one part of several, on one device each, say: every query sees every cached token
        of its sequence, new ones are not written, and the log-sum-exp says what the part weighs.
        """
        is_all = not self.causal and not self.update_kv_cache and self.reach_tokens is None
        return self.return_lse and is_all

    @property
    def reach_tokens(self) -> int | None:
        """Keys that a query sees at most, those of a window or a chunk; None without either."""
        return self.sliding_window or self.attention_chunk_size

    @property
    def reach_text(self) -> str:
        """`window 1024` or `chunk 8192`, for people; empty without either."""
        if self.reach_tokens is None:
            return ""
        return f"{'window' if self.sliding_window else 'chunk'} {self.reach_tokens}"

    @property
    def resolved_out_dtype(self) -> str:
        """Dtype name of the output with the default filled in."""
        return self.q_dtype if self.out_dtype is None else self.out_dtype

    @property
    def is_seq_along_lane(self) -> bool:
        """Whether the tokens of a page of the KV cache lie along lanes."""
        return self.kv_layout == layout.SEQ_ALONG_LANE

    @property
    def is_latent(self) -> bool:
        """Whether this is multi-head latent attention; see `latent.py`."""
        return self.rope_dim is not None

    @property
    def quantizes_q(self) -> bool:
        """Whether queries are rounded to the dtype of the cache."""
        return self.q_scale is not None and not self.is_latent

    @property
    def row_tokens(self) -> int:
        """Tokens of one row of the cache with its pages as one dimension: what copies move."""
        return (self.kv_packing or layout.packing(self.kv_dtype)) if self.is_latent else 1

    @property
    def rope_lanes(self) -> int:
        """Lanes of a rope row; 0 without."""
        return layout.align(self.rope_dim or 0, layout.LANES)

    @property
    def k_lanes(self) -> int:
        """Lanes of what a query is multiplied with: K, or a latent and a rope row."""
        return self.padded_head_dim + self.rope_lanes

    @property
    def kv_cache_shape(self) -> tuple[int, ...]:
        """KV cache shape: [num_pages, page_size, packed heads, packing, padded head_dim].

        With tokens along lanes [num_pages, 2 * KV heads, words of head_dim, packing, page_size];
        with latents [num_pages, page_size / row_tokens, row_tokens, k_lanes].
        """
        if self.is_latent:
            return latent_cache_shape(self.num_pages, self.page_size, self.row_tokens, self.k_lanes)
        if self.is_seq_along_lane:
            return (self.num_pages, *self.lane_page_shape(self.page_size))
        return layout.kv_cache_shape(
            num_pages=self.num_pages,
            page_size=self.page_size,
            num_kv_heads=self.num_kv_heads,
            head_dim=self.head_dim,
            kv_dtype=self.kv_dtype,
        )

    def lane_page_shape(self, num_tokens: int) -> tuple[int, int, int, int]:
        """Shape of tokens that lie along lanes: [2 * KV heads, words, packing, tokens]."""
        return layout.lane_page_shape(
            num_kv_heads=self.num_kv_heads,
            head_dim=self.head_dim,
            kv_dtype=self.kv_dtype,
            num_tokens=num_tokens,
        )

    @property
    def padded_head_dim(self) -> int:
        """Lanes of one row of q, K or V."""
        return layout.align(self.head_dim, layout.LANES)

    @property
    def fuses_kv(self) -> bool:
        """Whether one row holds K and V of a head side by side (head_dim 64)."""
        return not self.is_seq_along_lane and layout.fuses_kv(self.head_dim)

    @property
    def kv_words(self) -> int:
        """32-bit rows of one token in the KV cache."""
        return self.kv_cache_shape[2]

    @property
    def q_words(self) -> int:
        """32-bit rows of one token and one KV head in the prepared queries."""
        return cdiv(self.q_heads_per_kv_head, layout.packing(self.q_dtype))

    @property
    def q_shape(self) -> tuple[int, int, int, int, int]:
        """Prepared queries and output: [tokens, KV heads, q words, q packing, padded head_dim]."""
        return (
            self.max_num_tokens,
            self.num_kv_heads,
            self.q_words,
            layout.packing(self.q_dtype),
            self.padded_head_dim,
        )

    @property
    def q_rope_shape(self) -> tuple[int, int, int, int, int]:
        """Rope rows of prepared queries: [tokens, 1, q words, q packing, rope lanes]."""
        return (*self.q_shape[:-1], self.rope_lanes)

    @property
    def kv_new_shape(self) -> tuple[int, ...]:
        """Prepared new keys and values: [tokens, kv words, kv packing, padded head_dim].

        With tokens along lanes [tiles of 128 tokens, 2 * KV heads, words, packing, 128]; with
        latents rows of the cache, in the order of the batch.
        """
        if self.is_latent:
            return (cdiv(self.max_num_tokens, self.row_tokens), self.row_tokens, self.k_lanes)
        if self.is_seq_along_lane:
            tiles = cdiv(self.max_num_tokens, layout.LANES)
            return (tiles, *self.lane_page_shape(layout.LANES))
        return (self.max_num_tokens, *self.kv_cache_shape[2:])

    @property
    def sinks_shape(self) -> tuple[int, int, int]:
        """Prepared sinks, float32: [KV heads, query heads of one padded to whole tiles, lanes]."""
        rows = self.q_words * layout.packing(self.q_dtype)
        return (self.num_kv_heads, layout.align(rows, layout.SUBLANES), layout.LANES)

    @property
    def sinks_bytes(self) -> int:
        """Bytes of the prepared sinks; 0 without."""
        heads, rows, lanes = self.sinks_shape
        return heads * rows * lanes * layout.WORD_BYTES if self.has_sinks else 0

    @property
    def lse_shape(self) -> tuple[int, int, int, int]:
        """Log-sum-exp as kernels write it, float32: [tokens, q packing, 1, lanes].

        Lane `KV head * q_words + word` of part e is query head `word * q packing + e` of the KV
        head: as query rows lie in registers, none moves to another sublane.
        """
        _, heads, words, pack, _ = self.q_shape
        return (self.max_num_tokens, pack, 1, layout.align(heads * words, layout.LANES))

    @property
    def lse_token_bytes(self) -> int:
        """Bytes of one token's log-sum-exp; 0 without."""
        _, pack, _, lanes = self.lse_shape
        return pack * lanes * layout.WORD_BYTES if self.return_lse else 0

    @property
    def kv_token_bytes(self) -> int:
        """Bytes of one token in the KV cache."""
        if self.is_latent:
            return self.k_lanes * layout.dtype_bytes(self.kv_dtype)
        if self.is_seq_along_lane:
            return math.prod(self.lane_page_shape(1)) * layout.dtype_bytes(self.kv_dtype)
        return self.kv_words * self.padded_head_dim * layout.WORD_BYTES

    @property
    def page_bytes(self) -> int:
        """Bytes of one page of the KV cache."""
        return self.page_size * self.kv_token_bytes

    @property
    def q_token_bytes(self) -> int:
        """Bytes of one token in the prepared queries, rope rows included."""
        return self.num_kv_heads * self.q_words * self.k_lanes * layout.WORD_BYTES

    @property
    def out_token_bytes(self) -> int:
        """Bytes of one token in the output as kernels write it."""
        return self.num_kv_heads * self.q_words * self.padded_head_dim * layout.WORD_BYTES


def problem_from_dict(data: Mapping[str, Any]) -> Problem:
    """Reads the JSON form.

    Raises:
      ValueError: A field is missing or unknown, or what `Problem` raises.
    """
    known = {field.name for field in fields(Problem)}
    missing, unknown = sorted(known - set(data) - set(ADDED_FIELDS)), sorted(set(data) - known)
    if missing or unknown:
        raise ValueError(f"problem: missing {missing}, unknown {unknown}")
    return Problem(**data)
