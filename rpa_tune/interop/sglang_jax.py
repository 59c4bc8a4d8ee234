"""Stands in for the attention function of sglang-jax, and proves that the engine really calls it.

```
stand_in = install(load_dispatcher())
with stand_in.expect_calls():
    worker.run_precompile()
```

Two functions are known: that of 0.0.2, the wheel on PyPI, and `ragged_paged_attention_v3` of the
main branch. Their calls differ from ours in these ways, all mended here when they are traced:

* The page list is ragged: a sequence's pages start at `cu_kv_lens[i] // page_size`.
* Heads of 64 are padded to whole lanes in the cache, where ours share a row.
* 0.0.2: the cache is [pages, page_size, 2 * KV heads, padded head_dim], and comes back without its
  page axis; ours has the heads in packs, as the main branch has them.
* 0.0.2: decode steps call every sequence mixed; leading sequences of one token become decode.
* A mask says for each new token and each token of the context whether it is seen. In verification
  of a tree of drafts all of the context before the drafts is: a word a token says the rest.

An engine that is loaded and whose function has drifted is refused when this module is imported.
"""

import functools
import importlib
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp

from rpa_kernels import layout
from rpa_kernels.ints import cdiv
from rpa_kernels.problem import MAX_DECODE_QUERY
from rpa_tune.dispatch.call import Features
from rpa_tune.dispatch.dispatcher import Dispatcher
from rpa_tune.errors import UsageError
from rpa_tune.interop.engine_call import Form, Served
from rpa_tune.interop.guard import Guard
from rpa_tune.interop.stand_in import StandIn, check_drift

VERSION = "0.0.2"  # of sglang-jax on PyPI, whose function is known
MAIN = "cddbf6f"  # commit of its main branch, likewise
BACKEND = "sgl_jax.srt.layers.attention.flashattention_backend"
_PACKAGE = "sgl_jax"
_HINT = f"rpa-tune supports sglang-jax {VERSION}, and its main branch as of {MAIN}"
_ARRAYS = (
    "queries", "keys", "values", "kv_cache_fused", "kv_lens", "page_indices", "cu_q_lens",
    "cu_kv_lens", "distribution",
)  # fmt: skip
_BLOCKS = {
    "num_kv_pages_per_block", "num_queries_per_block", "d_block_sizes", "p_block_sizes",
    "m_block_sizes",
}  # fmt: skip
# What says nothing to our kernels: blocks; how a custom mask is laid out, for `_tree_tokens` alone;
# and the dtype of the softmax, which is float32 here whatever it says.
_IGNORED = {*_BLOCKS, "mask_aligned_to_cu_kv", "softmax_dtype"}
_REFUSED = ("custom_mask", "xai_temperature_len")  # a mask that is not of a tree of few drafts


@dataclass(frozen=True, kw_only=True, slots=True)
class Known:
    """A function that the stand-in can take the place of.

    Attributes:
      module: Where it is defined, as `ragged_paged_attention`.
      bound: The backend's name for it.
      leading: Its arrays, in order.
      known: Every parameter that is understood.
      form: What its arrays are.
    """

    module: str
    bound: str
    leading: tuple[str, ...]
    known: frozenset[str]
    form: Form

    @property
    def function(self) -> Any:
        """The function, or None if there is none of this name."""
        return getattr(sys.modules.get(self.module), FUNCTION, None)

    def check(self, function: Any) -> None:
        """Refuses a function that the stand-in could not take the place of.

        Raises:
          UsageError: It is gone, its arrays come in another order, or it has an unknown parameter.
        """
        where = f"{self.module}.{FUNCTION}"
        check_drift(function, where, leading=self.leading, known=self.known, hint=_HINT)


FUNCTION = "ragged_paged_attention"


