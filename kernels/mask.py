"""Which keys a query row sees, for one block; on values.

A masked score is replaced by `MASKED` whatever `Problem.mask_value` says: that is a number meant
to be lost in the softmax, and every row sees at least one key, so the answer is the same. (A value
that is not lost makes the public kernel's answer depend on its block sizes.)
"""

from typing import Any

import jax
import jax.numpy as jnp

from rpa_kernels.online_softmax import MASKED
from rpa_kernels.problem import Problem
from rpa_kernels.window import last_hidden

Scalar = Any


def mask_scores(
    s: jax.Array, q_pos: jax.Array, k_start: Scalar, k_end: Scalar, problem: Problem
) -> jax.Array:
    """Replaces the scores of keys that a row must not see.

    Args:
      s: float32[rows, keys].
      q_pos: int32[rows, 1], position of each row's query; or a scalar, that of all.
      k_start: Position of the first key.
      k_end: Position after the last key that exists.
      problem: Says whether attention is causal and how far a query looks back.
    """
    k_pos = k_start + jax.lax.broadcasted_iota(jnp.int32, s.shape, 1)
    # A causal query is itself an existing key, so its position bounds the keys by itself.
    last = jnp.minimum(q_pos, k_end - 1) if problem.causal else k_end - 1
    seen = k_pos <= last
    hidden = last_hidden(q_pos, problem)
    if hidden is not None:
        seen &= k_pos > hidden
    return jnp.where(seen, s, MASKED)
