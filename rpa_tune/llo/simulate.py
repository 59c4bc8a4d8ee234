"""Simulates one launch of a compiled kernel on a batch: the package's front door.

program = load_program(path)
timeline = simulate(program, load_machine("v6e"), {0: kv_lens, 1: page_indices, ...})
"""

from rpa_tune.errors import DumpError
from rpa_tune.llo.engines import rates_of
from rpa_tune.llo.fast import run_fast
from rpa_tune.llo.machine import Machine
from rpa_tune.llo.program import Program
from rpa_tune.llo.run import Operands, Run
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
      The timeline of one launch, on both TensorCores where the program is for two.

    Raises:
      DumpError: A wait that never completes, a halt, an operand not given, no end, or cores that
        do not meet.
    """
    rates = rates_of(machine)
    runs = [
        run_fast(program, rates, operands, core=core, max_bundles=max_bundles)
        for core in range(program.num_cores)
    ]
    check_meetings(program, runs)
    return make_timeline(program, machine, rates, runs)


def check_meetings(program: Program, runs: list[Run]) -> None:
    """Refuses cores that reach a barrier at different times.

    Each core is simulated alone, and leaves a barrier as if the other had come with it. That is
    so where both have run the same bundles before: the scalar operands' way into SMEM.

    Raises:
      DumpError: They do not.
    """
    if any(run.barriers != runs[0].barriers for run in runs):
        raise DumpError(
            f"the cores reach their barriers at different times: {[run.barriers for run in runs]}",
            where=str(program.path),
            hint="only a barrier that every core reaches by the same path can be simulated",
        )