def install(
    dispatcher: Dispatcher, *, interpret: Any = None, guard: Guard | None = None
) -> StandIn:
    """Replaces the attention function of sglang-jax, whose backend is imported if it is not yet.

    Args:
      dispatcher: Plans every call from its tables when it is traced.
      interpret: None to run on the TPU, or `pltpu.InterpretParams`.
      guard: Compares with the engine's function, and falls back on it; None for neither.

    Raises:
      UsageError: sglang-jax does not import, its signature has drifted, or its backend holds none
        of the functions that are known.
    """
    try:
        backend = importlib.import_module(BACKEND)
    except ImportError as error:
        raise UsageError(
            f"sglang-jax does not import: {error}", where=BACKEND, hint=_HINT
        ) from error
    known = loaded_function()
    if "proxy" in (getattr(jax.config, "jax_platforms", None) or ""):
        # `_compute_cache_loc_buckets` in srt/model_executor/compilation_manager.py
        raise UsageError(
            "under Pathways (JAX_PLATFORMS=proxy) sglang-jax cuts its page list at the pool's "
            "size, and sequences may have more pages than an equal share of it",
            where=BACKEND,
            hint="run on the TPU host itself, or without the stand-in",
        )
    stand_in = StandIn()
    served = Served(dispatcher=dispatcher, interpret=interpret, guard=guard)
    function = known.function
    stand_in.replace(function, functools.partial(_attend, served, known, function), _PACKAGE)
    _refuse_lists_of_the_pool(stand_in, backend)
    return stand_in


def loaded_function() -> Known:
    """Which of the known functions the loaded backend calls.

    Raises:
      UsageError: None of them, or one that has drifted.
    """
    for known in KNOWN:
        if known.module in sys.modules:
            known.check(known.function)
    backend = vars(sys.modules[BACKEND])
    for known in KNOWN:
        if known.function is not None and backend.get(known.bound) is known.function:
            return known
    held = {name: value for name, value in backend.items() if name.startswith(FUNCTION)}
    raise UsageError(
        f"{BACKEND} does not hold the function that it calls, as far as it is known: it has "
        + (", ".join(f"{n} of {getattr(f, '__module__', '?')}" for n, f in held.items()) or "none"),
        where=", ".join(f"{known.module}.{FUNCTION}" for known in KNOWN),
        hint=_HINT,
    )


def _refuse_lists_of_the_pool(stand_in: StandIn, backend: Any) -> None:
    """Speculative decoding with DFlash sizes the page list by the pool, not by the longest request.

    A sequence may then have more pages than a row of `page_table`, which nothing on the device
    would notice.
    """
    owner, name = backend.FlashAttention, "get_eagle_forward_metadata"
    original = getattr(owner, name, None)
    if original is None:
        return

    @functools.wraps(original)
    def checked(*args: Any, page_indices_capacity: int | None = None, **rest: Any) -> Any:
        if page_indices_capacity is not None:
            raise UsageError(
                f"page_indices_capacity={page_indices_capacity} is not served: sequences may have "
                "more pages than an equal share of the list",
                where=f"{BACKEND}.FlashAttention.{name}",
                hint="run DFlash without the stand-in",
            )
        return original(*args, **rest)

    stand_in.put(owner, name, checked)


def _attend(
    served: Served, known: Known, original: Callable[..., Any], *arrays: Any, **features: Any
) -> tuple[Any, ...]:
    """One call of the engine, by our kernels.

    Args:
      served: Plans and runs.
      known: Which of the engine's functions it is.
      original: The function itself.
      arrays: queries [tokens, num_q_heads, head_dim], keys and values [tokens, num_kv_heads,
        head_dim], the cache with K and V of a head alternating, and int32 metadata, in the order of
        `Known.leading`.
      features: Keyword arguments of the engine's function.

    Returns:
      (output [tokens, num_q_heads, head_dim], the cache in the engine's form).

    Raises:
      UsageError: A custom mask that is not of a tree of few drafts, or a temperature by length,
        without a guard that falls back.
    """
    given = {**dict(zip(known.leading, arrays, strict=False)), **features}
    refused = [name for name in _REFUSED if given.get(name) is not None]
    every = tuple(given.pop(name, None) for name in known.leading)
    theirs = functools.partial(original, **given)
    said = {name: value for name, value in given.items() if name not in {*_IGNORED, *_REFUSED}}
    if "causal" in said:
        said["use_causal_mask"] = said.pop("causal") == 1
    form, num_drafts = known.form, 1
    if "custom_mask" in refused and (num_drafts := _tree_tokens(every, features)) > 1:
        refused.remove("custom_mask")
        said["use_causal_mask"] = True  # beside the tree
        form = replace(form, to_ours=functools.partial(_tree_to_ours, num_drafts))
    return served.attend(
        every, said, theirs=theirs, form=form, query_size=num_drafts, unserved=refused
    )


