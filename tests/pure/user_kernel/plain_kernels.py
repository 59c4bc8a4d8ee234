"""Pallas kernels as users write them: pipelined blocks, own copies, scalars that decide.

None switches bounds checks off, so that the compiler puts one in front of every copy.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

F32, BF16 = jnp.float32, jnp.bfloat16
Shape = jax.ShapeDtypeStruct
ANY, SMEM = pl.BlockSpec(memory_space=pl.ANY), pl.BlockSpec(memory_space=pltpu.SMEM)


def _words(*values):
    return np.array(values, np.int32)


def scale(x):
    """Blocks of rows."""

    def body(x_ref, out_ref):
        out_ref[...] = x_ref[...] * 2

    spec = pl.BlockSpec((128, 256), lambda i: (i, 0))
    shape = Shape(x.shape, x.dtype)
    return pl.pallas_call(body, grid=(16,), in_specs=[spec], out_specs=spec, out_shape=shape)(x)


def matmul(a, b):
    """A grid of three axes, two of them parallel, and sums in scratch."""
    kind = jnp.int32 if a.dtype == jnp.int8 else F32

    def body(a_ref, b_ref, out_ref, sum_ref):
        @pl.when(pl.program_id(2) == 0)
        def _():
            sum_ref[...] = jnp.zeros_like(sum_ref)

        sum_ref[...] += jnp.dot(a_ref[...], b_ref[...], preferred_element_type=kind)

        @pl.when(pl.program_id(2) == pl.num_programs(2) - 1)
        def _():
            out_ref[...] = sum_ref[...]

    return pl.pallas_call(
        body,
        grid=(a.shape[0] // 128, b.shape[1] // 128, a.shape[1] // 256),
        in_specs=[
            pl.BlockSpec((128, 256), lambda i, j, k: (i, k)),
            pl.BlockSpec((256, 128), lambda i, j, k: (k, j)),
        ],
        out_specs=pl.BlockSpec((128, 128), lambda i, j, k: (i, j)),
        scratch_shapes=[pltpu.VMEM((128, 128), kind)],
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel", "arbitrary")
        ),
        out_shape=Shape((a.shape[0], b.shape[1]), kind),
    )(a, b)


def add_into(x, *others):
    """Many operands, of which the first is overwritten."""

    def body(*refs):
        *ins, out_ref = refs
        out_ref[...] = sum(ref[...].astype(F32) for ref in ins).astype(out_ref.dtype)

    spec = pl.BlockSpec((64, 256), lambda i, j: (i, j))
    return pl.pallas_call(
        body, grid=(x.shape[0] // 64, x.shape[1] // 256), in_specs=[spec] * (1 + len(others)),
        out_specs=spec, out_shape=Shape(x.shape, x.dtype), input_output_aliases={0: 0},
    )(x, *others)  # fmt: skip


def gather(blocks, x):
    """Scalars choose the blocks."""

    def body(blocks_ref, x_ref, out_ref):
        out_ref[...] = x_ref[...]

    return pl.pallas_call(
        body,
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1,
            grid=blocks.shape,
            in_specs=[pl.BlockSpec((64, 256), lambda i, blocks: (blocks[i], 0))],
            out_specs=pl.BlockSpec((64, 256), lambda i, blocks: (i, 0)),
        ),
        out_shape=Shape((blocks.size * 64, 256), x.dtype),
    )(blocks, x)


def own_copies(count, x):
    """Copies of its own from HBM, two in flight, as often as a scalar says."""

    def body(count_ref, x_ref, out_ref, buffers, flags):
        def copy(i):
            rows = x_ref.at[pl.ds(i * 64, 64)]
            return pltpu.make_async_copy(rows, buffers.at[i % 2], flags.at[i % 2])

        def step(i, carry):
            @pl.when(i + 1 < count_ref[0])
            def _():
                copy(i + 1).start()

            copy(i).wait()
            out_ref[...] += buffers[i % 2].astype(F32)
            return carry

        copy(0).start()
        out_ref[...] = jnp.zeros_like(out_ref)
        jax.lax.fori_loop(0, count_ref[0], step, 0)

    return pl.pallas_call(
        body, in_specs=[SMEM, ANY], out_specs=pl.BlockSpec((64, 256), lambda: (0, 0)),
        scratch_shapes=[pltpu.VMEM((2, 64, 256), x.dtype), pltpu.SemaphoreType.DMA((2,))],
        out_shape=Shape((64, 256), F32),
    )(count, x)  # fmt: skip


def write_some(lens, x):
    """Blocks that it writes itself, where a scalar says so."""

    def body(lens_ref, x_ref, out_ref, flag):
        @pl.when(lens_ref[pl.program_id(0)] > 0)
        def _():
            copy = pltpu.make_async_copy(x_ref, out_ref.at[pl.program_id(0)], flag)
            copy.start()
            copy.wait()

    return pl.pallas_call(
        body, grid=lens.shape, in_specs=[SMEM, pl.BlockSpec((32, 256), lambda i: (i, 0))],
        out_specs=ANY, scratch_shapes=[pltpu.SemaphoreType.DMA],
        out_shape=Shape((lens.size, 32, 256), x.dtype),
    )(lens, x)  # fmt: skip


def ragged(starts, x):
    """Loops from one scalar to the next."""

    def body(starts_ref, x_ref, out_ref):
        def add(row, total):
            return total + x_ref[pl.ds(row * 8, 8), :].astype(F32)

        i = pl.program_id(0)
        zero = jnp.zeros(out_ref.shape, F32)
        out_ref[...] = jax.lax.fori_loop(starts_ref[i], starts_ref[i + 1], add, zero)

    return pl.pallas_call(
        body,
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1,
            grid=(starts.size - 1,),
            in_specs=[pl.BlockSpec(x.shape, lambda i, starts: (0, 0))],
            out_specs=pl.BlockSpec((8, 256), lambda i, starts: (i, 0)),
        ),
        out_shape=Shape(((starts.size - 1) * 8, 256), F32),
    )(starts, x)


def softmax(x):
    """The last block is partly outside of the array; a scalar of a vector decides nothing."""

    def body(x_ref, out_ref):
        rows = x_ref[...]
        raised = jnp.exp(rows - jnp.max(rows, axis=-1, keepdims=True))
        out_ref[...] = raised / jnp.sum(raised, axis=-1, keepdims=True) + x_ref[0, 0]

    spec = pl.BlockSpec((48, x.shape[1]), lambda i: (i, 0))
    return pl.pallas_call(
        body, grid=(pl.cdiv(x.shape[0], 48),), in_specs=[spec], out_specs=spec,
        out_shape=Shape(x.shape, x.dtype),
    )(x)  # fmt: skip


def pipeline(x):
    """A pipeline inside of a kernel."""

    def step(x_ref, out_ref):
        out_ref[...] = x_ref[...] + 1

    def body(x_ref, out_ref):
        spec = pl.BlockSpec((64, 256), lambda i: (i, 0))
        run = pltpu.emit_pipeline(step, grid=(x.shape[0] // 64,), in_specs=[spec], out_specs=[spec])
        run(x_ref, out_ref)

    shape = Shape(x.shape, x.dtype)
    return pl.pallas_call(body, in_specs=[ANY], out_specs=ANY, out_shape=shape)(x)


def floats(shares, x):
    """Scalars are floats: a trip of the loop for each whole number in `share * 10 + i`."""

    def body(shares_ref, x_ref, out_ref):
        i = pl.program_id(0)
        share = jnp.maximum(shares_ref[i], 0.0) * 10.0 + i.astype(F32)
        out_ref[...] = jnp.zeros_like(out_ref)

        def add(_, carry):
            out_ref[...] += x_ref[...] * (1.0 / (share + 1.0))
            return carry

        @pl.when(share < 8.5)
        def _():
            jax.lax.fori_loop(0, share.astype(jnp.int32), add, 0)

    return pl.pallas_call(
        body,
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1,
            grid=shares.shape,
            in_specs=[pl.BlockSpec((8, 256), lambda i, shares: (i, 0))],
            out_specs=pl.BlockSpec((8, 256), lambda i, shares: (i, 0)),
        ),
        out_shape=Shape(x.shape, x.dtype),
    )(shares, x)


SHARES = np.array([-1.0, 0.25, 0.59, 0.75], np.float32)
FLOAT_TRIPS = 0 + 3 + 7 + 0  # the last share is 10.5


def data_decides(x):
    """A branch that depends on a vector."""

    def body(x_ref, out_ref):
        @pl.when(jnp.max(x_ref[...]) > 0)
        def _():
            out_ref[...] = x_ref[...]

    return pl.pallas_call(body, out_shape=Shape(x.shape, x.dtype))(x)


# By name: (function, arguments, bytes that it writes to HBM).
CASES = {
    "scale": (scale, (Shape((2048, 256), F32),), 2048 * 256 * 4),
    "far": (functools.partial(scale), (Shape((1 << 20, 256), F32),), 2048 * 256 * 4),
    "matmul_bf16": (matmul, (Shape((256, 512), BF16), Shape((512, 256), BF16)), 256 * 256 * 4),
    "matmul_f32": (matmul, (Shape((256, 512), F32), Shape((512, 256), F32)), 256 * 256 * 4),
    "matmul_int8": (
        matmul, (Shape((256, 512), jnp.int8), Shape((512, 256), jnp.int8)), 256 * 256 * 4,
    ),
    "add_into": (add_into, (Shape((256, 512), BF16),) * 9, 256 * 512 * 2),
    "gather": (gather, (_words(3, 0, 1, 1, 7, 2), Shape((4096, 256), jnp.int8)), 6 * 64 * 256),
    "own_copies": (own_copies, (_words(9), Shape((2048, 256), BF16)), 64 * 256 * 4),
    "write_some": (write_some, (_words(1, 0, 3, 1), Shape((128, 256), F32)), 3 * 32 * 256 * 4),
    "ragged": (ragged, (_words(0, 5, 5, 13, 16), Shape((128, 256), BF16)), 4 * 8 * 256 * 4),
    "softmax": (softmax, (Shape((500, 1024), F32),), 504 * 1024 * 4),
    "pipeline": (pipeline, (Shape((1024, 256), BF16),), 1024 * 256 * 2),
    "floats": (floats, (SHARES, Shape((32, 256), F32)), 32 * 256 * 4),
}  # fmt: skip
