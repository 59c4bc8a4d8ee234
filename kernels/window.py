"""How far back a query looks: over everything, a sliding window, or its own chunk. No jax.

The one place that knows. One formula for the account (Python's integers), the partition among cores
and the page runs (numpy, or jax.numpy ahead of the kernel), the kernel's scalar unit and its masks,
each with its own operators.

    sliding_window 4                    attention_chunk_size 4
    keys     0 1 2 3 4 5 6 7            keys     0 1 2 3 4 5 6 7
    query 5      x x x x                query 5          x x
    query 6        x x x x              query 6          x x x
"""

import operator
from collections.abc import Callable
from typing import Any

from rpa_kernels.ints import rem
from rpa_kernels.problem import Problem

Scalar = Any


def last_hidden(q_pos: Scalar, problem: Problem) -> Scalar:
    """Position of the last key that a query is too late to see; None where there is no such key.

    Args:
      q_pos: Position of the query, tokens; a number or an array of them.
      problem: Says how far a query looks back.

    Returns:
      Below zero for a query that sees everything before it.
    """
    if problem.sliding_window is not None:
        return q_pos - problem.sliding_window
    if problem.attention_chunk_size is not None:
        return q_pos - rem(q_pos, problem.attention_chunk_size) - 1
    return None


def end_of_sight(k_pos: Scalar, problem: Problem) -> Scalar:
    """Position of the first query that is too late to see a key; None where there is no such query.

    Args:
      k_pos: Position of the key, tokens; a number or an array of them.
      problem: Says how far a query looks back.
    """
    if problem.sliding_window is not None:
        return k_pos + problem.sliding_window
    if problem.attention_chunk_size is not None:
        return k_pos - rem(k_pos, problem.attention_chunk_size) + problem.attention_chunk_size
    return None


def newest_sees_from(kv_len: Scalar, problem: Problem) -> Scalar:
    """First position that the last query of a context sees, maybe below zero; None if all.

    Args:
      kv_len: Tokens of the context; a number or an array of them.
      problem: Says how far a query looks back.
    """
    if problem.sliding_window is not None:
        return kv_len - problem.sliding_window  # not three operations of a kernel's scalar unit
    hidden = last_hidden(kv_len - 1, problem)
    return None if hidden is None else hidden + 1


def first_seen(
    q_pos: Scalar, problem: Problem, *, maximum: Callable[[Scalar, int], Scalar] = max
) -> Scalar:
    """First position that a query at `q_pos` sees; 0 if all.

    Args:
      q_pos: Position of the query, tokens; a number or an array of them.
      problem: Says how far a query looks back.
      maximum: Larger of two values.
    """
    hidden = last_hidden(q_pos, problem)
    return 0 if hidden is None else maximum(hidden + 1, 0)


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
    if problem.reach_tokens is None:
        return 0
    first = first_seen(first_q_pos, problem, maximum=maximum)
    return floordiv(first, problem.page_size) * problem.page_size
