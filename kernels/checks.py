"""What a number that a caller gives may be, and which features go together. No jax."""

import numbers
from typing import Any

MAX_INT32 = 2**31 - 1
MAX_FLOAT32 = 3.4e38
MAX_DECODE_QUERY = 8  # new tokens of a sequence in decode


def check_whole(name: str, value: object) -> None:
    """Refuses what is no size or length.

    Raises:
      ValueError: No whole number, or one that is not in 1..2**31-1.
    """
    if not is_number(value, numbers.Integral):
        raise ValueError(f"{name}={value!r} must be a whole number, known when compiling")
    if value < 1:  # type: ignore[operator]
        raise ValueError(f"{name}={value} must be at least 1")
    if value > MAX_INT32:  # type: ignore[operator]
        raise ValueError(f"{name}={value} must be at most {MAX_INT32}")


def check_mask_value(value: object) -> None:
    """Refuses what is no number; any is without effect, infinities too.

    Raises:
      ValueError: No number.
    """
    if not is_number(value, numbers.Real) or value != value:
        raise ValueError(f"mask_value={value!r} must be a number, known when compiling")


def is_number(value: object, kind: type) -> bool:
    """Whether a value is a number of a kind, NumPy's among them; a bool is none."""
    return isinstance(value, kind) and not isinstance(value, bool)


def check_finite(name: str, value: object) -> None:
    """Refuses what is no number of float32.

    Raises:
      ValueError: No number, or one that float32 cannot hold.
    """
    is_real = type(value) is float or is_number(value, numbers.Real)
    if not is_real or not abs(value) <= MAX_FLOAT32:  # type: ignore[arg-type]
        raise ValueError(f"{name}={value!r} must be a finite number, known when compiling")


def check_chunk(problem: Any) -> None:
    """Refuses chunks that are no size, and beside a window or without a causal mask.

    Args:
      problem: A `Problem` in the making.

    Raises:
      ValueError: The first thing that is wrong.
    """
    size = problem.attention_chunk_size
    if size is None:
        return
    check_whole("attention_chunk_size", size)
    if problem.sliding_window is not None:
        raise ValueError(
            f"attention_chunk_size={size} and sliding_window={problem.sliding_window}: "
            "a query looks back over a chunk or a window, not both"
        )
    if not problem.causal:
        raise ValueError(f"attention_chunk_size={size} needs a causal mask")


def check_decode(problem: Any) -> None:
    """Refuses more new tokens in decode than it serves, and a tree of them where it means nothing.

    Args:
      problem: A `Problem` in the making.

    Raises:
      ValueError: Too many; or a tree mask with one token, no causal mask, or a window or chunk.
    """
    size = problem.decode_query_size
    if size > MAX_DECODE_QUERY:
        raise ValueError(f"decode_query_size={size} must be at most {MAX_DECODE_QUERY}")
    if not problem.has_tree_mask:
        return
    if size == 1 or not problem.causal or problem.reach_tokens is not None:
        raise ValueError(
            f"has_tree_mask needs decode_query_size above 1 (got {size}), a causal mask, and "
            "neither window nor chunk, for which a tree's tokens have no positions here"
        )
