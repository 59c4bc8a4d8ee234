"""What a launch did, without its times: recorded once, timed again under any parameters.

Control flow does not depend on time, so a run is a list of blocks of bundles and, for each copy,
wait and flag of a block, its size and its flag. What of it takes a time that depends on the machine
is an event; `replay` walks the events with the arithmetic of `engines.py`, and under the parameters
of the run itself ends in the same cycle.

A trace is int32: for each block its number, then what its rows did in their order: flag and
granules of a copy, a wait and what is added to a flag, the length of a delay; -1 where a predicate
forbade it.
"""

import functools
import io
import lzma
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from rpa_tune.llo import encode
from rpa_tune.llo.arrays import BUFFERS, POOL, RING, UNITS, Clockwork, Timing
from rpa_tune.llo.encode import Encoded
from rpa_tune.llo.engines import Direction, Rates
from rpa_tune.llo.opcodes import Op
from rpa_tune.llo.timed import expect, matmul, pop, serve, take
from rpa_tune.llo.words import inlined, jit

_BRANCH, _WAIT, _SYNC_ADD, _DELAY = map(int, (Op.BRANCH, Op.WAIT, Op.SYNC_ADD, Op.DELAY))
_COPY, _MATMUL, _POP, _BARRIER = map(int, (Op.COPY, Op.MATMUL, Op.POP, Op.BARRIER))
_TIMED = (_BRANCH, _WAIT, _SYNC_ADD, _DELAY, _COPY, _MATMUL, _POP, _BARRIER)
_NUM_DIRECTIONS = len(Direction)
# Columns of a row: operation, cycle in its block, up to three constants, and where a stretch that
# starts here ends, or 0.
_OP, _OFFSET, _FIRST, _SECOND, _THIRD, _STRETCH = range(6)


class Events(NamedTuple):
    """A trace without what costs the same under every machine.

    Attributes:
      table: int64[events, 4]: row, cycle had nothing stalled before, and the flag and granules of
        a copy, a wait or what is added to a flag. For the first of matmuls and pops that follow
        each other the row behind the last stands in place of a flag.
      cycles: Of the launch, had nothing stalled.
      bundles: Executed.
    """

    table: npt.NDArray[np.int64]
    cycles: int
    bundles: int


@dataclass(frozen=True, eq=False)
class Recording:
    """One launch on one core.

    Attributes:
      rows: int32[rows, 6]: what takes time, block after block.
      blocks: int32[blocks, 3]: first row, end of rows, bundles.
      trace: int32: see above.
      num_flags: Flags that the trace names.
    """

    rows: npt.NDArray[np.int32]
    blocks: npt.NDArray[np.int32]
    trace: npt.NDArray[np.int32]
    num_flags: int

    @functools.cached_property
    def events(self) -> Events:
        """What takes a time that depends on the machine."""
        room = len(self.trace)  # mostly enough; memory that is not written is not taken
        while True:
            table = np.empty((room, 4), np.int64)
            found, cycles, bundles = walk_trace(self.rows, self.blocks, self.trace, table)
            if found <= room:
                break
            room = found
        return Events(table[:found], cycles, bundles)

    @property
    def num_bundles(self) -> int:
        """Bundles executed."""
        return self.events.bundles


class Launch(NamedTuple):
    """One computation of a program, on every core that runs it.

    Attributes:
      cores: What each core does.
      is_kernel: Whether the launch of a kernel comes before it; XLA's own computations have none.
    """

    cores: tuple[Recording, ...]
    is_kernel: bool = True

    @property
    def num_bundles(self) -> int:
        """Bundles that the busier core executes: no machine takes fewer cycles."""
        return max(recording.num_bundles for recording in self.cores)


def make_recording(
    encoded: Encoded, trace: npt.NDArray[np.int32], num_flags: int, rates: Rates
) -> Recording:
    """Joins a trace with what its blocks hold."""
    rows, blocks = _timed_rows(encoded, rates.results_per_eight_rows)
    return Recording(rows, blocks, trace, num_flags)


