"""A copy engine with more parameters than the simulator's, for `engine_trials.py`.

Reads and writes wait in one queue, in order. How quickly the first of it is served may depend on
what is in flight and on what the core does. Without what the forms add it is the simulator's.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from rpa_tune.llo.arrays import BUFFERS, RING, UNITS, Timing
from rpa_tune.llo.calibrate import Observation
from rpa_tune.llo.engines import Direction, rates_of
from rpa_tune.llo.events import (
    BARRIER,
    COPY,
    CYCLE,
    FIRST,
    GRANULES,
    NUMBER,
    OP,
    ROW,
    SLOT,
    SYNC_ADD,
    WAIT,
)
from rpa_tune.llo.machine import load_machine
from rpa_tune.llo.recording import Recording
from rpa_tune.llo.replay import clockwork, multiply
from rpa_tune.llo.words import jit

CHIP = "v7x"
# Columns of a queue of copies.
_ISSUED, _FIXED, _BYTES, _RATE, _SLOT, _FLAG, _LATENCY = range(7)
# Parameters of the engine: cycles, bytes a cycle, and what each form adds.
ENGINE = (
    "fixed", "latency", "linear", "strided", "write_fixed", "restart", "busy_share", "half_bytes",
    "half_copies", "half_flags", "half_copy", "write_latency",
    "stolen",
)  # fmt: skip
(
    _P_FIXED, _P_LATENCY, _P_LINEAR, _P_STRIDED, _P_WRITE, _P_RESTART, _P_BUSY, _P_IN_FLIGHT,
    _P_COPIES, _P_FLAGS, _P_COPY, _P_WRITTEN,
    _P_STOLEN,
) = range(len(ENGINE))  # fmt: skip
_NUM_DIRECTIONS, _WRITE, _LOCAL = len(Direction), int(Direction.WRITE), int(Direction.LOCAL)


class Engine(NamedTuple):
    """The engine in a launch.

    Attributes:
      parameters: By `ENGINE`.
      queue: float64[copies, 7]: in the order in which they start.
      ends: First of the queue that is not served, and behind the last.
      flow: Bytes, copies and semaphores in flight; when the engine is free; bytes of the first copy
        when it began, or 0; bytes that moved while the core worked and took no cycle of it yet.
      open_flags: Copies in flight by semaphore.
      at: When a copy's flag counts, by slot; -1 of one that is not served.
    """

    parameters: npt.NDArray[np.float64]
    queue: npt.NDArray[np.float64]
    ends: npt.NDArray[np.int64]
    flow: npt.NDArray[np.float64]
    open_flags: npt.NDArray[np.int64]
    at: npt.NDArray[np.float64]


def engine_of(values: Mapping[str, float]) -> npt.NDArray[np.float64]:
    """The engine's parameters: what a form does not have is off, or as its neighbour."""
    off = {
        "strided": values["linear"], "write_fixed": values["fixed"], "restart": 0.0,
        "busy_share": 1.0, "half_bytes": 0.0, "half_copies": 0.0, "half_flags": 0.0,
        "half_copy": 0.0, "write_latency": values["latency"],
        "stolen": 0.0,
    }  # fmt: skip
    return np.array([values.get(name, off.get(name, 0.0)) for name in ENGINE])


@jit
def _speed(parameters: Any, flow: Any, rate: float, num_bytes: float, is_busy: bool) -> float:
    """Bytes a cycle of the copy that is served now. `flow`: bytes, copies, semaphores in flight."""
    speed = rate * flow[0] / (flow[0] + parameters[_P_IN_FLIGHT])
    speed *= flow[1] / (flow[1] + parameters[_P_COPIES])
    speed *= flow[2] / (flow[2] + parameters[_P_FLAGS])
    speed *= num_bytes / (num_bytes + parameters[_P_COPY])
    return speed * parameters[_P_BUSY] if is_busy else speed


@jit
def _advance(engine: Any, until: float, slot: int, is_busy: bool) -> None:
    """Serves copies until a time, or until that of a slot is served."""
    parameters, queue, ends, flow = engine.parameters, engine.queue, engine.ends, engine.flow
    while ends[0] < ends[1]:
        first = queue[ends[0]]
        begin = max(flow[3], first[_ISSUED])
        if begin >= until:
            return
        if flow[4] == 0:
            flow[4] = first[_BYTES]
            if first[_ISSUED] > flow[3]:
                first[_FIXED] += parameters[_P_RESTART]
        speed = _speed(parameters, flow, first[_RATE], flow[4], is_busy)
        end = begin + first[_FIXED] + first[_BYTES] / speed
        if end > until:
            left = until - begin
            paid = min(left, first[_FIXED])
            first[_FIXED] -= paid
            moved = min(first[_BYTES], (left - paid) * speed)
            first[_BYTES] -= moved
            flow[0] -= moved
            flow[3] = until
            flow[5] += moved if is_busy else 0.0
            return
        flow[0] = max(1.0, flow[0] - first[_BYTES])
        flow[5] += first[_BYTES] if is_busy else 0.0
        flow[1] -= 1
        flag = int(first[_FLAG])
        engine.open_flags[flag] -= 1
        if engine.open_flags[flag] == 0:
            flow[2] -= 1
        flow[3], flow[4] = end, 0.0
        engine.at[int(first[_SLOT])] = math.ceil(end + first[_LATENCY])
        ends[0] += 1
        if int(first[_SLOT]) == slot:
            return


