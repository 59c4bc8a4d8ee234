"""Cycles of one simulated launch by bundle, and by the source lines that bundles come from."""

from collections import Counter, defaultdict
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from rpa_tune.llo.engines import rates_of
from rpa_tune.llo.fast import run_fast
from rpa_tune.llo.machine import Machine
from rpa_tune.llo.parse import HEAD
from rpa_tune.llo.program import Program
from rpa_tune.llo.run import Operands, Run
from rpa_tune.llo.simulate import MAX_BUNDLES
from rpa_tune.llo.sources import SourceLine, lines_of

Sources = tuple[Counter[SourceLine], ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Profile:
    """Where the cycles between the first and the last bundle of the slowest core went.

    Attributes:
      cycles: Of each bundle, [num_bundles], its waits among them.
      stalls: The waits of each bundle by `Owner`, [num_bundles, len(Owner)].
      lines: Of each source line.
      no_line: Of bundles of which no instruction has a line.
    """

    cycles: npt.NDArray[np.int64]
    stalls: npt.NDArray[np.int64]
    lines: dict[SourceLine, float]
    no_line: float


def read_sources(text: str) -> Sources:
    """For each bundle of a dump's text, how many of its instructions come from which line."""
    heads = list(HEAD.finditer(text))
    ends = [*(head.start() for head in heads[1:]), len(text)]
    return tuple(lines_of(text[head.end() : end]) for head, end in zip(heads, ends, strict=True))


def profile(program: Program, machine: Machine, operands: Operands, sources: Sources) -> Profile:
    """Runs a launch once more and divides its cycles.

    Those of a bundle are divided equally among its instructions that have a line.

    Raises:
      DumpError: See `simulate`.
    """
    run = _slowest(program, machine, operands)
    cycles = run.executed + run.stall_cycles.sum(axis=1)
    lines: defaultdict[SourceLine, float] = defaultdict(float)
    no_line = 0.0
    for spent, found in zip(cycles.tolist(), sources, strict=True):
        if not found:
            no_line += spent
        for line, count in found.items():
            lines[line] += spent * count / found.total()
    return Profile(cycles=cycles, stalls=run.stall_cycles, lines=dict(lines), no_line=no_line)


def _slowest(program: Program, machine: Machine, operands: Operands) -> Run:
    """The run of the core that ends last."""
    rates = rates_of(machine, program.num_cores)
    runs = [
        run_fast(program, rates, operands, core=core, max_bundles=MAX_BUNDLES)
        for core in range(program.num_cores)
    ]
    return max(runs, key=lambda run: run.end_cycle)


def lines_to_dicts(found: Profile | None) -> list[dict[str, Any]]:
    """The lines of a profile for JSON, most cycles first; none without one."""
    lines = sorted(found.lines.items(), key=lambda item: -item[1]) if found else []
    return [
        {"file": line.file, "line": line.line, "cycles": round(cycles, 1)} for line, cycles in lines
    ]
