"""Division of non-negative integers by static sizes: Python's, numpy's and jax's, one definition.

`//` and `%` of jax round towards minus infinity and cost sign tests at every use. All lengths
and positions here are non-negative and most sizes are powers of two, so for traced values one
shift or mask does. jax is imported only where a traced value meets another size.
"""

from typing import Any, overload

import numpy as np

Scalar = Any

_ON_HOST = (int, np.integer, np.ndarray)


@overload
def div(value: int, size: int) -> int: ...
@overload
def div(value: Scalar, size: int) -> Scalar: ...
def div(value: Scalar, size: int) -> Scalar:
    """Value // size for value >= 0."""
    if isinstance(value, _ON_HOST):
        return value // size
    if size & (size - 1) == 0:
        return value >> (size.bit_length() - 1)
    import jax.numpy as jnp
    from jax import lax

    return lax.div(value, jnp.asarray(size, value.dtype))


@overload
def rem(value: int, size: int) -> int: ...
@overload
def rem(value: Scalar, size: int) -> Scalar: ...
def rem(value: Scalar, size: int) -> Scalar:
    """Value % size for value >= 0."""
    if isinstance(value, _ON_HOST):
        return value % size
    if size & (size - 1) == 0:
        return value & (size - 1)
    import jax.numpy as jnp
    from jax import lax

    return lax.rem(value, jnp.asarray(size, value.dtype))


@overload
def cdiv(value: int, size: int) -> int: ...
@overload
def cdiv(value: Scalar, size: int) -> Scalar: ...
def cdiv(value: Scalar, size: int) -> Scalar:
    """The least integer at or above value / size, for value >= 0."""
    return div(value + (size - 1), size)
