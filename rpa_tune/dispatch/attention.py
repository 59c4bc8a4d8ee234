"""The public RPA v3 call, with a plan in place of block sizes.

Arguments, meaning and refusals are those of the public function (`call.py`); what this call adds
is `plan` and `interpret`, and the `attention_sink` of the public hd64 function for every head_dim.
"""

import functools
from typing import Any, Unpack

import jax
import jax.numpy as jnp
import numpy as np

from rpa_kernels import runs
from rpa_kernels.batch import BatchArrays
from rpa_kernels.problem import Problem
from rpa_kernels.settings import under_defaults
from rpa_tune.dispatch.call import Arrays, Features
from rpa_tune.dispatch.dispatcher import Dispatcher, load_dispatcher
from rpa_tune.dispatch.mla_call import LatentArrays, LatentFeatures
from rpa_tune.dispatch.plan import LaunchPlan
from rpa_tune.dispatch.runtime import Planner, attend, attend_latent


def ragged_paged_attention(
    queries: jax.Array,
    keys: jax.Array,
    values: jax.Array,
    kv_cache: jax.Array,
    kv_lens: jax.Array,
    page_indices: jax.Array,
    cu_q_lens: jax.Array,
    distribution: jax.Array,
    attention_sink: jax.Array | None = None,
    *,
    plan: LaunchPlan | Planner | None = None,
    interpret: Any = None,
    page_runs: jax.Array | None = None,
    tree_mask: jax.Array | None = None,
    **features: Unpack[Features],
) -> tuple[jax.Array, ...]:
    """Ragged paged attention over decode, prefill and mixed sequences of one batch.

    Donates what the public functions donate: the cache is updated in its own place, and the output
    takes that of the queries (not for head_dim 64).

    Args:
      queries: [max_num_tokens, num_q_heads, head_dim], bfloat16 or float32.
      keys: New keys, [max_num_tokens, num_kv_heads, head_dim] in the cache's dtype.
      values: New values, the same shape.
      kv_cache: [num_pages, page_size, packed heads, packing, padded head_dim]; with
        `kv_layout="seq_along_lane"` [num_pages, 2 * KV heads, words, packing, page_size].
      kv_lens: int32[max_num_seqs], contexts in tokens, new tokens included.
      page_indices: int32[max_num_seqs * pages_per_seq].
      cu_q_lens: int32[max_num_seqs + 1].
      distribution: int32[3], (end of decode, end of prefill, number of sequences).
      attention_sink: float32[num_q_heads], or None.
      plan: From `Dispatcher.plan`, static to `jit`; or a `Dispatcher` to plan with; or None for
        that of the attached TPU. They plan for this step's lengths when the four metadata arrays
        are NumPy's, else for a full step of every family.
      interpret: None to run on the TPU, or `pltpu.InterpretParams`.
      page_runs: What the function of this name made of this step's lengths and pages, for all
        layers with one window or chunk; None to make it here. It is not checked against them.
      tree_mask: int32[max_num_tokens], for sequences in the decode slot whose new tokens are a tree
        of drafts: bit j of a token says that it sees new token j of its sequence (itself it sees
        always, and every cached token). None for a causal mask. With a `decode_query_size` above 1,
        a causal mask and no window or chunk; sequences in other slots stay causal.
      features: See `Features`.

    Returns:
      (output [max_num_tokens, num_q_heads, head_dim], updated KV cache), and with `return_lse`
      float32[max_num_tokens, num_q_heads] as the third, minus infinity where nothing was seen. Rows
      of the output past the last sequence mean nothing.

    Raises:
      TypeError: A keyword that is none of `Features`.
      ValueError: Shapes, dtypes, features or, in NumPy metadata, lengths that cannot be; or a
        plan for something else.
      UsageError: No plan, and no TPU.
    """
    arrays = Arrays(
        queries, keys, values, kv_cache, kv_lens, page_indices, cu_q_lens, distribution,
        attention_sink, tree_mask,
    )  # fmt: skip
    if isinstance(plan, LaunchPlan):
        return attend(arrays, plan=plan, interpret=interpret, page_runs=page_runs, **features)
    planner = plan or _attached_dispatcher()
    return attend(
        arrays, plan=planner, compiled=planner.compiled, interpret=interpret, page_runs=page_runs,
        **features,
    )  # fmt: skip


