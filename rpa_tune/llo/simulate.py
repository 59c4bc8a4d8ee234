"""Simulates one launch of a compiled kernel on a batch: the package's front door.

program = load_program(path)
timeline = simulate(program, load_machine("v6e"), {0: kv_lens, 1: page_indices, ...})
"""

from rpa_tune.llo.engines import rates_of
from rpa_tune.llo.fast import run_fast
from rpa_tune.llo.interpreter import Operands
from rpa_tune.llo.machine import Machine
from rpa_tune.llo.program import Program
from rpa_tune.llo.timeline import Timeline, make_timeline

__all__ = ["Timeline", "simulate"]

# A launch this long would take seconds on the chip: surely an endless loop.
MAX_BUNDLES = 1 << 32


def simulate(
    program: Program, machine: Machine, operands: Operands, *, max_bundles: int = MAX_BUNDLES
) -> Timeline:
    """Runs a kernel's scalar program on real operands and times it.

    Args:
      program: A parsed dump.
      machine: The chip it was compiled for; dumps do not say.
      operands: int32 arrays that the kernel reads as scalars (scalar prefetch), by their
        position in the kernel's call.
      max_bundles: When to give up on a kernel that does not end.

    Returns:
      The timeline of one launch on one TensorCore.

    Raises:
      DumpError: A wait that never completes, a halt, an operand not given, or no end.
    """
    rates = rates_of(machine)
    run = run_fast(program, rates, operands, max_bundles=max_bundles)
    return make_timeline(program, machine, rates, run)
