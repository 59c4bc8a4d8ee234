"""Times a recorded launch under other parameters, with the arithmetic of `engines.py`.

Under the parameters of the run itself it ends in the same cycle. All machines are walked through a
launch side by side, as long as each of its flags counts copies in the order in which they start;
where that is not so under one of them, each machine is walked by itself.
"""

import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from rpa_tune.llo.arrays import BUFFERS, POOL, RING, UNITS, Clockwork, Timing
from rpa_tune.llo.engines import Direction, Rates
from rpa_tune.llo.events import (
    BARRIER,
    BEFORE,
    COPY,
    CYCLE,
    FIRST,
    GRANULES,
    NUMBER,
    OFFSET,
    OP,
    POP,
    ROW,
    SECOND,
    SLOT,
    STRETCH,
    SYNC_ADD,
    THIRD,
    WAIT,
    Events,
)
from rpa_tune.llo.recording import Recording
from rpa_tune.llo.timed import expect, matmul, pop, serve, take
from rpa_tune.llo.words import inlined, jit

_NUM_DIRECTIONS, _LOCAL = len(Direction), int(Direction.LOCAL)


class Abreast(NamedTuple):
    """Many machines in a launch, side by side; what `Timing` has of one.

    Attributes:
      lost: float64[machines]: cycles.
      free: float64[queues, machines]: when a queue is free.
      at: float64[slots, machines]: when a copy's flag counts.
      quiet_at: [machines]: when all results are ready and all units idle.
      others: As in `Timing`, with an axis of machines in front.
    """

    lost: npt.NDArray[np.float64]
    free: npt.NDArray[np.float64]
    at: npt.NDArray[np.float64]
    quiet_at: npt.NDArray[np.int64]
    mxu: npt.NDArray[np.float64]
    ring: npt.NDArray[np.int64]
    ring_ends: npt.NDArray[np.int64]
    buffers: npt.NDArray[np.int64]
    scalars: npt.NDArray[np.int64]
    stretch_cycles: npt.NDArray[np.int64]


class Units(NamedTuple):
    """The part of `Timing` that matrix units are, in the same form."""

    mxu: npt.NDArray[np.float64]
    ring: npt.NDArray[np.int64]
    ring_ends: npt.NDArray[np.int64]
    buffers: npt.NDArray[np.int64]
    scalars: npt.NDArray[np.int64]
    stretch_cycles: npt.NDArray[np.int64]


@functools.lru_cache(maxsize=256)
def clockwork(rates: Rates) -> Clockwork:
    """A machine's parameters as arrays, which nobody writes to."""
    numbers = (
        rates.granule_bytes,
        rates.latency_narrow,
        rates.latency_wide,
        rates.queue_cycles,
        rates.results_per_eight_rows,
        rates.barrier_cycles,
        rates.hbm_address_bytes,
        rates.narrow_speed,
    )
    return Clockwork(
        copies=np.array(rates.copies, np.float64).swapaxes(0, 1).reshape(-1, 4).copy(),
        queues=np.array(rates.queues, np.int64),
        slowdown=rates.slowdown,
        numbers=np.array(numbers, np.int64),
        cycles_per_row=rates.cycles_per_row,
    )


@functools.lru_cache(maxsize=16)  # every launch is timed under the same
def _side_by_side(machines: tuple[Rates, ...]) -> tuple[Clockwork, npt.NDArray[np.float64]]:
    """Machines' parameters, each with an axis of machines in front; and copies', with it behind."""
    fields = zip(*map(clockwork, machines), strict=True)
    clocks = Clockwork._make(map(np.array, fields))
    return clocks, np.moveaxis(clocks.copies, 0, -1).copy()


