"""The compiled half of `engines.py`: what copies, flags and matrix units do to time.

The loop that runs a program and those that replay a recording share it. `inputs` is anything
with the fields of `arrays.Clockwork`, `state` anything with those of `arrays.Timing`.
"""

import math
from typing import Any

from rpa_tune.llo.arrays import BUFFERS, FLAGS_PER_ALLOCATION, RING
from rpa_tune.llo.engines import Direction
from rpa_tune.llo.program import ALLOCATION_BITS
from rpa_tune.llo.words import inlined

# The compiled code sees plain integers.
_OFFSET_MASK = (1 << ALLOCATION_BITS) - 1
_NUM_DIRECTIONS, _LOCAL = len(Direction), int(Direction.LOCAL)
_NEXT = 3  # column of the pool


@inlined
def expect(state: Any, flag: int, at: int, granules: int, direction: int) -> bool:
    """Queues an arrival behind those of its time or earlier; False when the pool is full."""
    pool = state.pool
    slot = max(1, pool[0, _NEXT])
    if slot == len(pool):
        return False
    # What is free is linked as it is given back; behind it, nothing was ever taken.
    pool[0, _NEXT] = slot + 1 if pool[slot, _NEXT] == 0 else pool[slot, _NEXT]
    pool[slot, 0] = at
    pool[slot, 1] = granules
    pool[slot, 2] = direction
    before, here = 0, state.flag_head[flag]
    if here > 0 and pool[state.flag_tail[flag], 0] <= at:
        before, here = state.flag_tail[flag], 0
    while here > 0 and pool[here, 0] <= at:
        before, here = here, pool[here, _NEXT]
    pool[slot, _NEXT] = here
    if before == 0:
        state.flag_head[flag] = slot
    else:
        pool[before, _NEXT] = slot
    if here == 0:
        state.flag_tail[flag] = slot
    return True


@inlined
def take(state: Any, flag: int) -> int:
    """Removes the first arrival of a flag and counts it; returns its slot."""
    slot: int = state.flag_head[flag]
    state.flag_head[flag] = state.pool[slot, _NEXT]
    state.flag_count[flag] += state.pool[slot, 1]
    state.pool[slot, _NEXT] = max(1, state.pool[0, _NEXT])
    state.pool[0, _NEXT] = slot
    return slot


@inlined
def flag_number(address: int) -> int:
    """Index of a flag, or -1."""
    offset = address & _OFFSET_MASK
    return -1 if offset >= FLAGS_PER_ALLOCATION else (address >> ALLOCATION_BITS) * 64 + offset


@inlined
def serve(
    copies: Any, queues: Any, slowdown: float, engine: Any, kind: int, now: int, num_bytes: int
) -> int:
    """Queues a copy; returns when its flag counts. `CopyEngine.start` is the definition."""
    direction = kind % _NUM_DIRECTIONS
    queue = queues[direction]
    begin = max(engine[queue, 0], float(now))
    moving = num_bytes / copies[kind, 1]
    lost = 0.0
    if direction < _LOCAL and queues[0] != queues[1]:
        overlap = min(moving, max(0.0, engine[1 - queue, 0] - begin))
        lost = overlap * slowdown
        engine[1 - queue, 0] += lost
    service = copies[kind, 0] + moving + lost
    free = begin + service
    engine[queue, 0] = free
    engine[direction, 1] += service
    engine[direction, 2] += copies[kind, 0]
    alone = begin + (copies[kind, 0] + num_bytes / copies[kind, 2])
    at: int = math.ceil(max(free, alone) + copies[kind, 3])
    return at


@inlined
def matmul(inputs: Any, state: Any, now: int, unit: int, rows: int, buffer: int) -> int:
    """Issues a matmul; returns when, or -1 when the ring is full."""
    free = state.mxu[unit, 0]
    issue: int = max(now, math.ceil(free) - inputs.numbers[3])
    start = max(free, float(issue))
    busy = rows * inputs.cycles_per_row / (inputs.numbers[7] if rows > 16 else 1)
    state.mxu[unit, 0] = start + busy
    state.mxu[unit, 1] += busy
    latency = inputs.numbers[2] if rows <= 8 else inputs.numbers[1]
    ready = math.ceil(start) + latency
    for result in range(rows // 8 * inputs.numbers[4]):
        if buffer < 0:
            tail = state.ring_ends[unit, 1]
            if tail - state.ring_ends[unit, 0] >= RING:
                return -1
            state.ring[unit, tail % RING] = ready
            state.ring_ends[unit, 1] = tail + 1
        else:
            state.buffers[unit, (buffer + result) % BUFFERS] = ready
    return issue


@inlined
def pop(state: Any, now: int, unit: int, buffer: int) -> int:
    """When a result can be popped; `now` and a count when no matmul made one."""
    ready = -1
    if buffer >= 0:
        ready = state.buffers[unit, buffer]
        state.buffers[unit, buffer] = -1
    elif state.ring_ends[unit, 0] < state.ring_ends[unit, 1]:
        head = state.ring_ends[unit, 0]
        ready = state.ring[unit, head % RING]
        state.ring_ends[unit, 0] = head + 1
    if ready < 0:
        state.scalars[1] += 1
    return max(now, ready)
