"""Checks of single values of a table, which may come from elsewhere. Each error names the field."""

import math
from typing import Any

# No size, limit or config field is beyond a 32-bit register.
MAX_INTEGER = 2**31 - 1


def check_finite(what: str, value: Any) -> None:
    """A number that arithmetic can be done with; JSON integers may have thousands of digits.

    Raises:
      ValueError: It is none; so the others, too.
    """
    if type(value) not in (int, float) or abs(value) > MAX_INTEGER or not math.isfinite(value):
        raise ValueError(f"{what}={value!r:.40} is not a finite number")


def check_range(what: str, value: Any, most: float = MAX_INTEGER) -> None:
    """A number that can be what its name says: nothing is below zero, and no time is zero."""
    check_finite(what, value)
    if value < 0 or (value == 0 and what.endswith("_us")):
        raise ValueError(
            f"{what}={value} must be {'above' if what.endswith('_us') else 'at least'} zero"
        )
    if value > most:
        raise ValueError(f"{what}={value} must be at most {most}")


def mapping(what: str, data: Any) -> dict[str, Any]:
    """An object."""
    if not isinstance(data, dict):
        raise ValueError(f"{what} is not an object")
    return data


def check_names(what: str, data: Any, known: set[str]) -> None:
    """An object with these fields and no others."""
    names = set(mapping(what, data))
    if names != known:
        raise ValueError(
            f"{what}: missing {sorted(known - names)}, unknown {sorted(names - known)}"
        )
