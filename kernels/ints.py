"""Division of non-negative scalars by static sizes, cheap on the scalar unit.

`//` and `%` of jax round towards minus infinity and cost sign tests at every use. All lengths
and positions here are non-negative and most sizes are powers of two, so one shift or mask does.
"""

from typing import Any

import jax.numpy as jnp
from jax import lax

Scalar = Any


def div(value: Scalar, size: int) -> Scalar:
    """Value // size for value >= 0."""
    if isinstance(value, int):
        return value // size
    if size & (size - 1) == 0:
        return value >> (size.bit_length() - 1)
    return lax.div(value, jnp.asarray(size, value.dtype))


def rem(value: Scalar, size: int) -> Scalar:
    """Value % size for value >= 0."""
    if isinstance(value, int):
        return value % size
    if size & (size - 1) == 0:
        return value & (size - 1)
    return lax.rem(value, jnp.asarray(size, value.dtype))


def cdiv(value: Scalar, size: int) -> Scalar:
    """The least integer at or above value / size, for value >= 0."""
    return div(value + (size - 1), size)