def replay(recording: Recording, machines: Sequence[Rates]) -> list[int]:
    """When the launch ends under each machine's parameters, in cycles since its first bundle."""
    events, rows = recording.events, recording.rows
    if len({(rates.queues, rates.granule_bytes) for rates in machines}) == 1:
        clocks, copies = _side_by_side(tuple(machines))
        state = _abreast(len(machines), events, len(rows))
        if replay_abreast(rows, events.table, clocks, copies, state):
            return [events.cycles + int(lost) for lost in state.lost]
    timing = Timing(
        flag_count=np.empty(recording.num_flags, np.int64),
        flag_head=np.empty(recording.num_flags, np.int64),
        flag_tail=np.empty(recording.num_flags, np.int64),
        pool=np.empty((min(POOL, len(events.table) + 2), 4), np.int64),
        engine=np.empty((len(Direction), 3)),
        mxu=np.empty((UNITS, 2)),
        ring=np.empty((UNITS, RING), np.int64),
        ring_ends=np.empty((UNITS, 2), np.int64),
        buffers=np.empty((UNITS, BUFFERS), np.int64),
        scalars=np.zeros(2, np.int64),
        stretch_cycles=np.empty(len(rows), np.int64),
    )
    return [
        events.cycles + int(replay_alone(rows, events.table, clockwork(rates), timing))
        for rates in machines
    ]


def _abreast(count: int, events: Events, num_rows: int) -> Abreast:
    """Machines before the first event."""
    units = events.num_units  # memory that is new costs more than a short launch
    return Abreast(
        lost=np.zeros(count),
        free=np.zeros((len(Direction), count)),
        at=np.zeros((events.num_slots, count)),
        quiet_at=np.zeros(count, np.int64),
        mxu=np.zeros((count, units, 2)),
        ring=np.empty((count, units, RING), np.int64),
        ring_ends=np.zeros((count, units, 2), np.int64),
        buffers=np.full((count, units, BUFFERS), -1, np.int64),
        scalars=np.zeros((count, 2), np.int64),
        stretch_cycles=np.full((count, num_rows), -1, np.int64),
    )


@inlined
def multiply(
    rows: Any, first: int, end: int, now: int, quiet_at: int, inputs: Any, state: Any
) -> tuple[int, int]:
    """Matmuls and pops that follow each other in a block, the first at `now`.

    A stretch that begins when all results are ready and all units idle, at `quiet_at`, costs what
    it did before.

    Returns:
      Cycles lost, and the new `quiet_at`.
    """
    base = now - rows[first, OFFSET]
    lost = 0
    row = first
    stretch, entered = -1, 0
    while row < end:
        now = base + rows[row, OFFSET] + lost
        if rows[row, STRETCH] and now >= quiet_at:
            if state.stretch_cycles[row] >= 0:
                lost += state.stretch_cycles[row]
                row = rows[row, STRETCH]
                continue
            stretch, entered = row, lost
        unit, size, buffer = rows[row, FIRST], rows[row, SECOND], rows[row, THIRD]
        if rows[row, OP] == POP:
            lost += pop(state, now, unit, buffer) - now
        else:
            lost += matmul(inputs, state, now, unit, size, buffer) - now
            longest = max(inputs.numbers[1], inputs.numbers[2])
            quiet_at = math.ceil(state.mxu[unit, 0]) + longest
        row += 1
        if stretch >= 0 and row == rows[stretch, STRETCH]:
            state.stretch_cycles[stretch] = lost - entered
            # Every result was popped, so that it is ready.
            quiet_at = 0
            for unit in range(len(state.mxu)):
                quiet_at = max(quiet_at, math.ceil(state.mxu[unit, 0]))
            stretch = -1
    return lost, quiet_at


@jit
def multiply_one(
    rows: Any, first: int, end: int, now: int, clocks: Any, state: Any, m: int
) -> tuple[int, int]:
    """The same for one of many machines."""
    clock = Clockwork(
        clocks.copies[m], clocks.queues[m], clocks.slowdown[m], clocks.numbers[m],
        clocks.cycles_per_row[m],
    )  # fmt: skip
    units = Units(
        state.mxu[m], state.ring[m], state.ring_ends[m], state.buffers[m], state.scalars[m],
        state.stretch_cycles[m],
    )  # fmt: skip
    found: tuple[int, int] = multiply(rows, first, end, now, state.quiet_at[m], clock, units)
    return found


