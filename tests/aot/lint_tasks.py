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


BODIES = {
    body.__name__: body
    for body in (
        right, two_copies_into_one_buffer, nobody_waits, nobody_wrote, load_past_the_end,
        page_past_the_table, read_before_the_wait,
    )
}  # fmt: skip


def lint(task):
    """(chip, name of a body) -> what the linter says."""
    chip, name = task
    shape = (8, 128)

    def function(x):
        hbm = pl.BlockSpec(memory_space=pltpu.HBM)
        semaphore = pltpu.SemaphoreType.DMA
        return pl.pallas_call(
            BODIES[name],
            out_shape=jax.ShapeDtypeStruct(shape, jnp.float32),
            in_specs=[hbm],
            out_specs=hbm,
            scratch_shapes=[pltpu.VMEM(shape, jnp.float32), semaphore, semaphore],
            name="lint_me",
        )(x)

    x = jax.ShapeDtypeStruct((ROWS, *shape), jnp.float32)
    call = Call(function=function, arguments=(x,), kernel_name="lint_me")
    compiled = compile_call(call, load_chip(chip))
    return lint_of(compiled.status, compiled.detail)
