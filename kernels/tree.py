"""The mask of a tree of drafts: which new tokens of its sequence each new token sees.

Verification of drafts that branch has several tokens at one position. All see the cached tokens and
themselves, and of the other new ones their ancestors. A mask is a word a token, int32; bit j says
that it sees new token j of its sequence. Only sequences in the decode slot have one.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rpa_kernels.batch import BatchArrays
from rpa_kernels.problem import Problem


def check(tree_mask: jax.Array | None, problem: Problem) -> None:
    """Refuses a tree mask that is missing, unexpected, or not a word a token.

    Raises:
      ValueError: Says which.
    """
    if (tree_mask is not None) != problem.has_tree_mask:
        raise ValueError(f"has_tree_mask={problem.has_tree_mask}, but tree_mask is {tree_mask}")
    if tree_mask is None:
        return
    if tree_mask.shape != (problem.max_num_tokens,) or tree_mask.dtype != jnp.int32:
        raise ValueError(
            f"tree_mask is {tree_mask.dtype}{tree_mask.shape}, not int32({problem.max_num_tokens},)"
        )


def sees_new(seq: int, index: Any, arrays: BatchArrays, tree_mask: Any) -> np.ndarray[Any, Any]:
    """Whether each new token of a sequence sees each: by the mask in decode, else causal.

    Args:
      seq: Sequence.
      index: 0, 1, ... as many as the longest sequence has new tokens.
      arrays: Of the launch.
      tree_mask: int32[max_num_tokens].
    """
    row, column = index[:, None], index[None]
    if seq >= int(arrays.distribution[0]):
        return np.asarray(column <= row)
    bits = np.asarray(tree_mask)
    own = bits[np.minimum(arrays.cu_q_lens[seq] + row, len(bits) - 1)]
    return np.asarray((column == row) | ((own >> np.minimum(column, 31)) & 1 == 1))


def draw(problem: Problem, rng: np.random.Generator) -> jax.Array | None:
    """Any bits, also of tokens that come later or that there are none of; None without a mask."""
    if not problem.has_tree_mask:
        return None
    return jnp.asarray(rng.integers(-(2**31), 2**31, problem.max_num_tokens), jnp.int32)
