"""Launchers for test_measured.py. They run in worker processes, on the CPU."""

import os

import jax.numpy as jnp

from rpa_tune.evaluate.measure_task import find_device, launch_reference


def launch_odd_one_out(candidate, batch):
    """Right for 8 queries a block; wrong, raising or deadly for others."""
    launch = launch_reference(candidate, batch)

    def wrong(*operands):
        out, cache = launch(*operands)
        return out * 1.5, cache

    def raising(*operands):
        return jnp.zeros(3) + jnp.zeros(4), None

    def deadly(*operands):
        os.abort()

    return {8: launch, 16: wrong, 32: raising, 64: deadly}[candidate.config.bq_sz]


def find_v6e(nothing):
    """This CPU, as if it were a v6e."""
    return {**find_device(nothing), "chip": "v6e"}
