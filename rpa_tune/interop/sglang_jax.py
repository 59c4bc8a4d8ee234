"""Stands in for the attention function of sglang-jax, and proves that the engine really calls it.

```
stand_in = install(load_dispatcher())
with stand_in.expect_calls():
    worker.run_precompile()
```

The engine's call differs from ours in four ways, all mended here when it is traced:

* The cache is [pages, page_size, 2 * KV heads, padded head_dim]; ours has the heads in packs.
* The page list is ragged: a sequence's pages start at `cu_kv_lens[i] // page_size`.
* Decode steps call every sequence mixed; leading sequences of one token go to the decode kernel.
* The updated cache comes back without its page axis.

An engine that is loaded and whose function has drifted is refused when this module is imported.
"""

import functools
import importlib
import sys
from typing import Any

import jax
import jax.numpy as jnp

from rpa_kernels import layout
from rpa_kernels.ints import cdiv
from rpa_tune.dispatch.attention import ragged_paged_attention
from rpa_tune.dispatch.call import Features
from rpa_tune.dispatch.dispatcher import Dispatcher
from rpa_tune.errors import UsageError
from rpa_tune.interop.stand_in import StandIn, check_drift

VERSION = "0.0.2"  # of sglang-jax, whose function is known
KERNEL = "sgl_jax.srt.layers.attention.flash_attn_kernel.flash_attention"
BACKEND = "sgl_jax.srt.layers.attention.flashattention_backend"
FUNCTION = "ragged_paged_attention"
LEADING = (
    "queries", "keys", "values", "kv_cache_fused", "kv_lens", "page_indices", "cu_q_lens",
    "cu_kv_lens", "distribution",
)  # fmt: skip
_IGNORED = {"num_kv_pages_per_block", "num_queries_per_block"}
_KNOWN = {*LEADING, *Features.__annotations__, *_IGNORED}


def install(dispatcher: Dispatcher, *, interpret: Any = None) -> StandIn:
    """Replaces the attention function of sglang-jax, whose backend is imported if it is not yet.

    Args:
      dispatcher: Plans every call from its tables when it is traced.
      interpret: None to run on the TPU, or `pltpu.InterpretParams`.

    Raises:
      UsageError: sglang-jax does not import, its signature has drifted, or its backend does not
        hold the function that it calls.
    """
    try:
        importlib.import_module(BACKEND)
    except ImportError as error:
        raise UsageError(
            f"sglang-jax does not import: {error}",
            where=BACKEND,
            hint=f"rpa-tune supports sglang-jax {VERSION}",
        ) from error
    function = getattr(sys.modules.get(KERNEL), FUNCTION, None)
    check_signature(function)
    stand_in = StandIn()
    stand_in.replace(function, functools.partial(_attend, dispatcher, interpret), "sgl_jax")
    if f"{BACKEND}.{FUNCTION}" not in stand_in.places:
        places = ", ".join(stand_in.places)
        stand_in.uninstall()
        raise UsageError(
            f"{BACKEND} does not hold the function that it calls",
            where=places,
            hint=f"rpa-tune supports sglang-jax {VERSION}",
        )
    return stand_in


def check_signature(function: Any) -> None:
    """Refuses a function that the stand-in could not take the place of.

    Raises:
      UsageError: It is gone, its arrays come in another order, or it has an unknown parameter.
    """
    check_drift(
        function, f"{KERNEL}.{FUNCTION}", leading=LEADING, known=_KNOWN,
        hint=f"rpa-tune supports sglang-jax {VERSION}",
    )  # fmt: skip


def _attend(
    dispatcher: Dispatcher,
    interpret: Any,
    queries: jax.Array,
    keys: jax.Array,
    values: jax.Array,
    kv_cache_fused: jax.Array,
    *metadata: jax.Array,
    **features: Any,
) -> tuple[jax.Array, jax.Array]:
    """One call of the engine, by our kernels.

    Args:
      dispatcher: Plans.
      interpret: See `install`.
      queries: [tokens, num_q_heads, head_dim].
      keys: [tokens, num_kv_heads, head_dim].
      values: The same.
      kv_cache_fused: [pages, page_size, 2 * num_kv_heads, padded head_dim], K and V alternating.
      metadata: The int32 arrays from `kv_lens` on, in the order of `LEADING`.
      features: Keyword arguments of the engine's function.

    Returns:
      (output [tokens, num_q_heads, head_dim], cache [slots, 2 * num_kv_heads, head_dim]).
    """
    kv_lens, page_indices, cu_q_lens, cu_kv_lens, distribution = metadata
    num_heads, page_size = kv_cache_fused.shape[2], kv_cache_fused.shape[1]
    known = {name: value for name, value in features.items() if name not in _IGNORED}
    out, cache = ragged_paged_attention(
        queries,
        keys,
        values,
        _in_packs(kv_cache_fused),
        kv_lens,
        page_table(page_indices, cu_kv_lens, page_size),
        cu_q_lens,
        decode_first(cu_q_lens, distribution),
        plan=dispatcher,
        interpret=interpret,
        **known,
    )
    slots = cache.reshape(-1, cache.shape[2] * cache.shape[3], cache.shape[4])
    return out, slots[:, :num_heads, : queries.shape[2]]


def _in_packs(cache: jax.Array) -> jax.Array:
    """[pages, page_size, heads, head_dim] with heads in packs of a word, padded if need be."""
    pages, page_size, num_heads, head_dim = cache.shape
    pack = layout.packing(str(cache.dtype))
    rows, lanes = cdiv(num_heads, pack), layout.align(head_dim, layout.LANES)
    spare = ((0, 0), (0, 0), (0, rows * pack - num_heads), (0, lanes - head_dim))
    return jnp.pad(cache, spare).reshape(pages, page_size, rows, pack, lanes)


def page_table(page_indices: jax.Array, cu_kv_lens: jax.Array, page_size: int) -> jax.Array:
    """A ragged page list as a table of equal rows, flat.

    A row holds as many pages as the list has for each sequence: the engine pads the list to the
    longest request times the number of sequences (`precompile_cache_loc_paddings` in
    `srt/managers/tp_worker.py`), so no sequence has more.

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


if KERNEL in sys.modules:
    check_signature(getattr(sys.modules[KERNEL], FUNCTION, None))
