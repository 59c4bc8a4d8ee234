"""Simulates one launch of a compiled kernel on a batch: the package's front door.

program = load_program(path)
timeline = simulate(program, load_machine("v6e"), {0: kv_lens, 1: page_indices, ...})
"""

from collections.abc import Sequence
from dataclasses import replace

from rpa_tune.errors import DumpError
from rpa_tune.llo.engines import rates_of
from rpa_tune.llo.ensemble import MachineSet
from rpa_tune.llo.fast import encode_once, num_flags, run_fast
from rpa_tune.llo.machine import Machine
from rpa_tune.llo.program import Program
from rpa_tune.llo.recording import Launch, make_recording
from rpa_tune.llo.replay import replay
from rpa_tune.llo.run import Operands, Run
from rpa_tune.llo.timeline import Timeline, make_timeline

__all__ = ["Timeline", "record", "replay_us", "simulate"]

# A launch this long would take seconds on the chip: surely an endless loop.
MAX_BUNDLES = 1 << 32


def simulate(
    program: Program,
    machine: Machine,
    operands: Operands,
    *,
    sets: Sequence[MachineSet] = (),
    max_bundles: int = MAX_BUNDLES,
) -> Timeline:
    """Runs a kernel's scalar program on real operands and times it.

    Args:
      program: A parsed dump.
      machine: The chip it was compiled for; dumps do not say.
      operands: int32 arrays that the kernel reads as scalars (scalar prefetch), by their
        position in the kernel's call.
      sets: Other parameters of the chip, under which the launch is timed again.
      max_bundles: When to give up on a kernel that does not end.

    Returns:
      The timeline of one launch, on both TensorCores where the program is for two.

    Raises:
      DumpError: A wait that never completes, a halt, an operand not given, no end, or cores that
        do not meet.
    """
    runs = _run(program, machine, operands, max_bundles, is_recorded=bool(sets))
    timeline = make_timeline(program, machine, rates_of(machine, program.num_cores), runs)
    if not sets:
        return timeline
    times = replay_us([_launch(program, machine, runs)], [one.machine for one in sets])
    return replace(
        timeline,
        set_us=tuple(us * one.scale for us, one in zip(times, sets, strict=True)),
    )


def record(
    program: Program, machine: Machine, operands: Operands, *, max_bundles: int = MAX_BUNDLES
) -> Launch:
    """What a launch does; see `simulate`."""
    runs = _run(program, machine, operands, max_bundles, is_recorded=True)
    return _launch(program, machine, runs)


def replay_us(launches: Sequence[Launch], machines: Sequence[Machine]) -> list[float]:
    """The time of recorded launches, one after the other, under each machine in microseconds."""
    cycles = [0] * len(machines)
    for launch in launches:
        rates = [rates_of(machine, len(launch.cores)) for machine in machines]
        ends = zip(*(replay(core, rates) for core in launch.cores), strict=True)
        for i, (machine, end) in enumerate(zip(machines, ends, strict=True)):
            cycles[i] += max(end) + (machine.launch_cycles if launch.is_kernel else 0)
    return [
        count / machine.value("clock_hz") * 1e6
        for count, machine in zip(cycles, machines, strict=True)
    ]


def _run(
    program: Program, machine: Machine, operands: Operands, max_bundles: int, *, is_recorded: bool
) -> list[Run]:
    """The run of every core."""
    rates = rates_of(machine, program.num_cores)
    runs = [
        run_fast(
            program, rates, operands, core=core, max_bundles=max_bundles, is_recorded=is_recorded
        )
        for core in range(program.num_cores)
    ]
    check_meetings(program, runs)
    return runs


def _launch(program: Program, machine: Machine, runs: list[Run]) -> Launch:
    rates = rates_of(machine)
    encoded, flags = encode_once(program, rates), num_flags(program)
    return Launch(tuple(make_recording(encoded, run.trace, flags, rates) for run in runs))


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
