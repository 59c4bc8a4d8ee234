"""Launchers for test_measured.py. They run in worker processes, on the CPU."""

import os

import jax
import jax.numpy as jnp

from rpa_tune.evaluate.measure_task import find_device, launch_reference


def launch_odd_one_out(candidate, batch):
    """Right for 8 queries a block; each of the others goes wrong in a way of its own."""
    launch = launch_reference(candidate, batch)

    def wrong(*operands):
        out, cache = launch(*operands)
        return out * 1.5, cache

    def untraceable(*operands):
        return jnp.zeros(3) + jnp.zeros(4), None

    def uncompilable(*operands):
        shape = jax.ShapeDtypeStruct((3,), jnp.float32)
        return jax.ffi.ffi_call("a target that nobody has", shape)(), None

    def failing(*operands):
        def fail():
            raise RuntimeError("made up")

        shape = jax.ShapeDtypeStruct((3,), jnp.float32)
        return jax.pure_callback(fail, shape), None

    def deadly(*operands):
        os.abort()

    kinds = (launch, wrong, untraceable, uncompilable, failing, deadly)
    return dict(zip((8, 16, 24, 32, 40, 64), kinds, strict=True))[candidate.config.bq_sz]


def find_v6e(nothing):
    """This CPU, as if it were a v6e."""
    return {**find_device(nothing), "chip": "v6e"}
