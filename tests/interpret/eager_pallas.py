"""Runs the body of a foreign Pallas kernel on NumPy arrays, one statement after the other.

The public kernels reshape and bitcast references, which the TPU interpreter refuses, and copy
ranges of dynamic size, which the plain one refuses. So they are run as what they are, Python:
loops and branches are taken, and a copy is made when it is started. Only the primitives that those
kernels use are there; anything else fails.
"""

import contextlib
import dataclasses
import itertools
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

WORD_BYTES = 4


class Ref:
    """A reference: a view of NumPy memory where packed rows share 32-bit words, as on a TPU."""

    def __init__(self, view: np.ndarray) -> None:
        self.view = view

    @classmethod
    def new(cls, shape: tuple[int, ...], dtype: Any) -> "Ref":
        """Memory that nobody wrote: all ones, which is NaN in most floating-point types."""
        dtype = np.dtype(dtype)
        if dtype.itemsize < WORD_BYTES and shape[-2] * dtype.itemsize == WORD_BYTES:
            memory = np.empty((*shape[:-2], shape[-1], shape[-2]), dtype)
            view = memory.swapaxes(-1, -2)
        else:
            view = memory = np.empty(shape, dtype)
        memory.view(np.uint8)[...] = 0xFF
        return cls(view)

    @classmethod
    def of(cls, array: Any) -> "Ref":
        """Memory that holds `array`."""
        ref = cls.new(array.shape, array.dtype)
        ref.view[...] = np.asarray(array)
        return ref

    @property
    def shape(self) -> tuple[int, ...]:
        return self.view.shape

    @property
    def dtype(self) -> np.dtype:
        return self.view.dtype

    @property
    def at(self) -> "_At":
        return _At(self)

    def reshape(self, *shape: Any) -> "Ref":
        shape = shape[0] if isinstance(shape[0], tuple) else shape
        reshaped = self.view.reshape(shape)
        assert np.shares_memory(reshaped, self.view), "a reference that became a copy"
        return Ref(reshaped)

    def bitcast(self, dtype: Any) -> "Ref":
        """32-bit words: [..., packing, lanes] becomes [..., 1, lanes]."""
        if self.dtype.itemsize == np.dtype(dtype).itemsize:
            return Ref(self.view.view(np.dtype(dtype)))
        assert self.shape[-2] * self.dtype.itemsize == np.dtype(dtype).itemsize == WORD_BYTES
        return Ref(self.view.swapaxes(-1, -2).view(np.dtype(dtype)).swapaxes(-1, -2))

    def __getitem__(self, index: Any) -> Any:
        value = self.view[_index(index)]
        return value if value.ndim == 0 else jnp.asarray(value)

    def __setitem__(self, index: Any, value: Any) -> None:
        assert np.ndim(value) == 0 or value.dtype == self.dtype, (value.dtype, self.dtype)
        self.view[_index(index)] = np.asarray(value)


@dataclasses.dataclass(frozen=True)
class _At:
    ref: Ref

    def __getitem__(self, index: Any) -> Ref:
        return Ref(self.ref.view[_index(index)])


def _index(index: Any) -> Any:
    """A NumPy index for a Pallas one; starts are bounds-checked, as NumPy does not do."""

    def one(i: Any) -> Any:
        if isinstance(i, slice) or i is Ellipsis:
            return i
        if isinstance(i, pl.Slice):
            start, size = int(i.start), int(i.size)
            assert min(start, size) >= 0, f"a slice of {size} from {start}"
            return slice(start, start + size * i.stride, i.stride)
        return int(i)

    return tuple(one(i) for i in index) if isinstance(index, tuple) else one(index)


@dataclasses.dataclass(frozen=True)
class _Copy:
    source: Ref
    target: Ref

    def start(self) -> None:
        self.target.view[...] = self.source.view

    def wait(self) -> None:
        assert self.source.shape == self.target.shape


def _loop(lower: Any, upper: Any, **_: Any) -> Callable[[Any], None]:
    def run(body: Any) -> None:
        for i in range(int(lower), int(upper)):
            body(np.int32(i))

    return run


def _fori_loop(lower: Any, upper: Any, body: Any, init: Any, **_: Any) -> Any:
    for i in range(int(lower), int(upper)):
        init = body(np.int32(i), init)
    return init


def _when(condition: Any) -> Callable[[Any], None]:
    return lambda body: body() if bool(condition) else None


def _bitcast(value: Any, dtype: Any) -> jax.Array:
    """`pltpu.bitcast`: rows that share a word are the narrow type's second-minor dimension."""
    value, dtype = np.asarray(value), np.dtype(dtype)
    if value.dtype.itemsize == dtype.itemsize:
        return jnp.asarray(value.view(dtype))
    *major, rows, lanes = value.shape
    if dtype.itemsize > value.dtype.itemsize:
        packing = dtype.itemsize // value.dtype.itemsize
        words = value.reshape(*major, rows // packing, packing, lanes).swapaxes(-1, -2)
        return jnp.asarray(np.ascontiguousarray(words).view(dtype)[..., 0])
    packing = value.dtype.itemsize // dtype.itemsize
    parts = value[..., None].view(dtype).swapaxes(-1, -2)
    return jnp.asarray(parts.reshape(*major, rows * packing, lanes))


def _pallas_call(kernel: Any, *, out_shape: Any, grid_spec: Any, input_output_aliases: Any,
                 **_: Any) -> Callable[..., Any]:  # fmt: skip
    def run(*operands: Any) -> Any:
        inputs = [None if x is None else Ref.of(x) for x in operands]
        sources = {out: into for into, out in input_output_aliases.items()}
        outputs = [inputs[sources[i]] for i in range(len(out_shape))]
        scratch = [_scratch(shape) for shape in grid_spec.scratch_shapes]
        sizes = [int(size) for size in grid_spec.grid]
        for ids in itertools.product(*map(range, sizes)):
            with (
                mock.patch.object(pl, "program_id", lambda axis, ids=ids: np.int32(ids[axis])),
                mock.patch.object(pl, "num_programs", lambda axis: np.int32(sizes[axis])),
            ):
                kernel(*inputs, *outputs, *scratch)
        return [jnp.asarray(output.view) for output in outputs]

    return run


def _scratch(shape: Any) -> Any:
    if "sem" in str(shape.dtype):
        return Ref(np.zeros(shape.shape, np.int32))
    return Ref.new(shape.shape, shape.dtype)


@contextlib.contextmanager
def eager_pallas() -> Iterator[None]:
    """Within, `pl.pallas_call` runs kernels at once; jit is off."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(jax.disable_jit())
        for module, name, stand_in in (
            (pl, "pallas_call", _pallas_call),
            (pl, "loop", _loop),
            (pl, "when", _when),
            (jax.lax, "fori_loop", _fori_loop),
            (pltpu, "make_async_copy", lambda source, target, sem: _Copy(source, target)),
            (pltpu, "bitcast", _bitcast),
            (pltpu, "roll", jnp.roll),
            (pltpu, "reciprocal", lambda x, approx: 1 / x),
            (pltpu, "with_memory_space_constraint", lambda x, space: x),
        ):
            stack.enter_context(mock.patch.object(module, name, stand_in, create=True))
        yield
