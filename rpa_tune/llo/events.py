"""A recording without what costs the same under every machine: what is left has a time to find."""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from rpa_tune.llo.opcodes import Op
from rpa_tune.llo.timed import expect, take
from rpa_tune.llo.words import jit

# The compiled code sees plain integers.
BRANCH, WAIT, SYNC_ADD, DELAY = map(int, (Op.BRANCH, Op.WAIT, Op.SYNC_ADD, Op.DELAY))
COPY, MATMUL, POP, BARRIER = map(int, (Op.COPY, Op.MATMUL, Op.POP, Op.BARRIER))
TIMED = (BRANCH, WAIT, SYNC_ADD, DELAY, COPY, MATMUL, POP, BARRIER)
# Columns of a recording's rows: operation, cycle in its block, up to three constants, and where a
# stretch that starts here ends, or 0.
OP, OFFSET, FIRST, SECOND, THIRD, STRETCH = range(6)
# Columns of an event.
ROW, CYCLE, NUMBER, GRANULES, SLOT, BEFORE = range(6)


class Events(NamedTuple):
    """What takes a time that depends on the machine, in order.

    Attributes:
      table: int64[events, 6]: row; cycle, had nothing stalled before; flag and granules of a copy,
        a wait or what is added to a flag, or in a flag's place the row behind the last of matmuls
        and pops that follow each other; a copy's slot, or that of the last copy that a wait counts;
        and the slot of the copy that its flag expects before. Slots, 0 for none, hold as long as
        flags count copies in the order in which these start, which `replay.py` sees to.
      cycles: Of the launch, had nothing stalled.
      bundles: Executed.
      num_slots: Slots and the one that stands for none.
      num_units: Matrix units that rows name.
    """

    table: npt.NDArray[np.int64]
    cycles: int
    bundles: int
    num_slots: int
    num_units: int


class Flags(NamedTuple):
    """The part of `arrays.State` that flags are, in the same form."""

    flag_count: npt.NDArray[np.int64]
    flag_head: npt.NDArray[np.int64]
    flag_tail: npt.NDArray[np.int64]
    pool: npt.NDArray[np.int64]


def find_events(
    rows: npt.NDArray[np.int32],
    blocks: npt.NDArray[np.int32],
    trace: npt.NDArray[np.int32],
    num_flags: int,
) -> Events:
    """The events of a recording; see `recording.Recording`."""
    multiplies = (rows[:, OP] == MATMUL) | (rows[:, OP] == POP)
    num_units = int(rows[multiplies, FIRST].max(initial=-1)) + 1
    room = len(trace)  # mostly enough; memory that is not written is not taken
    while True:
        flags = Flags(
            flag_count=np.zeros(num_flags, np.int64),
            flag_head=np.zeros(num_flags, np.int64),
            flag_tail=np.zeros(num_flags, np.int64),
            pool=np.zeros((len(trace) // 2 + 2, 4), np.int64),  # a copy has two words of the trace
        )
        table = np.empty((room, 6), np.int64)
        found, cycles, bundles, num_slots = walk_trace(rows, blocks, trace, flags, table)
        if found <= room:
            return Events(table[:found], cycles, bundles, num_slots, num_units)
        room = found


@jit
def walk_trace(
    rows: Any, blocks: Any, trace: Any, flags: Any, events: Any
) -> tuple[int, int, int, int]:
    """Writes the events of a trace as far as there is room.

    Returns:
      Events, cycles, bundles and slots; see `Events`.
    """
    found = cycles = bundles = i = 0
    num_slots = 1
    while i < len(trace):
        block = trace[i]
        i += 1
        row, end = blocks[block, 0], blocks[block, 1]
        while row < end:
            first, op = row, rows[row, OP]
            number = granules = slot = before = 0
            row += 1
            if op == BRANCH:
                cycles += rows[first, FIRST]
                continue
            if op == DELAY:
                cycles += max(0, trace[i])
                i += 1
                continue
            if op in (MATMUL, POP):
                while row < end and rows[row, OP] in (MATMUL, POP):
                    row += 1
                number = row
            elif op != BARRIER:
                number = trace[i]
                if number == -1:
                    i += 1
                    continue
                granules = trace[i + 1]
                i += 2
                if op == SYNC_ADD:
                    flags.flag_count[number] += granules
                elif op == WAIT:
                    while flags.flag_count[number] < granules and flags.flag_head[number] > 0:
                        slot = take(flags, number)
                elif granules == 0:
                    continue
                else:
                    before = flags.flag_tail[number] if flags.flag_head[number] > 0 else 0
                    expect(flags, number, found, granules, 0)
                    slot = flags.flag_tail[number]
                    num_slots = max(num_slots, slot + 1)
            if found < len(events):
                events[found, ROW], events[found, CYCLE] = first, cycles + rows[first, OFFSET]
                events[found, NUMBER], events[found, GRANULES] = number, granules
                events[found, SLOT], events[found, BEFORE] = slot, before
            found += 1
        cycles += blocks[block, 2]
        bundles += blocks[block, 2]
    return found, cycles, bundles, num_slots
