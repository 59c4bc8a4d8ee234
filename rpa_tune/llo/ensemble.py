"""Sets of parameters that the evidence cannot tell apart, and what an answer's error follows from.

A chip has sixteen of them (`ensembles.json`, made by `benchmarks/fidelity.py --refit`), drawn from
the fit of its measured times: what those determine varies little, what nothing determines by as
much as was assumed of it beforehand. A set's `scale` stands for what no parameter of the model
can mend: it is spread as the errors were of rows that the fit had not seen. Two kernels are
compared set by set, so that a scale, which both share, decides nothing.
"""

import functools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from rpa_tune.llo.machine import Machine, load_machine

COVERAGE = 0.9  # of the times that an interval is meant to hold
NEARLY_ALL = 0.9  # of the sets under which a winner must win


@dataclass(frozen=True, kw_only=True, slots=True)
class MachineSet:
    """One set of parameters.

    Attributes:
      machine: The chip with them.
      scale: Factor on every time.
    """

    machine: Machine
    scale: float


@functools.cache
def _table() -> dict[str, Any]:
    """The parsed file."""
    text = files("rpa_tune.llo").joinpath("ensembles.json").read_text()
    table: dict[str, Any] = json.loads(text)
    return table


@functools.cache
def load_sets(chip: str) -> tuple[MachineSet, ...]:
    """The sets of one chip.

    Raises:
      UsageError: No such chip.
    """
    machine = load_machine(chip)
    table = _table()[chip]
    return tuple(
        MachineSet(
            machine=machine.with_values(
                dict(zip(table["names"], values, strict=True)),
                source=table["source"],
                confidence="fitted",
            ),
            scale=scale,
        )
        for values, scale in zip(table["values"], table["scales"], strict=True)
    )


def interval(set_us: Sequence[float]) -> tuple[float, float]:
    """The times between which `COVERAGE` of the sets lie, interpolated."""
    ranked = sorted(set_us)

    def quantile(share: float) -> float:
        place = share * (len(ranked) - 1)
        low = int(place)
        high = min(low + 1, len(ranked) - 1)
        return ranked[low] + (place - low) * (ranked[high] - ranked[low])

    return quantile((1 - COVERAGE) / 2), quantile((1 + COVERAGE) / 2)


def share_of_wins(ours_us: Sequence[float], theirs_us: Sequence[float]) -> float:
    """The share of sets under which our time is below theirs; equal times count half."""
    wins = sum((a < b) + 0.5 * (a == b) for a, b in zip(ours_us, theirs_us, strict=True))
    return wins / len(ours_us)
