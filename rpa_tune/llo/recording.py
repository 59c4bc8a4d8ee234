"""What a launch did, without its times: recorded once, timed again under any parameters.

Control flow does not depend on time, so a run is a list of blocks of bundles and, for each copy,
wait and flag of a block, its size and its flag. `events.py` finds what of it takes a time that
depends on the machine, and `replay.py` times that.

A trace is int32: for each block its number, then what its rows did in their order: flag and
granules of a copy, a wait and what is added to a flag, the length of a delay; -1 where a predicate
forbade it.
"""

import functools
import io
import lzma
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from rpa_tune.llo import encode
from rpa_tune.llo.encode import Encoded
from rpa_tune.llo.engines import Rates
from rpa_tune.llo.events import FIRST, MATMUL, OP, POP, STRETCH, TIMED, Events, find_events
from rpa_tune.llo.opcodes import Op


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
        return find_events(self.rows, self.blocks, self.trace, self.num_flags)

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
    is_branch, is_copy = op == Op.BRANCH, op == Op.COPY
    rows[is_branch, FIRST] = extra[is_branch] >> 32
    rows[is_copy, FIRST] = extra[is_copy] % encode.NUM_KINDS
    kept = np.isin(op, TIMED) & ~(is_branch & (rows[:, FIRST] == 0))
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
            op, unit, size, buffer = rows[here, OP:STRETCH][[0, 2, 3, 4]].tolist()
            if op == MATMUL:
                for result in range(size // 8 * per_eight):
                    unpopped[unit, -1 if buffer < 0 else buffer + result] += 1
            elif op == POP and unpopped[unit, buffer]:
                unpopped[unit, buffer] -= 1
            else:
                break
            here += 1
            if not any(unpopped.values()):
                balanced = here
        if balanced > row + 1:
            rows[row, STRETCH] = balanced
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
