"""Functions with Pallas calls, as a user writes them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu


def _add_rows(starts_ref, x_ref, out_ref, *, repeats):
    def add(i, total):
        return total + x_ref[...]

    start = starts_ref[pl.program_id(0)]
    out_ref[...] = jax.lax.fori_loop(start, start + repeats, add, jnp.zeros_like(x_ref))


def _double(x_ref, out_ref):
    out_ref[...] = x_ref[...] * 2


def _call(starts, x, repeats, name=None):
    spec = pl.BlockSpec((8, 128), lambda i, starts: (i, 0))
    return pl.pallas_call(
        functools.partial(_add_rows, repeats=repeats),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1, grid=(x.shape[0] // 8,), in_specs=[spec], out_specs=spec
        ),
        out_shape=jax.ShapeDtypeStruct(x.shape, x.dtype),
        name=name,
    )(starts, x)


@jax.jit
def derived(lens, x):
    """Its scalars are computed from the lengths."""
    return _call(jnp.cumsum(lens).astype(jnp.int32), x, 3, "rows")


def plain(starts, x, repeats=4):
    """Its scalars are an argument."""
    return _call(starts, x, repeats)


def chosen(which, starts, x):
    """A branch is taken by a value."""
    return jax.lax.cond(
        which > 0, lambda: _call(starts, x, 1, "first"), lambda: _call(starts, x, 2, "second")
    )


def looped(starts, x):
    """One launch a trip, of scalars that do not change and of those that do."""

    def body(carry, step):
        carry = _call(starts, carry, 1, "steady")
        return _call(starts + step, carry, 1, "changing"), None

    return jax.lax.scan(body, x, jnp.arange(3))[0]


def twice(x):
    """Two calls of one name; the second takes what the first made."""
    shape = jax.ShapeDtypeStruct(x.shape, x.dtype)
    double = pl.pallas_call(_double, out_shape=shape)
    return double(double(x))


def refused(x):
    """Blocks that no TPU takes."""
    spec = pl.BlockSpec((3, 5), lambda i: (i, 0))
    shape = jax.ShapeDtypeStruct(x.shape, x.dtype)
    return pl.pallas_call(_double, grid=(5,), in_specs=[spec], out_specs=spec, out_shape=shape)(x)


def none(x):
    """No Pallas call."""
    return x + 1


def broken(x):
    """Raises."""
    raise ValueError(f"cannot take {x.shape}")


def tree(weights, *, block):
    """A tree of arrays, and a Python value."""
    assert isinstance(block, int)
    return _call(weights["starts"], weights["x"], block)


def made():
    """Arguments of `plain`."""
    return (np.array([5], np.int32), jax.ShapeDtypeStruct((8, 128), jnp.float32)), {"repeats": 2}


NOT_A_FUNCTION = 3
