"""The interpreter as `verify` uses it: finds what jax lets pass, and nothing in what is right."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import io_callback
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from rpa_kernels.reference import EXACT_ROUNDING
from rpa_kernels.watch import DMA_MODES, VECTOR_CLOCK_SIZE, exp2, interpreter, watched

both_modes = pytest.mark.parametrize("dma_mode", DMA_MODES)


def interpret(body, dma_mode, *, scalar=0):
    """Runs `body(scalars, x in HBM, out in HBM, two buffers, two semaphores)`."""
    hbm = pl.BlockSpec(memory_space=pl.ANY)
    call = pl.pallas_call(
        body,
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1,
            in_specs=[hbm],
            out_specs=hbm,
            scratch_shapes=[pltpu.VMEM((2, 8, 128), jnp.float32), pltpu.SemaphoreType.DMA((2,))],
        ),
        out_shape=jax.ShapeDtypeStruct((2, 8, 128), jnp.float32),
        interpret=interpreter(dma_mode),
    )
    x = jnp.arange(2 * 8 * 128, dtype=jnp.float32).reshape(2, 8, 128)
    exact = jax.jit(call, compiler_options=EXACT_ROUNDING)
    return exact(jnp.array([scalar], jnp.int32), x).block_until_ready()


def run(body, dma_mode, *, scalar=0):
    """The same, watched: (out, watch)."""
    with watched() as watch:
        out = interpret(body, dma_mode, scalar=scalar)
    return out, watch


def send(buffers, out, sems, slot=0):
    """The copy that takes a buffer out."""
    return pltpu.make_async_copy(buffers.at[slot], out.at[slot], sems.at[slot])


def fetch(x, buffers, sems, slot, sem):
    """The copy that brings a buffer in."""
    return pltpu.make_async_copy(x.at[slot], buffers.at[slot], sems.at[sem])


@both_modes
def test_right_copies_are_right(dma_mode):
    def body(_, x, out, buffers, sems):
        for slot in range(2):
            fetch(x, buffers, sems, slot, slot).start()
        for slot in range(2):
            fetch(x, buffers, sems, slot, slot).wait()
            buffers[slot] += 1.0
            send(buffers, out, sems, slot).start()
            send(buffers, out, sems, slot).wait()

    out, watch = run(body, dma_mode)
    assert (out == jnp.arange(out.size).reshape(out.shape) + 1).all()
    assert not watch.has_race
    assert not watch.unwaited_semaphores


@both_modes
@pytest.mark.parametrize("sems_of", [(0, 1), (0, 0)])
def test_waiting_for_one_copy_and_reading_another_ones_buffer_is_a_race(dma_mode, sems_of):
    def body(_, x, out, buffers, sems):
        first, second = (fetch(x, buffers, sems, slot, sems_of[slot]) for slot in range(2))
        first.start()
        second.start()
        first.wait()
        buffers[1] += 1.0
        second.wait()
        out_copy = send(buffers, out, sems)
        out_copy.start()
        out_copy.wait()

    # Two copies on one semaphore: the wait may have been for either, and in `on_wait` mode it was
    # for the second, so that nothing but the clocks can tell.
    _, watch = run(body, dma_mode)
    assert watch.has_race
    assert not watch.unwaited_semaphores


@both_modes
@pytest.mark.parametrize("num_between", [0, 5, 40])
def test_two_copies_to_the_same_rows_in_flight_are_a_race(dma_mode, num_between):
    def body(_, x, out, buffers, sems):
        buffers[...] = jnp.zeros((2, 8, 128), jnp.float32)
        to_same = [
            pltpu.make_async_copy(buffers.at[slot], out.at[0], sems.at[0]) for slot in range(2)
        ]
        to_same[0].start()
        for _ in range(num_between):
            copy = pltpu.make_async_copy(buffers.at[0], out.at[1], sems.at[1])
            copy.start()
            copy.wait()
        to_same[1].start()
        for copy in to_same:
            copy.wait()

    _, watch = run(body, dma_mode)
    assert watch.has_race
    assert num_between < VECTOR_CLOCK_SIZE


@pytest.mark.parametrize(("num_rows", "waits"), [(8, True), (8, False), (0, False)])
def test_a_copy_of_nothing_races_with_nothing(num_rows, waits):
    def body(scalars, x, out, buffers, sems):
        buffers[...] = jnp.zeros((2, 8, 128), jnp.float32)
        rows = pl.ds(0, scalars[0])
        copy = pltpu.make_async_copy(buffers.at[0, rows], out.at[0, rows], sems.at[0])
        copy.start()
        if waits:
            copy.wait()
        buffers[0, 0] = jnp.ones((128,), jnp.float32)
        if not waits:
            copy.wait()

    _, watch = run(body, "eager", scalar=num_rows)
    assert watch.has_race == (num_rows > 0 and not waits)


@both_modes
@pytest.mark.parametrize("rows_waited", [0, 3, 7])
def test_a_wait_for_fewer_bytes_is_seen_at_the_end(dma_mode, rows_waited):
    def body(_, x, out, buffers, sems):
        fetch(x, buffers, sems, 0, 0).start()
        if rows_waited:
            rows = buffers.at[0, pl.ds(0, rows_waited)]
            pltpu.make_async_copy(rows, rows, sems.at[0]).wait()

    _, watch = run(body, dma_mode)
    assert watch.unwaited_semaphores == 1


def test_several_kernels_are_watched():
    def racing(_, x, out, buffers, sems):
        fetch(x, buffers, sems, 0, 0).start()
        buffers[0] = jnp.zeros((8, 128), jnp.float32)

    def right(_, x, out, buffers, sems):
        buffers[0] = jnp.zeros((8, 128), jnp.float32)

    with watched() as watch:
        interpret(racing, "eager")
        interpret(right, "eager")
    assert watch.has_race
    assert watch.unwaited_semaphores == 1


@both_modes
def test_a_wait_that_never_ends_is_an_error(dma_mode):
    def body(_, x, out, buffers, sems):
        fetch(x, buffers, sems, 0, 0).start()
        fetch(x, buffers, sems, 0, 1).wait()

    with pytest.raises(jax.errors.JaxRuntimeError, match="a wait that never ends: for 4096 bytes"):
        run(body, dma_mode)
    # And the interpreter is good for the next kernel.
    test_right_copies_are_right(dma_mode)


def page(scalars, x, out, buffers, sems):
    pltpu.sync_copy(x.at[scalars[0]], buffers.at[0])


def page_of_no_rows(scalars, x, out, buffers, sems):
    none = pl.ds(0, 0)
    pltpu.sync_copy(x.at[scalars[0], none], buffers.at[0, none])


def block(scalars, x, out, buffers, sems):
    buffers[scalars[0]] = jnp.zeros((8, 128), jnp.float32)


def rows(scalars, x, out, buffers, sems):
    buffers[0, pl.ds(scalars[0], 2)] = jnp.zeros((2, 128), jnp.float32)


def word(scalars, x, out, buffers, sems):
    pltpu.sync_copy(x.at[0, pl.ds(0, scalars[scalars[0]])], buffers.at[0, pl.ds(0, 1)])


@pytest.mark.parametrize("index", [-1, 8, np.iinfo(np.int32).max])
@pytest.mark.parametrize("body", [page, page_of_no_rows, block, rows, word])
def test_an_index_out_of_bounds_is_an_error_in_every_memory(body, index):
    with pytest.raises(jax.errors.JaxRuntimeError, match=r"(?i)out-of-bounds|before the start"):
        run(body, "eager", scalar=index)


def test_numpys_generator_is_neither_used_nor_changed():
    before = np.random.get_state()
    test_right_copies_are_right("eager")
    for a, b in zip(before, np.random.get_state(), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
def test_the_interpreters_exp2_is_right_to_a_rounding(dtype):
    if dtype == jnp.bfloat16:
        x = jax.lax.bitcast_convert_type(jnp.arange(1 << 16, dtype=jnp.uint16), dtype)
        x = x[jnp.isfinite(x)]
    else:
        x = jnp.linspace(-126, 128, 100_001, dtype=dtype)
    wide = np.asarray(x).astype(np.float64)
    is_normal = (wide >= -126) & (wide < 128)
    exact = np.exp2(np.clip(wide, -200, 200))
    result = np.asarray(jax.jit(exp2, compiler_options=EXACT_ROUNDING)(x)).astype(np.float64)
    unit = 2.0 ** np.floor(np.log2(exact)) * float(jnp.finfo(dtype).eps)
    # bfloat16 is rounded once from a float32 that is right to two of its own units.
    limit = 0.5001 if dtype == jnp.bfloat16 else 2
    assert (np.abs(result - exact) / unit)[is_normal].max() <= limit
    assert (result[wide < -127] == 0).all()
    assert np.isinf(result[wide >= 128]).all()


def test_kernels_compute_exp2_with_it_and_round_where_they_say_so():
    def body(_, x, out, buffers, sems):
        pltpu.sync_copy(x.at[0], buffers.at[0])
        scores = (buffers[0] / 128).astype(jnp.bfloat16)
        buffers[0] = jnp.exp2(scores).astype(jnp.float32)
        buffers[1] = (scores * scores).astype(jnp.float32)
        pltpu.sync_copy(buffers, out)

    out, _ = run(body, "eager")
    scores = (np.arange(8 * 128).reshape(8, 128) / 128).astype(jnp.bfloat16)
    exact = np.exp2(scores.astype(np.float64)).astype(jnp.bfloat16).astype(np.float32)
    np.testing.assert_array_equal(out[0], exact)
    np.testing.assert_array_equal(out[1], (scores * scores).astype(np.float32))


def test_a_failed_kernel_fails_itself_alone():
    """Where it waits for what is computed before it, so that its caller has gone on by then."""

    def answer(x):
        if x > 0:
            raise ValueError("the first one failed")
        return np.float32(1)

    @jax.jit
    def slow_sum(x):
        step = lambda _, m: m @ m / jnp.max(m @ m)  # noqa: E731
        return jax.lax.fori_loop(0, 50, step, jnp.full((300, 300), x))[0, 0]

    call = jax.jit(
        lambda x: io_callback(answer, jax.ShapeDtypeStruct((), jnp.float32), x, ordered=True)
    )
    with pytest.raises(jax.errors.JaxRuntimeError, match="the first one failed"), watched():
        call(slow_sum(jnp.float32(1))).block_until_ready()
    with watched():
        assert call(jnp.float32(-1)).block_until_ready() == 1