@inlined
def serve_abreast(
    queues: Any, slowdown: Any, copies: Any, state: Any, event: Any, num_bytes: float
) -> bool:
    """Queues a copy under each machine; False when its flag would count it before an earlier one.

    `timed.serve` for many machines; `copies` are those of its kind, [4, machines].
    """
    direction, cycle, slot, before = event
    queue, lost, free, at = queues[direction], state.lost, state.free, state.at
    is_apart = direction < _LOCAL and queues[0] != queues[1]
    in_order = True
    for m in range(len(lost)):
        now = cycle + lost[m]
        begin = free[queue, m] if free[queue, m] > now else now
        moving = num_bytes / copies[1, m]
        waste = 0.0
        if is_apart and free[1 - queue, m] > begin:
            overlap = free[1 - queue, m] - begin
            waste = (moving if moving < overlap else overlap) * slowdown[m]
            free[1 - queue, m] += waste
        end = begin + (copies[0, m] + moving + waste)
        free[queue, m] = end
        alone = begin + (copies[0, m] + num_bytes / copies[2, m])
        counted = np.ceil((end if end > alone else alone) + copies[3, m])
        in_order &= counted >= at[before, m]
        at[slot, m] = counted
    return in_order


@jit
def replay_abreast(rows: Any, events: Any, clocks: Any, copies: Any, state: Any) -> bool:
    """Walks events with all machines; leaves `state.lost`, or says that one has another order."""
    lost = state.lost
    queues, granule_bytes = clocks.queues[0], clocks.numbers[0, 0]
    for i in range(len(events)):
        row, cycle, slot = events[i, ROW], float(events[i, CYCLE]), events[i, SLOT]
        op = rows[row, OP]
        if op == COPY:
            kind, num_bytes = rows[row, FIRST], float(events[i, GRANULES] * granule_bytes)
            event = (kind % _NUM_DIRECTIONS, cycle, slot, events[i, BEFORE])
            if not serve_abreast(queues, clocks.slowdown, copies[kind], state, event, num_bytes):
                return False
        elif op == WAIT:
            if slot > 0:
                for m in range(len(lost)):
                    until = state.at[slot, m] - cycle
                    lost[m] = until if until > lost[m] else lost[m]
        elif op == BARRIER:
            for m in range(len(lost)):
                lost[m] += clocks.numbers[m, 5]
        elif op != SYNC_ADD:
            end = events[i, NUMBER]
            for m in range(len(lost)):
                now = events[i, CYCLE] + int(lost[m])
                is_quiet = rows[row, STRETCH] == end and now >= state.quiet_at[m]
                if is_quiet and state.stretch_cycles[m, row] >= 0:
                    lost[m] += state.stretch_cycles[m, row]
                    continue
                more, state.quiet_at[m] = multiply_one(rows, row, end, now, clocks, state, m)
                lost[m] += more
    return True


@jit
def replay_alone(rows: Any, events: Any, inputs: Any, state: Any) -> int:
    """Walks events with one machine; returns the cycles it loses.

    The launch ran once, so that it ends.
    """
    state.flag_count[:] = 0
    state.flag_head[:] = 0
    state.pool[:, 3] = 0
    state.engine[:] = 0
    state.mxu[:] = 0
    state.ring_ends[:] = 0
    state.buffers[:] = -1
    state.stretch_cycles[:] = -1
    lost = quiet_at = 0
    for i in range(len(events)):
        row, number, granules = events[i, ROW], events[i, NUMBER], events[i, GRANULES]
        now = events[i, CYCLE] + lost
        op = rows[row, OP]
        if op == COPY:
            kind = rows[row, FIRST]
            at = serve(
                inputs.copies, inputs.queues, inputs.slowdown, state.engine,
                kind, now, granules * inputs.numbers[0],
            )  # fmt: skip
            expect(state, number, at, granules, kind % _NUM_DIRECTIONS)
        elif op == WAIT:
            while state.flag_count[number] < granules and state.flag_head[number] > 0:
                slot = take(state, number)
                lost = max(lost, state.pool[slot, 0] - events[i, CYCLE])
        elif op == SYNC_ADD:
            state.flag_count[number] += granules
        elif op == BARRIER:
            lost += inputs.numbers[5]
        else:
            more, quiet_at = multiply(rows, row, number, now, quiet_at, inputs, state)
            lost += more
    return lost