@functools.lru_cache(maxsize=16)  # every launch of a program has the same
def _timed_rows(
    encoded: Encoded, per_eight: int
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
    """What takes time in each block; see `Recording`."""
    table, k = encoded.rows, encode.TERMS
    op, extra = table[:, encode.OP], table[:, encode.EXTRA]
    rows = np.stack(
        [op, table[:, encode.OFFSET], table[:, k], table[:, k + 3], table[:, k + 6]], axis=1
    )
    is_branch, is_copy = op == _BRANCH, op == _COPY
    rows[is_branch, _FIRST] = extra[is_branch] >> 32
    rows[is_copy, _FIRST] = extra[is_copy] % encode.NUM_KINDS
    kept = np.isin(op, _TIMED) & ~(is_branch & (rows[:, _FIRST] == 0))
    rows = np.concatenate([rows, np.zeros((len(rows), 1), rows.dtype)], axis=1)
    before = np.concatenate([[0], np.cumsum(kept)])
    blocks = np.stack(
        [
            before[encoded.blocks[:, encode.BODY]],
            before[encoded.blocks[:, encode.END]],
            encoded.blocks[:, encode.LENGTH],
        ],
        axis=1,
    )
    rows = rows[kept].astype(np.int32)
    for first, end, _ in blocks:
        _mark_stretches(rows, int(first), int(end), per_eight)
    return rows, blocks.astype(np.int32)


def _mark_stretches(rows: npt.NDArray[np.int32], first: int, end: int, per_eight: int) -> None:
    """Marks stretches of matmuls and pops of a block in which each result is popped that is made.

    What such a stretch costs does not depend on what was before, once that is over: `replay`
    counts it once.
    """
    row = first
    while row < end:
        unpopped: Counter[tuple[int, int]] = Counter()
        balanced, here = row, row
        while here < end:
            op, unit, size, buffer = rows[here, _OP:_STRETCH][[0, 2, 3, 4]].tolist()
            if op == _MATMUL:
                for result in range(size // 8 * per_eight):
                    unpopped[unit, -1 if buffer < 0 else buffer + result] += 1
            elif op == _POP and unpopped[unit, buffer]:
                unpopped[unit, buffer] -= 1
            else:
                break
            here += 1
            if not any(unpopped.values()):
                balanced = here
        if balanced > row + 1:
            rows[row, _STRETCH] = balanced
        row = max(balanced, row + 1)


def pack(launches: Sequence[Launch]) -> bytes:
    """Launches as compressed bytes, the same for the same launches."""
    packed = io.BytesIO()
    for launch in launches:
        for core, recording in enumerate(launch.cores):
            facts = (recording.num_flags, core, launch.is_kernel)
            arrays = (recording.rows, recording.blocks, recording.trace)
            for array in (*arrays, np.array(facts, np.int32)):
                np.save(packed, array, allow_pickle=False)
    return lzma.compress(packed.getvalue(), preset=9)


def unpack(content: bytes) -> tuple[Launch, ...]:
    """What `pack` packed.

    Raises:
      ValueError: It is something else.
    """
    launches: list[Launch] = []
    try:
        plain = lzma.decompress(content)
        packed = io.BytesIO(plain)
        while packed.tell() < len(plain):
            rows, blocks, trace, facts = (np.load(packed, allow_pickle=False) for _ in range(4))
            num_flags, core, is_kernel = facts.tolist()
            before = launches.pop().cores if core else ()
            cores = (*before, Recording(rows, blocks, trace, num_flags))
            launches.append(Launch(cores, bool(is_kernel)))
    except (lzma.LZMAError, EOFError, ValueError, IndexError) as error:
        raise ValueError(f"not a recording: {error}") from error
    return tuple(launches)


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
    )
    return Clockwork(
        copies=np.array(rates.copies, np.float64).swapaxes(0, 1).reshape(-1, 4).copy(),
        queues=np.array(rates.queues, np.int64),
        slowdown=rates.slowdown,
        numbers=np.array(numbers, np.int64),
        cycles_per_row=rates.cycles_per_row,
    )


@functools.lru_cache(maxsize=16)  # every launch is timed under the same
def _side_by_side(machines: tuple[Rates, ...]) -> Clockwork:
    """Machines' parameters, each array with an axis more in front."""
    return Clockwork(*(np.array(field) for field in zip(*map(clockwork, machines), strict=True)))


def replay(recording: Recording, machines: Sequence[Rates]) -> list[int]:
    """When the launch ends under each machine's parameters, in cycles since its first bundle."""
    if not machines:
        return []
    events = recording.events
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
        stretch_cycles=np.empty(len(recording.rows), np.int64),
    )
    lost = np.empty(len(machines), np.int64)
    replay_all(recording.rows, events.table, _side_by_side(tuple(machines)), timing, lost)
    return (events.cycles + lost).tolist()


