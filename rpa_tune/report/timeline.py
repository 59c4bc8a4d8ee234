"""A simulated launch as a Chrome trace: open the file at ui.perfetto.dev.

One process a core. Lanes: vector issue, scalar issue, waits by owner, every MXU, every copy queue.
Issue slices are runs of bundles of one loop without a stall, named by the loop and by what fills
them. An arrow leads from a copy to the wait that it ended.
"""

import functools
import itertools
import json
import statistics
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rpa_tune.llo.engines import Direction, Owner, Rates, rates_of
from rpa_tune.llo.interpreter import Interpreter
from rpa_tune.llo.machine import Machine
from rpa_tune.llo.program import Instruction, Program
from rpa_tune.llo.run import Operands
from rpa_tune.llo.simulate import MAX_BUNDLES
from rpa_tune.llo.timeline import loop_bounds
from rpa_tune.llo.work import STARTS, VECTOR_WORK, work_of
from rpa_tune.report.nest import places

# Perfetto stays quick below this; a longer launch is cut, and the trace says so.
MAX_EVENTS = 400_000
_VECTOR, _SCALAR, _WAITS, _MXU, _COPIES = 1, 2, 3, 10, 30
_COPY_LANES = {
    Direction.READ: "copies HBM to VMEM",
    Direction.WRITE: "copies VMEM to HBM",
    Direction.LOCAL: "copies to SMEM",
}
_LEAST_SHARE = 0.2  # of a slice's bundles for which a kind of work is in its name
_MOST_CYCLES_BACK = 0.25  # an arrow ends inside the slice, not at its edge
_LEAST_TRIPS = 3  # of a loop, for one of its steps to be steady


@functools.lru_cache(maxsize=8)
def loops_by_address(program: Program, rates: Rates) -> tuple[str, ...]:
    """The innermost loop of each bundle by its place in the nest: `loop 2.1`, or empty."""
    found = [""] * len(program.bundles)
    for (first, last), place in places(loop_bounds(program, rates)).items():
        found[first : last + 1] = [f"loop {place}"] * (last + 1 - first)
    return tuple(found)


