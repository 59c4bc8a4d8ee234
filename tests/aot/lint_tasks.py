"""Kernels for the compiler's linter, right ones and wrong ones; they are compiled in workers."""

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from rpa_tune.compile.lint import lint_of
from rpa_tune.compile.lower import compile_call
from rpa_tune.families.family import Call
from rpa_tune.hw.chip import load_chip

ROWS = 2


def copy(source, destination, semaphore):
    made = pltpu.make_async_copy(source, destination, semaphore)
    made.start()
    return made


def right(x, out, buffer, first, second):
    copy(x.at[0], buffer, first).wait()
    copy(buffer, out, second).wait()


def two_copies_into_one_buffer(x, out, buffer, first, second):
    a, b = copy(x.at[0], buffer, first), copy(x.at[1], buffer, second)
    a.wait()
    b.wait()
    copy(buffer, out, second).wait()


def nobody_waits(x, out, buffer, first, second):
    copy(x.at[0], buffer, first)
    copy(buffer, out, second).wait()


def nobody_wrote(x, out, buffer, first, second):
    buffer[...] = buffer[...] + 1.0
    copy(buffer, out, second).wait()


def load_past_the_end(x, out, buffer, first, second):
    copy(x.at[0], buffer, first).wait()
    row = jax.lax.fori_loop(0, 7, lambda i, n: n + i, 0)  # known to the compiler alone
    buffer[...] = buffer[...] + buffer[pl.ds(8 * row, 8), :]
    copy(buffer, out, second).wait()


def page_past_the_table(x, out, buffer, first, second):
    row = jax.lax.fori_loop(0, 7, lambda i, n: n + i, 0)
    copy(x.at[row], buffer, first).wait()
    copy(buffer, out, second).wait()


def read_before_the_wait(x, out, buffer, first, second):
    a = copy(x.at[0], buffer, first)
    buffer[...] = buffer[...] + 1.0
    a.wait()
    copy(buffer, out, second).wait()


# Right ones, with an operand whose value the linter does not know.


def size_of_a_copy(x, out, buffer, first, second, n):
    rows = pl.ds(0, n[0])
    copy(x.at[0, rows], buffer.at[rows], first).wait()
    buffer[...] = buffer[...] + 1.0
    copy(buffer, out, second).wait()


def masked_load(x, out, buffer, first, second, n):
    copy(x.at[0, pl.ds(0, 4)], buffer.at[pl.ds(0, 4)], first).wait()
    row = jax.lax.broadcasted_iota(jnp.int32, buffer.shape, 0)
    buffer[...] = jnp.where(row < 4, buffer[...], 0.0)
    copy(buffer, out, second).wait()


def place_of_a_store(x, out, buffer, first, second, n):
    copy(x.at[0], buffer, first).wait()
    buffer[pl.ds(n[0], 1), :] = jnp.ones((1, 128))
    buffer[...] = buffer[...] + 1.0
    copy(buffer, out, second).wait()


def spare_row(x, out, buffer, first, second, n):
    copy(x.at[0, pl.ds(0, 4)], buffer.at[pl.ds(0, 4)], first).wait()
    row = jnp.where(n[0] > 0, 0, 4)
    out_row = buffer[pl.ds(row, 1), :]
    buffer[...] = jnp.broadcast_to(jnp.where(n[0] > 0, out_row, 0.0), buffer.shape)
    copy(buffer, out, second).wait()


BODIES = {
    body.__name__: body
    for body in (
        right, two_copies_into_one_buffer, nobody_waits, nobody_wrote, load_past_the_end,
        page_past_the_table, read_before_the_wait,
    )
}  # fmt: skip
READS_AN_OPERAND = {
    body.__name__: body for body in (size_of_a_copy, masked_load, place_of_a_store, spare_row)
}


def lint(task):
    """(chip, name of a body) -> what the linter says."""
    chip, name = task
    shape = (8, 128)

    def body(n, *refs):
        return BODIES[name](*refs) if name in BODIES else READS_AN_OPERAND[name](*refs, n)

    def function(x, n):
        hbm = pl.BlockSpec(memory_space=pltpu.HBM)
        semaphore = pltpu.SemaphoreType.DMA
        return pl.pallas_call(
            body,
            out_shape=jax.ShapeDtypeStruct(shape, jnp.float32),
            grid_spec=pltpu.PrefetchScalarGridSpec(
                num_scalar_prefetch=1,
                grid=(1,),
                in_specs=[hbm],
                out_specs=hbm,
                scratch_shapes=[pltpu.VMEM(shape, jnp.float32), semaphore, semaphore],
            ),
            name="lint_me",
        )(n, x)

    x = jax.ShapeDtypeStruct((ROWS, *shape), jnp.float32)
    n = jax.ShapeDtypeStruct((1,), jnp.int32)
    call = Call(function=function, arguments=(x, n), kernel_name="lint_me")
    compiled = compile_call(call, load_chip(chip))
    return lint_of(compiled.status, compiled.detail)