@jit
def _start(engine: Any, now: int, kind: int, num_bytes: float, slot: int, number: int) -> None:
    """Queues a read or a write."""
    parameters, flow = engine.parameters, engine.flow
    is_write = kind % _NUM_DIRECTIONS == _WRITE
    last = engine.queue[engine.ends[1]]
    last[_ISSUED], last[_BYTES], last[_SLOT], last[_FLAG] = now, num_bytes, slot, number
    last[_FIXED] = parameters[_P_WRITE if is_write else _P_FIXED]
    last[_LATENCY] = parameters[_P_WRITTEN if is_write else _P_LATENCY]
    last[_RATE] = parameters[_P_LINEAR if kind < _NUM_DIRECTIONS else _P_STRIDED]
    engine.at[slot] = -1.0
    flow[0] += num_bytes
    flow[1] += 1
    engine.open_flags[number] += 1
    flow[2] += engine.open_flags[number] == 1
    engine.ends[1] += 1


@jit
def _work(engine: Any, now: int) -> int:
    """Serves copies beside the core until `now`; returns the cycles that they took from it."""
    _advance(engine, now, -1, True)
    each = engine.parameters[_P_STOLEN]
    stolen = int(engine.flow[5] * each)
    engine.flow[5] -= stolen / max(each, 1e-30)
    return stolen


@jit
def _walk(rows: Any, events: Any, inputs: Any, state: Any, engine: Any) -> int:
    """Cycles that a launch loses; `replay.replay_alone` with this engine."""
    lost = quiet_at = 0
    local_free = 0.0
    for i in range(len(events)):
        row, number, slot = events[i, ROW], events[i, NUMBER], events[i, SLOT]
        now = events[i, CYCLE] + lost
        op = rows[row, OP]
        if op == COPY:
            kind = rows[row, FIRST]
            num_bytes = float(events[i, GRANULES] * inputs.numbers[0])
            if kind % _NUM_DIRECTIONS == _LOCAL:
                local_free = max(local_free, float(now)) + (
                    engine.parameters[_P_FIXED] + num_bytes / engine.parameters[_P_LINEAR]
                )
                engine.at[slot] = math.ceil(local_free + engine.parameters[_P_LATENCY])
                continue
            stolen = _work(engine, now)
            lost += stolen
            _start(engine, now + stolen, kind, num_bytes, slot, number)
        elif op == WAIT:
            if slot > 0:
                stolen = _work(engine, now)
                lost += stolen
                if engine.at[slot] < 0:
                    _advance(engine, np.inf, slot, False)
                if engine.at[slot] > now + stolen:
                    _advance(engine, engine.at[slot], -1, False)
                    lost = int(engine.at[slot]) - events[i, CYCLE]
        elif op not in (SYNC_ADD, BARRIER):
            more, quiet_at = multiply(rows, row, number, now, quiet_at, inputs, state)
            lost += more
    return lost


def cycles_of(recording: Recording, inputs: Any, parameters: npt.NDArray[np.float64]) -> int:
    """When a launch on one core ends, in cycles since its first bundle."""
    events, count = recording.events, len(recording.rows)
    # Only what `multiply` reads; the copies are elsewhere.
    nothing = np.empty(0, np.int64)
    state = Timing(
        flag_count=nothing, flag_head=nothing, flag_tail=nothing, pool=np.empty((1, 4), np.int64),
        engine=np.empty((1, 3)), mxu=np.zeros((UNITS, 2)), ring=np.empty((UNITS, RING), np.int64),
        ring_ends=np.zeros((UNITS, 2), np.int64), buffers=np.full((UNITS, BUFFERS), -1, np.int64),
        scalars=np.zeros(2, np.int64), stretch_cycles=np.full(count, -1, np.int64),
    )  # fmt: skip
    copies = int((recording.rows[events.table[:, ROW], OP] == COPY).sum())
    engine = Engine(
        parameters=parameters,
        queue=np.zeros((copies + 1, 7)),
        ends=np.zeros(2, np.int64),
        flow=np.zeros(6),
        open_flags=np.zeros(recording.num_flags, np.int64),
        at=np.zeros(events.num_slots),
    )
    return events.cycles + int(_walk(recording.rows, events.table, inputs, state, engine))


def times_us(
    observations: Sequence[Observation], values: Mapping[str, float]
) -> npt.NDArray[np.float64]:
    """Simulated times."""
    machine = load_machine(CHIP).with_values(
        {
            "matmul_latency_bf16_cycles": values["bf16"],
            "matmul_latency_f32_cycles": values["f32"],
        },
        source="a trial",
        confidence="guess",
    )
    inputs, parameters = clockwork(rates_of(machine)), engine_of(values)
    clock = values.get("clock_hz", machine.value("clock_hz")) / 1e6
    return np.array(
        [
            sum(
                cycles_of(launch.cores[0], inputs, parameters) / clock
                + (values["launch_us"] if launch.is_kernel else 0.0)
                for launch in o.launches
            )
            for o in observations
        ]
    )