class _Recorder:
    """Collects events; an `interpreter.Observer`."""

    def __init__(
        self,
        program: Program,
        machine: Machine,
        core: int,
        most_events: int | None,
        labels: Sequence[str],
    ) -> None:
        rates = rates_of(machine, program.num_cores)
        self.pid = core + 1
        self.us_per_cycle = 1e6 / machine.value("clock_hz")
        self.start_us = machine.launch_cycles * self.us_per_cycle
        self.most_events = most_events
        self.work = [work_of(bundle) for bundle in program.bundles]
        self.labels = labels or [""] * len(program.bundles)
        self.places = loops_by_address(program, rates)
        self.is_vector = [work in [name for _, name in VECTOR_WORK] for work in self.work]
        self.events: list[dict[str, Any]] = []
        self.lanes = {_VECTOR: "vector issue", _SCALAR: "scalar issue", _WAITS: "waits"}
        self.num_dropped = 0
        # The run of bundles that is being extended: lane, first and last address, first and
        # last cycle.
        self.run: tuple[int, int, int, int, int] | None = None
        self.heads: dict[int, list[int]] = {first: [] for first, _ in loop_bounds(program, rates)}
        self.last_copy: dict[str, Any] | None = None
        self.last_stall: dict[str, Any] | None = None

    def bundle(self, address: int, cycle: int) -> None:
        """Extends the current run of bundles or starts another."""
        if address in self.heads:
            self.heads[address].append(cycle)
        lane = _VECTOR if self.is_vector[address] else _SCALAR
        if self.run is not None:
            before, first, last, start, end = self.run
            alike = before == lane and self._kind(address) == self._kind(last)
            if alike and cycle == end + 1 and address == last + 1:
                self.run = (lane, first, address, start, cycle)
                return
        self.flush()
        self.run = (lane, address, address, cycle, cycle)

    def flush(self) -> None:
        """Writes the current run."""
        if self.run is not None:
            lane, first, last, start, end = self.run
            args = {"bundles": last - first + 1, "addresses": f"{first:#x}..{last:#x}"}
            self.add(lane, self._name(first, last), start, end + 1, args)
            self.run = None

    def _kind(self, address: int) -> tuple[str, str]:
        """What the bundles of one slice have in common."""
        return self.places[address], self.labels[address]

    def _name(self, first: int, last: int) -> str:
        """`loop 2.1: qk, matmul + vector`; the phase, where it is known."""
        counts = Counter(self.work[first : last + 1])
        least = _LEAST_SHARE * (last + 1 - first)
        shown = [work for work, count in counts.most_common() if count >= least]
        starts = [work for work in STARTS.values() if work in counts and work not in shown]
        work = " + ".join([*shown, *starts])
        if label := self.labels[first]:
            work = label if label == work else f"{label}, {work}"
        return f"{self.places[first]}: {work}" if self.places[first] else work

    def stall(self, address: int, owner: Owner, start: int, end: int) -> None:
        """A wait."""
        name = owner.name.lower()
        place = f", {self.places[address]}" if self.places[address] else ""
        args = {"bundle": f"{address:#x}"}
        self.last_stall = self.add(_WAITS, f"{name}{place}", start, end, args)

    def copy(self, direction: Direction, start: float, end: float, num_bytes: int) -> None:
        """A copy while its engine serves it."""
        lane = _COPIES + direction
        self.lanes[lane] = _COPY_LANES[direction]
        self.last_copy = self.add(lane, f"{num_bytes:,} bytes", start, end, {"bytes": num_bytes})

    def matmul(self, unit: int, start: float, end: float) -> None:
        """A matmul."""
        self.lanes[_MXU + unit] = f"MXU {unit}"
        self.add(_MXU + unit, "matmul", start, end, {})

    def add(
        self, lane: int, name: str, start: float, end: float, args: dict[str, Any]
    ) -> dict[str, Any] | None:
        """One slice; None when there are too many already."""
        if self.most_events is not None and len(self.events) >= self.most_events:
            self.num_dropped += 1
            return None
        event = {
            "ph": "X",
            "pid": self.pid,
            "tid": lane,
            "name": name,
            "ts": self.start_us + start * self.us_per_cycle,
            "dur": (end - start) * self.us_per_cycle,
            "args": {**args, "cycle": start},
        }
        self.events.append(event)
        return event

    def arrow(self, number: int, copy: dict[str, Any], wait: dict[str, Any]) -> None:
        """From a copy's end to the end of the wait for it."""
        back = _MOST_CYCLES_BACK * self.us_per_cycle
        for phase, end, more in (("s", copy, {}), ("f", wait, {"bp": "e"})):
            at = max(end["ts"], end["ts"] + end["dur"] - back)
            self.events.append(
                {
                    "ph": phase, "id": number, "cat": "copy", "name": "arrives", "pid": self.pid,
                    "tid": end["tid"], "ts": at, **more,
                }
            )  # fmt: skip

    def steady_step(self) -> tuple[float, float] | None:
        """(from, to) of one trip of the loop that most of the time goes into, microseconds.

        The trip is as long as the middle one of all. None where no loop has three.
        """
        loops = [heads for heads in self.heads.values() if len(heads) > _LEAST_TRIPS]
        if not loops:
            return None
        heads = max(loops, key=lambda each: each[-1] - each[0])
        gaps = [after - before for before, after in itertools.pairwise(heads)]
        usual, middle = statistics.median(gaps), len(gaps) / 2
        best = min(range(len(gaps)), key=lambda i: (abs(gaps[i] - usual), abs(i - middle)))
        start, end = heads[best], heads[best + 1]
        return self.start_us + self.us_per_cycle * start, self.start_us + self.us_per_cycle * end

    def keep_step(self) -> None:
        """Drops what does not reach into the steady step."""
        if (step := self.steady_step()) is not None:
            start, end = step
            kept = [e for e in self.events if e["ts"] < end and e["ts"] + e.get("dur", 0.0) > start]
            ids = Counter(e["id"] for e in kept if "id" in e)
            self.events = [e for e in kept if "id" not in e or ids[e["id"]] == 2]

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


