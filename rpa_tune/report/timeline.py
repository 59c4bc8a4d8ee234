"""A simulated launch as a Chrome trace: open the file at ui.perfetto.dev.

One process a core. Lanes: vector issue, scalar issue, waits by owner, every MXU, every copy queue.
Issue slices are runs of bundles without a stall; a slice names the first and last of them.
"""

import json
from pathlib import Path
from typing import Any

from rpa_tune.llo.engines import Direction, Owner, rates_of
from rpa_tune.llo.interpreter import Interpreter
from rpa_tune.llo.machine import Machine
from rpa_tune.llo.opcodes import Slot
from rpa_tune.llo.program import Program
from rpa_tune.llo.run import Operands
from rpa_tune.llo.simulate import MAX_BUNDLES

# Perfetto stays quick below this; a longer launch is cut, and the trace says so.
MAX_EVENTS = 400_000
_VECTOR, _SCALAR, _WAITS, _MXU, _COPIES = 1, 2, 3, 10, 30
_COPY_LANES = {
    Direction.READ: "copies HBM to VMEM",
    Direction.WRITE: "copies VMEM to HBM",
    Direction.LOCAL: "copies to SMEM",
}


class _Recorder:
    """Collects events; an `interpreter.Observer`."""

    def __init__(self, program: Program, core: int, us_per_cycle: float, start_us: float) -> None:
        self.pid = core + 1
        self.us_per_cycle = us_per_cycle
        self.start_us = start_us
        self.is_vector = [
            any(count for slot, count in enumerate(b.slots) if slot != Slot.SALU)
            for b in program.bundles
        ]
        self.events: list[dict[str, Any]] = []
        self.lanes = {_VECTOR: "vector issue", _SCALAR: "scalar issue", _WAITS: "waits"}
        self.num_dropped = 0
        # The run of bundles that is being extended: lane, first and last address, first and
        # last cycle.
        self.run: tuple[int, int, int, int, int] | None = None

    def bundle(self, address: int, cycle: int) -> None:
        """Extends the current run of bundles or starts another."""
        lane = _VECTOR if self.is_vector[address] else _SCALAR
        if self.run is not None:
            before, first, last, start, end = self.run
            if before == lane and cycle == end + 1 and address == last + 1:
                self.run = (lane, first, address, start, cycle)
                return
        self.flush()
        self.run = (lane, address, address, cycle, cycle)

    def flush(self) -> None:
        """Writes the current run."""
        if self.run is not None:
            lane, first, last, start, end = self.run
            name = f"{first:#x}..{last:#x}"
            self.add(lane, name, start, end + 1, {"bundles": last - first + 1})
            self.run = None

    def stall(self, address: int, owner: Owner, start: int, end: int) -> None:
        """A wait."""
        self.add(_WAITS, owner.name.lower(), start, end, {"bundle": f"{address:#x}"})

    def copy(self, direction: Direction, start: float, end: float, num_bytes: int) -> None:
        """A copy while its engine serves it."""
        lane = _COPIES + direction
        self.lanes[lane] = _COPY_LANES[direction]
        self.add(lane, f"{num_bytes:,} bytes", start, end, {"bytes": num_bytes})

    def matmul(self, unit: int, start: float, end: float) -> None:
        """A matmul."""
        self.lanes[_MXU + unit] = f"MXU {unit}"
        self.add(_MXU + unit, "matmul", start, end, {})

    def add(self, lane: int, name: str, start: float, end: float, args: dict[str, Any]) -> None:
        """One slice."""
        if len(self.events) >= MAX_EVENTS:
            self.num_dropped += 1
            return
        self.events.append(
            {
                "ph": "X",
                "pid": self.pid,
                "tid": lane,
                "name": name,
                "ts": self.start_us + start * self.us_per_cycle,
                "dur": (end - start) * self.us_per_cycle,
                "args": {**args, "cycle": start},
            }
        )

    def names(self, kernel: str) -> list[dict[str, Any]]:
        """What processes and lanes are called."""
        named: list[tuple[str, int, dict[str, Any]]] = [
            ("process_name", 0, {"name": f"{kernel}, core {self.pid - 1}"}),
            *(("thread_name", lane, {"name": name}) for lane, name in sorted(self.lanes.items())),
            *(("thread_sort_index", lane, {"sort_index": lane}) for lane in sorted(self.lanes)),
        ]
        return [
            {"ph": "M", "pid": self.pid, "name": name, "args": args}
            | ({"tid": lane} if lane else {})
            for name, lane, args in named
        ]


def _record(program: Program, machine: Machine, operands: Operands, core: int) -> _Recorder:
    """Everything that one core does."""
    launch_us = machine.launch_cycles / machine.value("clock_hz") * 1e6
    recorder = _Recorder(program, core, 1e6 / machine.value("clock_hz"), launch_us)
    recorder.events.append(
        {"ph": "X", "pid": core + 1, "tid": _WAITS, "name": "launch", "ts": 0.0, "dur": launch_us}
    )
    Interpreter(program, rates_of(machine, program.num_cores), operands, recorder, core=core).run(
        MAX_BUNDLES
    )
    recorder.flush()
    return recorder


def make_trace(program: Program, machine: Machine, operands: Operands) -> dict[str, Any]:
    """The trace of one launch, as JSON data of the Chrome trace event format.

    Raises:
      DumpError: See `simulate`.
    """
    recorders = [_record(program, machine, operands, core) for core in range(program.num_cores)]
    kernel = f"{program.path.name} on {machine.chip}, simulated"
    return {
        "traceEvents": [
            *(name for recorder in recorders for name in recorder.names(kernel)),
            *(event for recorder in recorders for event in recorder.events),
        ],
        "displayTimeUnit": "ns",
        "otherData": {
            "chip": machine.chip,
            "kernel": program.path.name,
            "guesses": ", ".join(machine.guesses),
            "slices left out": sum(recorder.num_dropped for recorder in recorders),
        },
    }


def write_trace(program: Program, machine: Machine, operands: Operands, path: Path) -> int:
    """Writes a trace file; returns how many slices were left out of it."""
    trace = make_trace(program, machine, operands)
    path.write_text(json.dumps(trace, separators=(",", ":")))
    return int(trace["otherData"]["slices left out"])
