"""The race detector as `verify` uses it: it finds a real race, and no race in a copy of nothing."""

import jax
import jax.numpy as jnp
import pytest
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from rpa_kernels.verify import empty_ranges_overlap_nothing, found_race, interpreter


def races(num_rows: int, *, waits: bool) -> bool:
    """Copies `num_rows` rows out of a buffer, writes row 0 of it, and may wait in between."""

    def kernel(rows_ref, x_ref, out_ref, buffer, sem):
        buffer[...] = x_ref[...]
        rows = pl.ds(0, rows_ref[0])
        copy = pltpu.make_async_copy(buffer.at[rows], out_ref.at[rows], sem)
        copy.start()
        if waits:
            copy.wait()
        buffer[0] = jnp.zeros((128,), jnp.float32)
        if not waits:
            copy.wait()

    call = pl.pallas_call(
        kernel,
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1,
            in_specs=[pl.BlockSpec(memory_space=pltpu.VMEM)],
            out_specs=pl.BlockSpec(memory_space=pl.ANY),
            scratch_shapes=[pltpu.VMEM((8, 128), jnp.float32), pltpu.SemaphoreType.DMA],
        ),
        out_shape=jax.ShapeDtypeStruct((8, 128), jnp.float32),
        interpret=interpreter("eager"),
    )
    try:
        with empty_ranges_overlap_nothing():
            call(jnp.array([num_rows]), jnp.ones((8, 128))).block_until_ready()
        return found_race()
    finally:
        pltpu.reset_tpu_interpret_mode_state()


@pytest.mark.parametrize(
    ("num_rows", "waits", "expected"), [(8, False, True), (8, True, False), (0, False, False)]
)
def test_races_are_found_and_empty_copies_race_with_nothing(num_rows, waits, expected):
    assert races(num_rows, waits=waits) is expected