class _Tracing(Interpreter):
    """Tells its recorder which copy ended a wait."""

    def __init__(
        self, program: Program, rates: Rates, operands: Operands, recorder: _Recorder, core: int
    ) -> None:
        super().__init__(program, rates, operands, recorder, core=core)
        self.recorder = recorder
        self.copies: dict[int, dict[str, Any]] = {}  # slices of those under way, by their order

    def _copy(self, address: int, item: Instruction) -> None:
        self.recorder.last_copy = None
        super()._copy(address, item)
        if (copy := self.recorder.last_copy) is not None:
            self.copies[self.num_started] = copy

    def _wait(self, address: int, flag: int, granules: int) -> None:
        arrivals = list(self.flags[flag].arrivals) if flag in self.flags else []
        before, self.recorder.last_stall = self.now, None
        super()._wait(address, flag, granules)
        wait = self.recorder.last_stall
        ended_by = [arrival.order for arrival in arrivals if before < arrival.at == self.now]
        if wait is not None and ended_by and (copy := self.copies.pop(ended_by[-1], None)):
            self.recorder.arrow(ended_by[-1], copy, wait)


def _record(
    program: Program,
    machine: Machine,
    operands: Operands,
    core: int,
    *,
    one_step: bool,
    labels: Sequence[str],
) -> _Recorder:
    """Everything that one core does, or one steady step of it."""
    recorder = _Recorder(program, machine, core, None if one_step else MAX_EVENTS, labels)
    launch = {"ph": "X", "pid": core + 1, "tid": _WAITS, "name": "launch", "ts": 0.0}
    recorder.events.append(launch | {"dur": recorder.start_us})
    _Tracing(program, rates_of(machine, program.num_cores), operands, recorder, core).run(
        MAX_BUNDLES
    )
    recorder.flush()
    if one_step:
        recorder.keep_step()
    return recorder


def make_trace(
    program: Program,
    machine: Machine,
    operands: Operands,
    *,
    title: str = "",
    one_step: bool = False,
    labels: Sequence[str] = (),
) -> dict[str, Any]:
    """The trace of one launch, as JSON data of the Chrome trace event format.

    Args:
      program: The schedule.
      machine: Of which chip.
      operands: What the launch reads.
      title: What is launched; the schedule's file name if empty.
      one_step: Keep one trip of the loop that most of the time goes into; of a kernel without
        such a loop, everything.
      labels: The phase of each bundle, by which slices are cut and named; see `analysis.phases`.

    Raises:
      DumpError: See `simulate`.
    """
    recorders = [
        _record(program, machine, operands, core, one_step=one_step, labels=labels)
        for core in range(program.num_cores)
    ]
    kernel = f"{title or program.path.name} on {machine.chip}, simulated"
    return {
        "traceEvents": [
            *(name for recorder in recorders for name in recorder.names(kernel)),
            *(event for recorder in recorders for event in recorder.events),
        ],
        "displayTimeUnit": "ns",
        "otherData": {
            "chip": machine.chip,
            "kernel": title or program.path.name,
            "guesses": ", ".join(machine.guesses),
            "slices left out": sum(recorder.num_dropped for recorder in recorders),
        },
    }


def write_trace(
    program: Program, machine: Machine, operands: Operands, path: Path, **options: Any
) -> int:
    """Writes a trace file; returns how many slices were left out of it.

    Args:
      program: See `make_trace`, and for what follows.
      machine: Of which chip.
      operands: What the launch reads.
      path: The file.
      **options: `title`, `one_step` and `labels`.
    """
    trace = make_trace(program, machine, operands, **options)
    path.write_text(json.dumps(trace, separators=(",", ":")))
    return int(trace["otherData"]["slices left out"])
