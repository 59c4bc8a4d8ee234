"""Cycles of one simulated launch by bundle, and by the source lines that bundles come from."""

from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from rpa_tune.llo.engines import rates_of
from rpa_tune.llo.fast import run_fast
from rpa_tune.llo.machine import Machine
from rpa_tune.llo.parse import HEAD
from rpa_tune.llo.program import Program
from rpa_tune.llo.run import Operands
from rpa_tune.llo.simulate import MAX_BUNDLES
from rpa_tune.llo.sources import SourceLine, lines_of

Sources = tuple[Counter[SourceLine], ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Profile:
    """Where the cycles between the first and the last bundle of the slowest core went.

    Attributes:
      cycles: Of each bundle, [num_bundles], its waits among them.
      lines: Of each source line.
      no_line: Of bundles of which no instruction has a line.
    """

    cycles: npt.NDArray[np.int64]
    lines: dict[SourceLine, float]
    no_line: float


def read_sources(schedule: Path) -> Sources:
    """For each bundle of a dump, how many of its instructions come from which line."""
    text = schedule.read_text()
    heads = list(HEAD.finditer(text))
    ends = [*(head.start() for head in heads[1:]), len(text)]
    return tuple(
        lines_of(text[head.end() : end]) for head, end in zip(heads, ends, strict=True)
    )


def profile(
    program: Program, machine: Machine, operands: Operands, sources: Sources
) -> Profile:
    """Runs a launch once more and divides its cycles.

    Those of a bundle are divided equally among its instructions that have a line.

    Raises:
      DumpError: See `simulate`.
    """
    cycles = _cycles(program, machine, operands)
    lines: defaultdict[SourceLine, float] = defaultdict(float)
    no_line = 0.0
    for spent, found in zip(cycles.tolist(), sources, strict=True):
        if not found:
            no_line += spent
        for line, count in found.items():
            lines[line] += spent * count / found.total()
    return Profile(cycles=cycles, lines=dict(lines), no_line=no_line)


def _cycles(program: Program, machine: Machine, operands: Operands) -> npt.NDArray[np.int64]:
    rates = rates_of(machine, program.num_cores)
    runs = [
        run_fast(program, rates, operands, core=core, max_bundles=MAX_BUNDLES)
        for core in range(program.num_cores)
    ]
    run = max(runs, key=lambda run: run.end_cycle)
    cycles: npt.NDArray[np.int64] = run.executed + run.stall_cycles.sum(axis=1)
    return cycles
