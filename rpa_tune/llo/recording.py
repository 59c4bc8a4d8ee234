"""What a launch did, without its times: recorded once, timed again under any parameters.

Control flow does not depend on time, so a run is a list of blocks of bundles and, for each copy,
wait and flag of a block, its size and its flag. `replay` walks that list with the arithmetic of
`engines.py`; under the parameters of the run itself it ends in the same cycle.

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
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from rpa_tune.llo import encode
from rpa_tune.llo.arrays import BUFFERS, POOL, RING, UNITS, Clockwork, Timing
from rpa_tune.llo.encode import Encoded
from rpa_tune.llo.engines import Direction, Rates
from rpa_tune.llo.opcodes import Op
from rpa_tune.llo.timed import expect, matmul, pop, serve, take
from rpa_tune.llo.words import jit

_BRANCH, _WAIT, _SYNC_ADD, _DELAY = map(int, (Op.BRANCH, Op.WAIT, Op.SYNC_ADD, Op.DELAY))
_COPY, _MATMUL, _POP, _BARRIER = map(int, (Op.COPY, Op.MATMUL, Op.POP, Op.BARRIER))
_TIMED = (_BRANCH, _WAIT, _SYNC_ADD, _DELAY, _COPY, _MATMUL, _POP, _BARRIER)
_NUM_DIRECTIONS = len(Direction)
# Columns of a row: operation, cycle in its block, up to three constants, and where a stretch that
# starts here ends, or 0.
_OP, _OFFSET, _FIRST, _SECOND, _THIRD, _STRETCH = range(6)


class Recording(NamedTuple):
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

    @property
    def num_bundles(self) -> int:
        """Bundles executed."""
        return int(bundles_of(self.rows, self.blocks, self.trace))


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
            for array in (*recording[:3], np.array(facts, np.int32)):
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
        rates.narrow_speed,
    )
    return Clockwork(
        copies=np.array(rates.copies, np.float64).swapaxes(0, 1).reshape(-1, 4).copy(),
        queues=np.array(rates.queues, np.int64),
        slowdown=rates.slowdown,
        numbers=np.array(numbers, np.int64),
        cycles_per_row=rates.cycles_per_row,
    )


def replay(recording: Recording, machines: Sequence[Rates]) -> list[int]:
    """When the launch ends under each machine's parameters, in cycles since its first bundle."""
    # One set of arrays for all: memory that is new costs more than a short launch.
    timing = Timing(
        flag_count=np.empty(recording.num_flags, np.int64),
        flag_head=np.empty(recording.num_flags, np.int64),
        pool=np.empty((min(POOL, len(recording.trace) // 2 + 2), 4), np.int64),
        engine=np.empty((len(Direction), 3)),
        mxu=np.empty((UNITS, 2)),
        ring=np.empty((UNITS, RING), np.int64),
        ring_ends=np.empty((UNITS, 2), np.int64),
        buffers=np.empty((UNITS, BUFFERS), np.int64),
        scalars=np.zeros(2, np.int64),
    )
    ends = []
    for rates in machines:
        for array in (timing.flag_count, timing.engine, timing.mxu, timing.ring_ends):
            array.fill(0)
        timing.flag_head.fill(-1)
        timing.buffers.fill(-1)
        timing.pool[:, 3] = np.arange(1, len(timing.pool) + 1)
        timing.pool[-1, 3] = -1
        end = replay_loop(
            recording.rows, recording.blocks, recording.trace, clockwork(rates), timing
        )
        ends.append(int(end))
    return ends


@jit
def bundles_of(rows: Any, blocks: Any, trace: Any) -> int:
    """Bundles of a trace."""
    total = 0
    i = 0
    while i < len(trace):
        block = trace[i]
        i += 1
        total += blocks[block, 2]
        for row in range(blocks[block, 0], blocks[block, 1]):
            op = rows[row, _OP]
            if op in (_COPY, _WAIT, _SYNC_ADD):
                i += 1 if trace[i] == -1 else 2
            elif op == _DELAY:
                i += 1
    return total


@jit
def replay_loop(rows: Any, blocks: Any, trace: Any, inputs: Any, state: Any) -> int:
    """Walks a trace; returns the last cycle. A launch that ran once ends."""
    stalls = np.full(len(rows), -1, np.int64)  # of stretches that were walked once
    quiet_at = 0  # when all results are ready and all units idle
    base = 0
    i = 0
    while i < len(trace):
        block = trace[i]
        i += 1
        row, end = blocks[block, 0], blocks[block, 1]
        stretch, entered = -1, 0
        while row < end:
            op = rows[row, _OP]
            now = base + rows[row, _OFFSET]
            if rows[row, _STRETCH] and now >= quiet_at:
                if stalls[row] >= 0:
                    base += stalls[row]
                    row = rows[row, _STRETCH]
                    continue
                stretch, entered = row, base
            if op == _POP:
                base += pop(state, now, rows[row, _FIRST], rows[row, _THIRD]) - now
            elif op == _MATMUL:
                unit, size, buffer = rows[row, _FIRST], rows[row, _SECOND], rows[row, _THIRD]
                issue = matmul(inputs, state, now, unit, size, buffer)
                base += issue - now
                longest = max(inputs.numbers[1], inputs.numbers[2])
                quiet_at = math.ceil(state.mxu[unit, 0]) + longest
            elif op == _BRANCH:
                base += rows[row, _FIRST]
            elif op == _BARRIER:
                base += inputs.numbers[5]
            elif op == _DELAY:
                base += max(0, trace[i])
                i += 1
            elif trace[i] == -1:
                i += 1
            else:
                number, granules = trace[i], trace[i + 1]
                i += 2
                if op == _SYNC_ADD:
                    state.flag_count[number] += granules
                elif op == _WAIT:
                    until = now
                    while state.flag_count[number] < granules and state.flag_head[number] >= 0:
                        slot = take(state, number)
                        until = max(until, state.pool[slot, 0])
                    base += until - now
                elif granules > 0:
                    kind = rows[row, _FIRST]
                    num_bytes = granules * inputs.numbers[0]
                    at = serve(
                        inputs.copies, inputs.queues, inputs.slowdown, state.engine,
                        kind, now, num_bytes,
                    )  # fmt: skip
                    expect(state, number, at, granules, kind % _NUM_DIRECTIONS)
            row += 1
            if stretch >= 0 and row == rows[stretch, _STRETCH]:
                stalls[stretch] = base - entered
                # Every result was popped, so that it is ready.
                quiet_at = math.ceil(np.max(state.mxu[:, 0]))
                stretch = -1
        base += blocks[block, 2]
    return base
