"""Small Pallas kernels to compile, for test_compile.py. They run in worker processes."""

from dataclasses import asdict

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from rpa_tune.candidate import Status
from rpa_tune.compile import lower, target
from rpa_tune.compile.cache import Compiled
from rpa_tune.dispatch.runtime import flat_call
from rpa_tune.families.family import Call
from rpa_tune.families.own_call import abstract_inputs
from rpa_tune.hw.chip import load_chip


def copy_call(*, rows, name="copy_rows", called=None):
    """A kernel that copies n rows from HBM through VMEM scratch to HBM, one by one."""

    def body(n_ref, x_hbm, o_hbm, buffer, semaphore):
        def step(i, _):
            for source, destination in ((x_hbm.at[i], buffer), (buffer, o_hbm.at[i])):
                copy = pltpu.make_async_copy(source, destination, semaphore)
                copy.start()
                copy.wait()

        jax.lax.fori_loop(0, n_ref[0], step, None)

    def function(n, x):
        hbm = pl.BlockSpec(memory_space=pltpu.HBM)
        return pl.pallas_call(
            body,
            grid_spec=pltpu.PrefetchScalarGridSpec(
                num_scalar_prefetch=1,
                in_specs=[hbm],
                out_specs=hbm,
                scratch_shapes=[pltpu.VMEM((rows, 128), jnp.float32), pltpu.SemaphoreType.DMA],
                grid=(1,),
            ),
            out_shape=jax.ShapeDtypeStruct(x.shape, x.dtype),
            name=name,
        )(n, x)

    return Call(
        function=function,
        arguments=(
            jax.ShapeDtypeStruct((2,), jnp.int32),
            jax.ShapeDtypeStruct((4, rows, 128), jnp.float32),
        ),
        kernel_name=called or name,
    )


def compile_copy(task):
    """Compiles and returns the record, the schedule's text and what the devices are called."""
    chip = task.pop("chip")
    compiled = lower.compile_call(copy_call(**task), load_chip(chip))
    text = compiled.bundles.read_text() if compiled.bundles else ""
    return asdict(compiled) | {"text": text}


def lowered_text(num_lines):
    """The text of a small kernel's program, whose source begins so many lines further down."""
    code = "\n" * num_lines + "def body(x, out):\n    out[...] = x[...] + 1.0\n"
    names = {}
    exec(compile(code, "kernel.py", "exec"), names)
    x = jax.ShapeDtypeStruct((8, 128), jnp.float32)
    call = Call(
        function=pl.pallas_call(names["body"], out_shape=x, name="add"),
        arguments=(x,),
        kernel_name="add",
    )
    found = []

    def kept(program):
        found.append(program)
        return Compiled(status=Status.OK)

    lower.compile_call(call, load_chip("v5e"), kept=kept)
    return found[0]


def memory_of_plan(task):
    """What the compiled call of a plan allocates: bytes by kind, with donation or without."""
    plan, donates = task
    function, donated = flat_call(plan)
    device = target.device_free_device(load_chip(plan.target.chip))
    sharding = jax.sharding.SingleDeviceSharding(device)
    arguments = [
        jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=sharding)
        for a in abstract_inputs(plan.problem)
    ]
    jitted = jax.jit(function, donate_argnums=donated if donates else ())
    memory = jitted.lower(*arguments).compile().memory_analysis()
    return {
        name: getattr(memory, f"{name}_size_in_bytes") for name in ("alias", "temp", "argument")
    }
