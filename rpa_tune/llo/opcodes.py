"""What each mnemonic of a dump does: an operation of the scalar path, a copy, or vector slots.

The table is `opcodes.yaml`. A mnemonic that is not in it is an error for the parser: an unknown
scalar operation would make the path wrong, an unknown vector one the slot counts.
"""

import functools
import re
from dataclasses import dataclass
from enum import IntEnum
from importlib.resources import files
from typing import Any

import yaml


class Slot(IntEnum):
    """Issue slots of a bundle, named as the compiler's utilization dump names them.

    FILL and SPILL are the loads and stores among VLOAD and VSTORE that only move registers to
    and from spill slots.
    """

    MXU = 0
    XLU = 1
    VALU = 2
    VPOP = 3
    EUP = 4
    VLOAD = 5
    FILL = 6
    VSTORE = 7
    SPILL = 8
    SALU = 9


class Op(IntEnum):
    """Operations of the scalar path; `interpreter.py` is their definition.

    Append, never renumber: the numbers are in the compiled code of `words.py` and `loop.py`, which
    is cached until one of those files changes.
    """

    NOP = 0
    MOV = 1
    PHI = 2
    LOAD = 3
    STORE = 4
    ADD = 5
    SUB = 6
    MUL = 7
    AND = 8
    OR = 9
    XOR = 10
    SHL = 11
    SHR_LOGICAL = 12
    SHR_ARITHMETIC = 13
    MIN = 14
    MAX = 15
    MIN_UNSIGNED = 16
    MAX_UNSIGNED = 17
    EQ = 18
    NE = 19
    LT = 20
    LE = 21
    GT = 22
    GE = 23
    LT_UNSIGNED = 24
    LE_UNSIGNED = 25
    GT_UNSIGNED = 26
    GE_UNSIGNED = 27
    SELECT = 28
    OR_PREDICATE = 29
    AND_PREDICATE = 30
    XOR_PREDICATE = 31
    NAND_PREDICATE = 32
    NOT_PREDICATE = 33
    BRANCH = 34
    HALT = 35
    WAIT = 36
    SYNC_ADD = 37
    SYNC_READ = 38
    DELAY = 39
    COPY = 40
    OPERAND = 41
    MATMUL = 42
    POP = 43
    REMAINDER = 44
    QUOTIENT = 45
    BARRIER = 46
    MUL_HIGH_UNSIGNED = 47
    LEADING_ZEROS = 48
    # Of float32, whose bits are in the word.
    FLOAT_ADD = 49
    FLOAT_SUB = 50
    FLOAT_MUL = 51
    FLOAT_MAX = 52
    FLOAT_MIN = 53
    FLOAT_EQ = 54
    FLOAT_NE = 55
    FLOAT_LT = 56
    FLOAT_LE = 57
    FLOAT_GT = 58
    FLOAT_GE = 59
    FLOAT_WEIRD = 60
    FLOAT_FLOOR = 61
    FLOAT_CEIL = 62
    FLOAT_TO_INT = 63
    INT_TO_FLOAT = 64
    CARRY = 65


@dataclass(frozen=True, kw_only=True, slots=True)
class Meaning:
    """What one mnemonic does.

    Attributes:
      op: Operation of the scalar path, or None for a vector instruction without one.
      slots: Issue slots taken.
      source: Memory space a copy reads; empty for other operations, and where a comment names it.
      destination: Memory space a copy writes, in the same way.
    """

    op: Op | None
    slots: tuple[Slot, ...] = ()
    source: str = ""
    destination: str = ""


@functools.cache
def _table() -> dict[str, Any]:
    """The parsed opcode table."""
    text = files("rpa_tune.llo").joinpath("opcodes.yaml").read_text()
    table: dict[str, Any] = yaml.safe_load(text)
    table["vector"] = {
        stem: tuple(Slot[name] for name in slots.split("_"))
        for slots, stems in table["vector"].items()
        for stem in stems
    }
    return table


def memory_spaces() -> tuple[str, ...]:
    """The memories that copies read and write."""
    return tuple(_table()["memory_spaces"])


_COPY = re.compile(r"dma\.(\w+?)_to_(\w+)")
# Scalar mnemonics that the compiler issues from another slot than SALU, or from none.
_OTHER_SLOTS: dict[str, tuple[Slot, ...]] = {
    "sphi": (),
    "vphi": (),
    "dma.done.wait": (Slot.VLOAD,),
    "vsyncadd": (Slot.VLOAD,),
    "vsyncmov": (Slot.VLOAD,),
    "vsyncpa": (Slot.VLOAD,),
    "vpop.sfrf": (Slot.VPOP,),
    "vpush.ccrf": (),
    "vpop.ccrf": (Slot.VPOP,),
    "vpush": (Slot.VSTORE,),
    "set.rngseed": (Slot.VSTORE,),
    "vsyncadd.remote": (),
    "vwait.ge.trace": (),
}


@functools.cache
def meaning(mnemonic: str) -> Meaning | None:
    """What `mnemonic` does, or None when the table does not know it."""
    table = _table()
    if op := table["scalar"].get(mnemonic):
        slots = () if mnemonic.startswith("int_to_ptr") else (Slot.SALU,)
        return Meaning(op=Op[op], slots=_OTHER_SLOTS.get(mnemonic, slots))
    if copy := _COPY.fullmatch(mnemonic):
        source, destination = copy.groups()
        if {source, destination} <= set(memory_spaces()):
            return Meaning(op=Op.COPY, slots=(Slot.SALU,), source=source, destination=destination)
        return None
    if mnemonic == "dma.general":
        return Meaning(op=Op.COPY, slots=(Slot.SALU,))
    if mnemonic.startswith("inlined_call_operand."):
        return Meaning(op=Op.OPERAND)
    if mnemonic in table["no_slot"]:
        return Meaning(op=None)
    stem, *parts = mnemonic.split(".")
    slots = table["vector"].get(stem)
    if slots is None:
        return None
    if stem == "vmatmul":
        return Meaning(op=Op.MATMUL, slots=slots)
    if stem == "vpop":
        is_result = any(part.startswith(("mrf", "mrb")) for part in parts)
        return Meaning(op=Op.POP if is_result else None, slots=slots)
    if any(part in table["xlu_parts"] for part in parts):
        return Meaning(op=None, slots=(Slot.XLU,))
    return Meaning(op=None, slots=slots)