def _tree_tokens(arrays: tuple[Any, ...], features: dict[str, Any]) -> int:
    """New tokens of every sequence, where the mask is a tree of so many as ours takes; else 1.

    The engine aligns a mask to pages in verification of drafts only (`mask_aligned_to_cu_kv` in
    `FlashAttention.__call__`), whose steps have the same number for each place of a sequence
    (`EagleDraftWorker.draft` in `srt/speculative/eagle_draft_worker.py`).
    """
    num_tokens, num_seqs = arrays[0].shape[0], arrays[4].shape[0]
    is_tree = features.get("mask_aligned_to_cu_kv") and num_tokens % num_seqs == 0
    each = num_tokens // num_seqs
    return each if is_tree and each <= MAX_DECODE_QUERY else 1


def _tree_to_ours(num_drafts: int, *arrays: Any) -> tuple[Any, ...]:
    """As `_to_ours`, with a tree of drafts for every sequence: all of them are decode's."""
    *ours, sink = (*_to_ours(*arrays), None)[:9]
    kv_lens, cu_q_lens, cu_kv_lens, distribution, mask = (arrays[i] for i in (4, 6, 7, 8, 9))
    ours[7] = jnp.stack([distribution[2]] * 3)
    return (
        *ours,
        sink,
        tree_words(mask, kv_lens, cu_q_lens, cu_kv_lens, num_drafts, len(arrays[0])),
    )


def tree_words(
    mask: jax.Array,
    kv_lens: jax.Array,
    cu_q_lens: jax.Array,
    cu_kv_lens: jax.Array,
    num_drafts: int,
    num_tokens: int,
) -> jax.Array:
    """A mask over contexts as int32[num_tokens]: bit j says that new token j is seen.

    Args:
      mask: int32[...], for each sequence and each of its new tokens a row as wide as the sequence's
        whole pages; 1 where a token of the context is seen.
      kv_lens: int32[sequences], new tokens included.
      cu_q_lens: int32[sequences + 1].
      cu_kv_lens: int32[sequences + 1], whole pages in tokens.
      num_drafts: Most new tokens of a sequence.
      num_tokens: Words to make.
    """
    q_lens, widths = cu_q_lens[1:] - cu_q_lens[:-1], cu_kv_lens[1:] - cu_kv_lens[:-1]
    sizes = q_lens * widths
    token = jnp.arange(num_tokens, dtype=jnp.int32)
    seq = jnp.minimum(jnp.searchsorted(cu_q_lens[1:], token, side="right"), len(kv_lens) - 1)
    row = (jnp.cumsum(sizes) - sizes)[seq] + (token - cu_q_lens[seq]) * widths[seq]
    new = jnp.arange(num_drafts, dtype=jnp.int32)
    place = (row + kv_lens[seq] - q_lens[seq])[:, None] + new
    is_seen = (mask[jnp.clip(place, 0, len(mask) - 1)] == 1) & (new < q_lens[seq][:, None])
    return (is_seen << new).sum(axis=1, dtype=jnp.int32)


def _to_ours(*arrays: Any) -> tuple[Any, ...]:
    """The arrays of `ragged_paged_attention`, for a cache in packs; a sink is the last, if any.

    Args:
      arrays: In the order of `Known.leading`. A custom mask is not looked at.
    """
    cache, kv_lens, page_indices, cu_q_lens, cu_kv_lens, distribution = arrays[3:9]
    head_dim = arrays[0].shape[2]
    spare = layout.LANES - head_dim if head_dim == layout.LANES // 2 else 0
    new = (jnp.pad(x, ((0, 0), (0, 0), (0, spare))) for x in arrays[:3])
    pages = page_table(page_indices, cu_kv_lens, cache.shape[1])
    ours = (*new, cache, kv_lens, pages, cu_q_lens, decode_first(cu_q_lens, distribution))
    sink = arrays[10] if len(arrays) > 10 else None
    if sink is None:
        return ours
    sink = jnp.asarray(sink, jnp.float32)  # one for each head, or for all
    return (*ours, jnp.broadcast_to(sink, arrays[0].shape[1:2]))


