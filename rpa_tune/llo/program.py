"""A compiled kernel as the simulator sees it: bundles, their scalar operations, their slots.

`parse.py` builds these records from a dump; nothing here depends on the chip, which no dump
names. Only the scalar path, the copies, the waits and the MXU traffic are kept as operations:
other vector instructions are counted in the slots of their bundle.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from rpa_tune.llo.opcodes import Op, Slot

# Allocations get addresses this many bits apart: SMEM has at most 2**18 words on all chips.
ALLOCATION_BITS = 18
# Operands are put behind all allocations, this many bits apart. As on a chip, addresses of HBM are
# above zero and leave room for a large array: the compiler's bounds checks compare and mask them.
OPERANDS_START = 1 << 29
OPERAND_BITS = 20
MAX_ALLOCATIONS = (OPERANDS_START >> ALLOCATION_BITS) - 1
NO_REGISTER = -1
_LINEAR_COPY = 4  # operands of a copy without strides: source, granules, destination, flag


class Term(NamedTuple):
    """The value `constant + register + register`; absent registers are `NO_REGISTER`."""

    constant: int
    first: int = NO_REGISTER
    second: int = NO_REGISTER


class Instruction(NamedTuple):
    """One operation of the scalar path, a copy, a wait, or an MXU event.

    Attributes:
      op: What it does.
      result: Register written, or `NO_REGISTER`.
      terms: Operands in the dump's order. A select has (predicate, if true, if false), a store
        (address, value), a copy (source, granules, destination, flag, strides if any), a matmul
        or pop (MXU, rows, result buffer or -1), a barrier the word that the other core sends.
      predicate: Register that allows it, or `NO_REGISTER`.
      negated: Whether the predicate must be false instead of true.
      target: Bundle index a branch goes to; `len(bundles)` leaves the kernel.
      detail: Source and destination memory of a copy, the message of a halt.
    """

    op: Op
    result: int = NO_REGISTER
    terms: tuple[Term, ...] = ()
    predicate: int = NO_REGISTER
    negated: bool = False
    target: int = NO_REGISTER
    detail: str = ""

    @property
    def is_strided(self) -> bool:
        """Whether a copy has strides: three operands more in a dump, or strides in SMEM."""
        return len(self.terms) > _LINEAR_COPY


class Bundle(NamedTuple):
    """What issues in one cycle.

    Attributes:
      line: Line in the dump, counted from 1.
      label: `LB` at a loop's body, `PF` behind a predicated region, else empty.
      depth: Loop nesting depth.
      is_entry: Whether a region starts here, so that code before it ends at this bundle.
      is_exit: Whether a region ends here; empty bundles behind it may belong to it still.
      instructions: In an order in which each can be executed: phis first, then by use, stores
        and side effects in the dump's order.
      slots: Instructions per slot, indexed by `Slot`.
    """

    line: int
    label: str
    depth: int
    is_entry: bool
    is_exit: bool
    instructions: tuple[Instruction, ...]
    slots: tuple[int, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class KernelOperand:
    """One operand of the kernel call.

    Attributes:
      index: Position in the call; outputs follow the inputs.
      space: Memory it lives in: `hbm`, `vmem`, `smem`, `cmem`, or `register` for a scalar.
      shape: As the dump prints it, for example `s32[64]`.
      is_output: Whether the kernel writes it.
    """

    index: int
    space: str
    shape: str
    is_output: bool


@dataclass(frozen=True, kw_only=True, slots=True, eq=False, weakref_slot=True)
class Program:
    """One parsed dump. Programs compare by identity.

    Attributes:
      path: The dump file.
      bundles: In address order; the address is the index.
      operands: Operands by index.
      register_names: Name of each register, for messages.
      allocation_names: Name of each allocation whose address is taken; the address of number
        `i` is `i << ALLOCATION_BITS`.
      num_cores: TensorCores that run it together: 2 when it has a barrier, else 1.
      core_id: SMEM address that holds the number of the core, if it is asked for.
    """

    path: Path
    bundles: tuple[Bundle, ...] = field(repr=False)
    operands: dict[int, KernelOperand] = field(repr=False)
    register_names: tuple[str, ...] = field(repr=False)
    allocation_names: tuple[str, ...] = field(repr=False)
    num_cores: int = 1
    core_id: int | None = None

    def where(self, address: int) -> str:
        """`file:line (bundle 0x..)` of a bundle, for messages."""
        return f"{self.path}:{self.bundles[address].line} (bundle {address:#x})"

    @staticmethod
    def operand_address(index: int) -> int:
        """A made-up address of an operand in HBM, VMEM or CMEM."""
        return OPERANDS_START + (index << OPERAND_BITS)

    def operand_at(self, address: int) -> tuple[int, int] | None:
        """The operand in memory that an address is in, and how many units of address into it."""
        index, offset = divmod(address - OPERANDS_START, 1 << OPERAND_BITS)
        is_memory = index in self.operands and self.operands[index].space != "register"
        return (index, offset) if is_memory else None

    def is_spill(self, address: int) -> bool:
        """Whether an address is in an allocation that holds spilled registers."""
        number = (address >> ALLOCATION_BITS) - 1
        names = self.allocation_names
        return 0 <= number < len(names) and names[number].endswith("_spill")

    def slot_total(self, slot: Slot) -> int:
        """Instructions of one slot over the whole text, loops counted once."""
        return sum(bundle.slots[slot] for bundle in self.bundles)
