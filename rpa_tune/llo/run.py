"""What goes into an execution and what comes out, whichever interpreter runs it."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from rpa_tune.errors import DumpError
from rpa_tune.llo.opcodes import Op
from rpa_tune.llo.program import Program

# The values of a launch's scalar arrays by operand index.
Operands = Mapping[int, npt.NDArray[np.int32]]


class MissingOperandError(DumpError):
    """The scalar program reads an operand whose values were not given.

    Attributes:
      index: Of the operand.
    """

    def __init__(self, program: Program, index: int) -> None:
        """Says which."""
        super().__init__(
            f"operand {index} ({program.operands[index].shape}) is read into scalar memory,"
            " but was not given",
            where=str(program.path),
            hint="pass every scalar-prefetch array by its position in the call",
        )
        self.index = index


class HaltError(DumpError):
    """A check that the compiler or the kernel makes fails, so that the kernel would halt."""

    def __init__(self, program: Program, address: int) -> None:
        """Says which."""
        checks = [i.detail for i in program.bundles[address].instructions if i.op is Op.HALT]
        super().__init__(
            f"the kernel halts, because a check of its own fails: {' or '.join(checks)[:200]}",
            where=program.where(address),
            hint="either it copies from or to outside of an array with these scalars, or the "
            "simulator gets an address wrong. interpret=pltpu.InterpretParams() runs it on a CPU "
            "and tells. If it is right, compile it with "
            "pltpu.CompilerParams(disable_bounds_checks=True) to have a time, and report the "
            "schedule (--dump FILE)",
        )


@dataclass(kw_only=True, slots=True)
class Run:
    """What one execution did; `timeline.py` makes it readable.

    Attributes:
      executed: Times each bundle issued, [num_bundles].
      entered: Times each bundle was reached other than by a back edge, [num_bundles].
      stall_cycles: Cycles lost before each bundle per `Owner`, [num_bundles, len(Owner)].
      end_cycle: When the last bundle had issued.
      engines: By `Direction`: (copies, bytes, busy cycles, of which fixed).
      mxu_busy_cycles: Sum over the units.
      barriers: When the core reached each barrier with the other core, cycles.
      unknown: What was met and not modelled, with counts.
      trace: The recording of a run that was recorded, else empty; see `recording.py`.
    """

    executed: npt.NDArray[np.int64]
    entered: npt.NDArray[np.int64]
    stall_cycles: npt.NDArray[np.int64]
    end_cycle: int = 0
    engines: list[tuple[int, int, float, float]] = field(default_factory=list)
    mxu_busy_cycles: float = 0.0
    barriers: list[int] = field(default_factory=list)
    unknown: Counter[str] = field(default_factory=Counter)
    trace: npt.NDArray[np.int32] = field(default_factory=lambda: np.zeros(0, np.int32))