@jit
def walk_trace(rows: Any, blocks: Any, trace: Any, events: Any) -> tuple[int, int, int]:
    """Writes the events of a trace as far as there is room, without what costs the same always.

    Returns:
      Events, cycles without stalls, bundles.
    """
    found = cycles = bundles = i = 0
    while i < len(trace):
        block = trace[i]
        i += 1
        row, end = blocks[block, 0], blocks[block, 1]
        while row < end:
            first, op, number, granules = row, rows[row, _OP], 0, 0
            row += 1
            if op == _BRANCH:
                cycles += rows[first, _FIRST]
                continue
            if op == _DELAY:
                cycles += max(0, trace[i])
                i += 1
                continue
            if op in (_MATMUL, _POP):
                while row < end and rows[row, _OP] in (_MATMUL, _POP):
                    row += 1
                number = row
            elif op != _BARRIER:
                number = trace[i]
                if number == -1:
                    i += 1
                    continue
                granules = trace[i + 1]
                i += 2
                if granules == 0 and op != _WAIT:
                    continue
            if found < len(events):
                events[found, 0], events[found, 1] = first, cycles + rows[first, _OFFSET]
                events[found, 2], events[found, 3] = number, granules
            found += 1
        cycles += blocks[block, 2]
        bundles += blocks[block, 2]
    return found, cycles, bundles


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
    base = now - rows[first, _OFFSET]
    lost = 0
    row = first
    stretch, entered = -1, 0
    while row < end:
        now = base + rows[row, _OFFSET] + lost
        if rows[row, _STRETCH] and now >= quiet_at:
            if state.stretch_cycles[row] >= 0:
                lost += state.stretch_cycles[row]
                row = rows[row, _STRETCH]
                continue
            stretch, entered = row, lost
        unit, size, buffer = rows[row, _FIRST], rows[row, _SECOND], rows[row, _THIRD]
        if rows[row, _OP] == _POP:
            lost += pop(state, now, unit, buffer) - now
        else:
            lost += matmul(inputs, state, now, unit, size, buffer) - now
            longest = max(inputs.numbers[1], inputs.numbers[2])
            quiet_at = math.ceil(state.mxu[unit, 0]) + longest
        row += 1
        if stretch >= 0 and row == rows[stretch, _STRETCH]:
            state.stretch_cycles[stretch] = lost - entered
            # Every result was popped, so that it is ready.
            quiet_at = 0
            for unit in range(UNITS):
                quiet_at = max(quiet_at, math.ceil(state.mxu[unit, 0]))
            stretch = -1
    return lost, quiet_at


@inlined
def replay_loop(rows: Any, events: Any, inputs: Any, state: Any) -> int:
    """Walks the events of a launch that ran once, so that it ends; returns the cycles it loses."""
    lost = quiet_at = 0
    for i in range(len(events)):
        row, number, granules = events[i, 0], events[i, 2], events[i, 3]
        now = events[i, 1] + lost
        op = rows[row, _OP]
        if op == _COPY:
            kind = rows[row, _FIRST]
            at = serve(
                inputs.copies, inputs.queues, inputs.slowdown, state.engine,
                kind, now, granules * inputs.numbers[0],
            )  # fmt: skip
            expect(state, number, at, granules, kind % _NUM_DIRECTIONS)
        elif op == _WAIT:
            while state.flag_count[number] < granules and state.flag_head[number] > 0:
                slot = take(state, number)
                lost = max(lost, state.pool[slot, 0] - events[i, 1])
        elif op == _SYNC_ADD:
            state.flag_count[number] += granules
        elif op == _BARRIER:
            lost += inputs.numbers[5]
        else:
            more, quiet_at = multiply(rows, row, number, now, quiet_at, inputs, state)
            lost += more
    return lost


@jit
def replay_all(rows: Any, events: Any, machines: Any, state: Any, lost: Any) -> None:
    """The cycles that a launch loses under each machine.

    One call and one set of arrays for all: either costs more than a short launch.
    """
    for m in range(len(lost)):
        state.flag_count[:] = 0
        state.flag_head[:] = 0
        state.pool[:, 3] = 0
        state.engine[:] = 0
        state.mxu[:] = 0
        state.ring_ends[:] = 0
        state.buffers[:] = -1
        state.stretch_cycles[:] = -1
        clock = Clockwork(
            machines.copies[m], machines.queues[m], machines.slowdown[m], machines.numbers[m],
            machines.cycles_per_row[m],
        )  # fmt: skip
        lost[m] = replay_loop(rows, events, clock, state)
