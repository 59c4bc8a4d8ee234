"""Launches the blockwise kernel for one family."""

import functools
from typing import Any

import jax

from rpa_kernels import calls
from rpa_kernels.blockwise.account import kernel_name
from rpa_kernels.blockwise.config import BlockwiseConfig
from rpa_kernels.blockwise.kernel import blockwise_kernel
from rpa_kernels.blockwise.scratch import scratch_shapes
from rpa_kernels.problem import Problem
from rpa_kernels.target import Target

# Entries of `distribution` between which a family's sequences lie.
SEQS = {"prefill": (0, 1), "mixed": (1, 2)}


def launch(
    q: jax.Array,
    kv_new: jax.Array,
    kv_cache: jax.Array,
    kv_lens: jax.Array,
    page_indices: jax.Array,
    cu_q_lens: jax.Array,
    distribution: jax.Array,
    *,
    family: str,
    problem: Problem,
    config: BlockwiseConfig,
    target: Target,
    interpret: Any = None,
    sinks: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Attends the sequences of one family.

    Args:
      q: `problem.q_shape`; its buffer becomes the output.
      kv_new: `problem.kv_new_shape`.
      kv_cache: `problem.kv_cache_shape`; updated in place.
      kv_lens: int32[max_num_seqs].
      page_indices: int32[max_num_seqs * pages_per_seq].
      cu_q_lens: int32[max_num_seqs + 1].
      distribution: int32[3].
      family: `prefill` or `mixed`.
      problem: Static shapes and features.
      config: Block sizes that pass `config.check`.
      target: The chip to compile for.
      interpret: None on the chip, else what `pallas_call` takes.
      sinks: float32[num_q_heads] when `problem.has_sinks`.

    Returns:
      (q with the rows of the family's sequences replaced by their output, updated KV cache).
    """
    body = functools.partial(
        blockwise_kernel,
        seqs=SEQS[family],
        problem=problem,
        config=config,
        target=target,
        strided=calls.uses_strided_loads(interpret),
    )
    return calls.call(
        body,
        name=kernel_name(family, problem, config),
        operands=(kv_lens, page_indices, cu_q_lens, distribution, q, kv_new, kv_cache),
        sinks=sinks,
        scratch_shapes=scratch_shapes(problem, config),
        problem=problem,
        target=target,
        interpret=interpret,
    )
