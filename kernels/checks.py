"""What a number that a caller gives may be. No jax."""

import numbers

MAX_INT32 = 2**31 - 1
MAX_FLOAT32 = 3.4e38


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


def check_chunk(size: object, window: int | None, causal: bool) -> None:
    """Refuses an `attention_chunk_size` that is no size, or that others of its features exclude.

    Raises:
      ValueError: No whole number, a window beside it, or no causal mask.
    """
    check_whole("attention_chunk_size", size)
    if window is not None:
        raise ValueError(
            f"attention_chunk_size={size} and sliding_window={window}: "
            "a query looks back over a chunk or a window, not both"
        )
    if not causal:
        raise ValueError(f"attention_chunk_size={size} needs a causal mask")