def mla_ragged_paged_attention(
    ql_nope: jax.Array,
    q_pe: jax.Array,
    new_kv_c: jax.Array,
    new_k_pe: jax.Array,
    cache_kv: jax.Array,
    kv_lens: jax.Array,
    page_indices: jax.Array,
    cu_q_lens: jax.Array,
    distribution: jax.Array,
    *,
    plan: LaunchPlan | Planner | None = None,
    interpret: Any = None,
    page_runs: jax.Array | None = None,
    **features: Unpack[LatentFeatures],
) -> tuple[jax.Array, ...]:
    """Multi-head latent attention, absorbed, over decode, prefill and mixed sequences of one batch.

    The call of `mla_ragged_paged_attention` of tpu-inference 0.32.0, mla/v2, whose cache it takes
    and gives. Donates the cache, as there: it is updated in its own place.

    Args:
      ql_nope: Queries times each head's key matrix, [num_q_heads, max_num_tokens, kv_lora_rank];
        bfloat16, float32 or float8.
      q_pe: Their rope parts, [max_num_tokens, num_q_heads, rope_dim] in the same dtype.
      new_kv_c: New latents, [max_num_tokens, kv_lora_rank] in the cache's dtype.
      new_k_pe: New rope rows, [max_num_tokens, rope_dim] in the cache's dtype.
      cache_kv: [num_pages, page_size / kv_packing, kv_packing, lanes]: latents and rope rows side
        by side, each padded to 128 lanes.
      kv_lens: int32[max_num_seqs], contexts in tokens, new tokens included.
      page_indices: int32[max_num_seqs * pages_per_seq].
      cu_q_lens: int32[max_num_seqs + 1].
      distribution: int32[3], (end of decode, end of prefill, number of sequences).
      plan: As in `ragged_paged_attention`.
      interpret: As there.
      page_runs: As there.
      features: See `LatentFeatures`.

    Returns:
      (output [num_q_heads, max_num_tokens, kv_lora_rank] in the dtype of the queries, updated
      cache). Rows of the output past the last sequence mean nothing.

    Raises:
      TypeError: A keyword that is none of `LatentFeatures`.
      ValueError: Shapes, dtypes, features or, in NumPy metadata, lengths that cannot be; or a
        plan for something else.
      UsageError: No plan, and no TPU.
    """
    arrays = LatentArrays(
        ql_nope, q_pe, new_kv_c, new_k_pe, cache_kv, kv_lens, page_indices, cu_q_lens, distribution
    )
    compiled = None
    if not isinstance(plan, LaunchPlan):
        plan = plan or _attached_dispatcher()
        compiled = plan.compiled
    return attend_latent(
        arrays, plan=plan, compiled=compiled, interpret=interpret, page_runs=page_runs, **features
    )


@under_defaults
def page_runs(kv_lens: Any, page_indices: Any, cu_q_lens: Any, problem: Problem) -> Any:
    """Where pages of a step follow each other, which kernels then copy at once.

    Every call of `ragged_paged_attention` makes this of its arguments, in some small operations of
    XLA, which a program of many layers has once if the compiler finds that they are the same. An
    engine that wants to be sure, or to make it on the host beside the page table, calls this once
    a step, and passes the result to the calls of all layers with the problem's `sliding_window`,
    `attention_chunk_size`, `use_causal_mask` and `update_kv_cache`.

    Args:
      kv_lens: int32[max_num_seqs], of NumPy or jax.
      page_indices: int32[max_num_seqs * pages_per_seq], likewise.
      cu_q_lens: int32[max_num_seqs + 1], likewise.
      problem: The layers' problem; its sizes are those of the arrays.

    Returns:
      int32[max_num_seqs * pages_per_seq], of NumPy if all arguments are, else of jax.

    Raises:
      ValueError: The arrays are not those of the problem.
    """
    for name, array, size in (
        ("kv_lens", kv_lens, problem.max_num_seqs),
        ("page_indices", page_indices, problem.max_num_seqs * problem.pages_per_seq),
        ("cu_q_lens", cu_q_lens, problem.max_num_seqs + 1),
    ):
        if array.shape != (size,) or array.dtype != jnp.int32:
            raise ValueError(
                f"{name} is {array.dtype}{array.shape}, must be int32({size},) for this problem"
            )
    on_host = all(isinstance(array, np.ndarray) for array in (kv_lens, page_indices, cu_q_lens))
    arrays = BatchArrays(
        kv_lens=kv_lens, page_indices=page_indices, cu_q_lens=cu_q_lens,
        distribution=np.zeros(3, np.int32),  # runs are the same whatever family serves a sequence
    )  # fmt: skip
    return runs.pack(arrays, problem.without_idle_window(), np if on_host else jnp)


@functools.cache
def _attached_dispatcher() -> Dispatcher:
    return load_dispatcher()
