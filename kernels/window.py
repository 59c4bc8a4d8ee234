"""Where a sliding window begins. No jax.

One formula for the account (Python's integers), the partition among cores (numpy, or jax.numpy
ahead of the kernel) and the kernel's scalar unit, each with its own operators.
"""

import operator
from collections.abc import Callable
from typing import Any

from rpa_kernels.problem import Problem

Scalar = Any


def window_start(
    first_q_pos: Scalar,
    problem: Problem,
    *,
    maximum: Callable[[Scalar, int], Scalar] = max,
    floordiv: Callable[[Scalar, int], Scalar] = operator.floordiv,
) -> Scalar:
    """First position that a query at `first_q_pos` sees, rounded down to a page; 0 if all.

    Args:
      first_q_pos: Position of the first query, tokens; a number or an array of them.
      problem: Says how far a query looks back, and how long a page is.
      maximum: Larger of two values.
      floordiv: Quotient of a value and a page size, rounded down.
    """
    if problem.sliding_window is None:
        return 0
    first = maximum(first_q_pos + 1 - problem.sliding_window, 0)
    return floordiv(first, problem.page_size) * problem.page_size