def _from_ours(results: tuple[Any, ...], queries: jax.Array, *_: Any) -> tuple[Any, ...]:
    out, cache = results
    return out[..., : queries.shape[2]], cache


def _unpacked_to_ours(*arrays: Any) -> tuple[Any, ...]:
    """0.0.2: [pages, page_size, heads, head_dim] into packs of a word, padded if need be."""
    pages, page_size, num_heads, head_dim = arrays[3].shape
    pack = layout.packing(str(arrays[3].dtype))
    rows, lanes = cdiv(num_heads, pack), layout.align(head_dim, layout.LANES)
    spare = ((0, 0), (0, 0), (0, rows * pack - num_heads), (0, lanes - head_dim))
    cache = jnp.pad(arrays[3], spare).reshape(pages, page_size, rows, pack, lanes)
    in_packs = (*arrays[:3], cache, *arrays[4:])
    return _to_ours(*in_packs)


def _unpacked_from_ours(
    results: tuple[Any, ...], queries: jax.Array, *rest: Any
) -> tuple[Any, ...]:
    """0.0.2: the cache as [slots, 2 * num_kv_heads, head_dim]."""
    out, cache = _from_ours(results, queries)
    slots = cache.reshape(-1, cache.shape[2] * cache.shape[3], cache.shape[4])
    return out, slots[:, : rest[2].shape[2], : queries.shape[2]]


def page_table(page_indices: jax.Array, cu_kv_lens: jax.Array, page_size: int) -> jax.Array:
    """A ragged page list as a table of equal rows, flat.

    A row holds as many pages as the list has for each sequence: the engine pads the list to the
    longest request times the number of sequences (0.0.2: `precompile_cache_loc_paddings` in
    `srt/managers/tp_worker.py`; main: `srt/model_executor/compilation_manager.py`), so no sequence
    has more.

    Args:
      page_indices: int32[pages], the sequences' pages one behind the other.
      cu_kv_lens: int32[sequences + 1], whole pages in tokens.
      page_size: Tokens.
    """
    num_pages, num_seqs = page_indices.shape[0], cu_kv_lens.shape[0] - 1
    starts = cu_kv_lens[:-1] // page_size
    within = jnp.arange(cdiv(num_pages, num_seqs), dtype=jnp.int32)
    places = jnp.minimum(starts[:, None] + within, num_pages - 1)
    return page_indices[places].reshape(-1)


def decode_first(cu_q_lens: jax.Array, distribution: jax.Array) -> jax.Array:
    """The distribution in which leading sequences of one token are decode sequences."""
    num_seqs = distribution[2]
    is_one = cu_q_lens[1:] - cu_q_lens[:-1] == 1
    is_one &= jnp.arange(is_one.shape[0]) < num_seqs
    num_decode = jnp.cumprod(is_one.astype(jnp.int32)).sum(dtype=jnp.int32)
    return jnp.stack([num_decode, jnp.maximum(num_decode, distribution[1]), num_seqs])


_FEATURES = {*Features.__annotations__, *_IGNORED}
RELEASED = Known(
    module="sgl_jax.srt.layers.attention.flash_attn_kernel.flash_attention",
    bound=FUNCTION,
    leading=_ARRAYS,
    known=frozenset({*_ARRAYS, *_FEATURES}),
    form=Form(to_ours=_unpacked_to_ours, from_ours=_unpacked_from_ours, lengths=(4, 6, 8)),
)
MAIN_BRANCH = Known(
    module="sgl_jax.srt.kernels.ragged_paged_attention.ragged_paged_attention_v3",
    bound=f"{FUNCTION}_v3",
    leading=(*_ARRAYS, "custom_mask", "attention_sink"),
    known=frozenset(
        {*_ARRAYS, *_FEATURES, "custom_mask", "attention_sink", "causal", "xai_temperature_len"}
    ),
    form=Form(to_ours=_to_ours, from_ours=_from_ours, lengths=(4, 6, 8)),
)
KNOWN = (RELEASED, MAIN_BRANCH)

if BACKEND in sys.modules:
    loaded_function()
