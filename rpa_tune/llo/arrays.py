"""The arrays that `fast.py` and the compiled `loop.py` share."""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

FLAGS_PER_ALLOCATION = 64
RING = 4096  # results a unit may hold; the hardware holds far fewer
POOL = 1 << 16  # copies in flight
UNITS = 8
BUFFERS = 1024
MAX_BARRIERS = 8  # between the cores of a device; one is usual

# Why the compiled loop stopped.
DONE, DEADLOCK, HALTED, TOO_LONG, SMEM_FULL, POOL_FULL, RING_FULL, BAD_FLAG, BAD_SIZE = range(9)
NO_MEMORY, NOT_GIVEN, BARRIERS_FULL, BEHIND_OPERAND, TRACE_FULL = 9, 10, 11, 12, 13


class State(NamedTuple):
    """Everything a run changes. Arrays are int64 unless noted.

    Attributes:
      registers: [registers]; the last is zero.
      phis: Values of a block's phis, read before any is written, [most phis of a block].
      smem: Words of all allocations, one behind the other.
      smem_base, smem_size: Place of each allocation in `smem`.
      flag_count: Granules counted, [flags].
      flag_head, flag_tail: First and last arrival in the pool, [flags]; the first is 0 for none.
      pool: Arrivals: (at, granules, direction, next or 0), [_POOL, 4]; slot 0's next is the first
        free one, or 0 before any was taken.
      engine: float64[3, 3]: free at by queue; busy, and of which fixed, by direction.
      moved: [3, 2]: (copies, bytes) by direction.
      mxu: float64[units, 2]: (free at, busy).
      ring: [units, _RING]: when results can be popped.
      ring_ends: [units, 2]: (head, tail).
      buffers: [units, 1024]: the same for addressed results, -1 when empty.
      counts: Times each block ran, [blocks].
      entered: Times each block was reached other than by a back edge, [blocks].
      stalls: [bundles, owners].
      scalars: (cycle, unmatched pops, bundle where it stopped, detail, barriers, length of trace).
      barriers: When each barrier was reached, [MAX_BARRIERS].
      trace: int32: the recording; empty when none is wanted. See `recording.py`.
    """

    registers: npt.NDArray[np.int64]
    phis: npt.NDArray[np.int64]
    smem: npt.NDArray[np.int64]
    smem_base: npt.NDArray[np.int64]
    smem_size: npt.NDArray[np.int64]
    flag_count: npt.NDArray[np.int64]
    flag_head: npt.NDArray[np.int64]
    flag_tail: npt.NDArray[np.int64]
    pool: npt.NDArray[np.int64]
    engine: npt.NDArray[np.float64]
    moved: npt.NDArray[np.int64]
    mxu: npt.NDArray[np.float64]
    ring: npt.NDArray[np.int64]
    ring_ends: npt.NDArray[np.int64]
    buffers: npt.NDArray[np.int64]
    counts: npt.NDArray[np.int64]
    entered: npt.NDArray[np.int64]
    stalls: npt.NDArray[np.int64]
    scalars: npt.NDArray[np.int64]
    barriers: npt.NDArray[np.int64]
    trace: npt.NDArray[np.int32]


class Timing(NamedTuple):
    """The part of `State` that a replay changes, in the same form.

    Attributes:
      stretch_cycles: What each stretch that was walked has cost, by its first row, else -1; see
        `recording.py`.
    """

    flag_count: npt.NDArray[np.int64]
    flag_head: npt.NDArray[np.int64]
    flag_tail: npt.NDArray[np.int64]
    pool: npt.NDArray[np.int64]
    engine: npt.NDArray[np.float64]
    mxu: npt.NDArray[np.float64]
    ring: npt.NDArray[np.int64]
    ring_ends: npt.NDArray[np.int64]
    buffers: npt.NDArray[np.int64]
    scalars: npt.NDArray[np.int64]
    stretch_cycles: npt.NDArray[np.int64]


class Clockwork(NamedTuple):
    """The part of `Inputs` that times depend on, in the same form."""

    copies: npt.NDArray[np.float64]
    queues: npt.NDArray[np.int64]
    slowdown: float
    numbers: npt.NDArray[np.int64]
    cycles_per_row: float


class Inputs(NamedTuple):
    """What a run reads.

    Attributes:
      rows, blocks: See `encode`.
      copies: float64[6, 4]: `CopyRates` by kind: linear by direction, then strided.
      queues: Queue of each direction, [3].
      slowdown: See `engines.Rates`.
      numbers: (granule bytes, narrow latency, wide latency, queue, results per eight rows,
        barrier, bytes of an HBM address, narrow speed).
      cycles_per_row: MXU time of a row.
      operand_values: Address, or value, of each operand.
      data: Scalar operands, one behind the other.
      data_of_operand: (start, length) in `data`, [operands, 2]; length -1 when an operand was not
        given, -2 when it is a value and not memory.
      is_spill: Whether an allocation holds spilled registers, [allocations].
      max_bundles: When to give up.
    """

    rows: npt.NDArray[np.int64]
    blocks: npt.NDArray[np.int64]
    copies: npt.NDArray[np.float64]
    queues: npt.NDArray[np.int64]
    slowdown: float
    numbers: npt.NDArray[np.int64]
    cycles_per_row: float
    operand_values: npt.NDArray[np.int64]
    data: npt.NDArray[np.int64]
    data_of_operand: npt.NDArray[np.int64]
    is_spill: npt.NDArray[np.int64]
    max_bundles: int
