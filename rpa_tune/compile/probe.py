"""The smallest kernel that shows whether compiling works: rows copied, one by one, and doubled."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from rpa_tune.candidate import Status
from rpa_tune.compile.lower import Call, compile_call

NUM_ROWS, ROW_SHAPE = 4, (8, 128)


@dataclass(frozen=True, kw_only=True, slots=True)
class Probe:
    """What came of it.

    Attributes:
      detail: Why the compiler refused; empty when it did not.
      seconds: Lowering and compiling.
      schedule: Text of the dump.
    """

    detail: str
    seconds: float
    schedule: str


def compile_probe(chip: str) -> Probe:
    """Compiles the probe for a chip, in a worker."""
    compiled = compile_call(_probe_call(), chip)
    return Probe(
        detail="" if compiled.status is Status.OK else compiled.detail,
        seconds=compiled.lower_s + compiled.compile_s,
        schedule=compiled.bundles.read_text() if compiled.bundles else "",
    )


def _probe_call() -> Call:
    def body(n_ref, x_hbm, out_hbm, row, semaphore):  # type: ignore[no-untyped-def]
        def step(i, _):  # type: ignore[no-untyped-def]
            fetch = pltpu.make_async_copy(x_hbm.at[i], row, semaphore)
            fetch.start()
            fetch.wait()
            row[...] = row[...] * 2
            send = pltpu.make_async_copy(row, out_hbm.at[i], semaphore)
            send.start()
            send.wait()

        jax.lax.fori_loop(0, n_ref[0], step, None)

    x = jax.ShapeDtypeStruct((NUM_ROWS, *ROW_SHAPE), jnp.float32)
    hbm = pl.BlockSpec(memory_space=pl.ANY)
    function = pl.pallas_call(
        body,
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1,
            in_specs=[hbm],
            out_specs=hbm,
            scratch_shapes=[pltpu.VMEM(ROW_SHAPE, jnp.float32), pltpu.SemaphoreType.DMA],
            grid=(1,),
        ),
        out_shape=x,
        name="rpa_probe",
    )
    count = jax.ShapeDtypeStruct((2,), jnp.int32)
    return Call(function=function, arguments=(count, x), kernel_name="rpa_probe")
