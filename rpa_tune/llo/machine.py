"""The machine that runs a schedule: every parameter of one chip, with its evidence.

Values come from `machines.yaml` and from the chip table. `rpa-tune calibrate` refits the fitted
ones; `README.md` beside this file says what each means and what is left out.
"""

import functools
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import yaml

from rpa_tune.hw.chip import Number, load_chip
from rpa_tune.llo.opcodes import Slot

# What a form of the copy engine may have and no chip's does: see benchmarks/fidelity.md.
OPTIONAL = ("read_copy_bytes_per_s", "write_copy_bytes_per_s", "local_copy_bytes_per_s")
_FROM_CHIP = (
    "clock_hz", "mxu_size", "mxu_rows_per_cycle", "mxu_fp8_rows_per_cycle", "num_mxus",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Machine:
    """One TensorCore as the simulator models it. Machines compare by identity.

    Attributes:
      chip: Name in the chip table.
      numbers: Every parameter by name, with source and confidence.
      slot_capacity: Instructions a bundle can hold per slot, indexed by `Slot`.
    """

    chip: str
    numbers: dict[str, Number]
    slot_capacity: tuple[int, ...]

    def value(self, name: str) -> float:
        """One parameter.

        Raises:
          KeyError: No such parameter, or not known for this chip.
        """
        value = self.numbers[name].value
        if value is None:
            raise KeyError(f"{name} of {self.chip} is not known ({self.numbers[name].source})")
        return float(value)

    @property
    def launch_cycles(self) -> int:
        """Whole cycles before the first bundle."""
        return round(self.value("launch_us") * 1e-6 * self.value("clock_hz"))

    @property
    def guesses(self) -> tuple[str, ...]:
        """Parameters without evidence, named in every result."""
        return tuple(
            sorted(n for n, number in self.numbers.items() if number.confidence == "guess")
        )

    def with_values(self, values: dict[str, float], *, source: str, confidence: str) -> "Machine":
        """A machine in which some parameters are replaced.

        Raises:
          KeyError: A name is not a parameter.
        """
        if unknown := set(values) - set(self.numbers) - set(OPTIONAL):
            raise KeyError(f"no such parameters: {sorted(unknown)}; known: {sorted(self.numbers)}")
        changed = {
            name: Number(value=value, source=source, confidence=confidence)
            for name, value in values.items()
        }
        return Machine(
            chip=self.chip, numbers={**self.numbers, **changed}, slot_capacity=self.slot_capacity
        )


@functools.cache
def _table() -> dict[str, dict[str, Any]]:
    """The parsed machine table."""
    text = files("rpa_tune.llo").joinpath("machines.yaml").read_text()
    table: dict[str, dict[str, Any]] = yaml.safe_load(text)
    return table


@functools.cache
def load_machine(chip: str) -> Machine:
    """The machine of one chip.

    Raises:
      UsageError: No such chip.
    """
    record = load_chip(chip)
    rows = dict(_table()[record.name])
    capacity = tuple(rows.pop("slot_capacity")["value"])
    assert len(capacity) == len(Slot)
    numbers = {name: record.numbers[name] for name in _FROM_CHIP}
    numbers |= {name: Number(**row) for name, row in rows.items()}
    return Machine(chip=record.name, numbers=numbers, slot_capacity=capacity)
