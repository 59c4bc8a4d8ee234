"""The public RPA v3 call, with a plan in place of block sizes.

Arguments, meaning and refusals are those of the public function (`call.py`); what this call adds
is `plan` and `interpret`, and the `attention_sink` of the public hd64 function for every head_dim.
"""

import functools
from typing import Any, Unpack

import jax

from rpa_tune.dispatch.call import Arrays, Features
from rpa_tune.dispatch.dispatcher import Dispatcher, load_dispatcher
from rpa_tune.dispatch.plan import LaunchPlan
from rpa_tune.dispatch.runtime import Planner, attend


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
    **features: Unpack[Features],
) -> tuple[jax.Array, jax.Array]:
    """Ragged paged attention over decode, prefill and mixed sequences of one batch.

    Donates what the public functions donate: the cache is updated in its own place, and the output
    takes that of the queries (not for head_dim 64).

    Args:
      queries: [max_num_tokens, num_q_heads, head_dim], bfloat16 or float32.
      keys: New keys, [max_num_tokens, num_kv_heads, head_dim] in the cache's dtype.
      values: New values, the same shape.
      kv_cache: [num_pages, page_size, packed heads, packing, padded head_dim].
      kv_lens: int32[max_num_seqs], contexts in tokens, new tokens included.
      page_indices: int32[max_num_seqs * pages_per_seq].
      cu_q_lens: int32[max_num_seqs + 1].
      distribution: int32[3], (end of decode, end of prefill, number of sequences).
      attention_sink: float32[num_q_heads], or None.
      plan: From `Dispatcher.plan`, static to `jit`; or a `Dispatcher` to plan with; or None for
        that of the attached TPU. They plan for this step's lengths when the four metadata arrays
        are NumPy's, else for a full step of every family.
      interpret: None to run on the TPU, or `pltpu.InterpretParams`.
      features: See `Features`.

    Returns:
      (output [max_num_tokens, num_q_heads, head_dim], updated KV cache). Rows of the output past
      the last sequence mean nothing.

    Raises:
      TypeError: A keyword that the public function does not have.
      ValueError: Shapes, dtypes, features or, in NumPy metadata, lengths that cannot be; or a
        plan for something else.
      UsageError: No plan, and no TPU.
    """
    arrays = Arrays(
        queries, keys, values, kv_cache, kv_lens, page_indices, cu_q_lens, distribution,
        attention_sink,
    )  # fmt: skip
    if isinstance(plan, LaunchPlan):
        return attend(arrays, plan=plan, interpret=interpret, **features)
    planner = plan or _attached_dispatcher()
    return attend(arrays, plan=planner, compiled=planner.compiled, interpret=interpret, **features)


@functools.cache
def _attached_dispatcher() -> Dispatcher:
    return load_dispatcher()
