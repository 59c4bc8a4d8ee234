"""Turns a program into arrays for the compiled interpreter (`fast.py`).

What the path, the copies and the waits do not depend on is dropped: mostly VMEM and HBM address
arithmetic, so that page numbers never matter to a time. The rest becomes rows of integers,
grouped in blocks that are entered at the top and left at the bottom.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from rpa_tune.llo.delay_slots import printed_delay, shadow_ends
from rpa_tune.llo.engines import Direction, Rates, direction_of
from rpa_tune.llo.opcodes import Op
from rpa_tune.llo.program import ALLOCATION_BITS, NO_REGISTER, Instruction, Program, Term

# Columns of a row. Absent registers are the last register, which always holds zero.
OP, RESULT, PREDICATE, NEGATED, EXTRA, OFFSET, TERMS = range(7)
NUM_TERMS = 4
NUM_COLUMNS = TERMS + 3 * NUM_TERMS
# Columns of a block: first bundle, length, first row, end of phi rows, end of rows, follower.
FIRST, LENGTH, ROWS, BODY, END, NEXT = range(6)

# A copy's row says its kind, which is its direction, linear or strided; and whether words go to
# SMEM or leave it.
NUM_KINDS = 2 * len(Direction)
WORDS_IN, WORDS_OUT = 1, 2

# Operations with effects; their operands, and what those depend on, are kept.
_EFFECTS = (Op.STORE, Op.BRANCH, Op.HALT, Op.COPY, Op.WAIT, Op.SYNC_ADD, Op.DELAY, Op.BARRIER)
_KEPT = (*_EFFECTS, Op.MATMUL, Op.POP)
# Operations that write what they did into a recording, or -1 where a predicate forbids them.
RECORDED = (Op.COPY, Op.WAIT, Op.SYNC_ADD, Op.DELAY)


@dataclass(frozen=True, slots=True, eq=False)
class Encoded:
    """A program as arrays, for one machine's branch delay.

    Attributes:
      rows: int64[rows, NUM_COLUMNS].
      blocks: int64[blocks, 6].
      delivered_granules: What copies into SMEM bring to an allocation, as far as the text says.
      num_registers: Registers and the zero register.
    """

    rows: npt.NDArray[np.int64]
    blocks: npt.NDArray[np.int64]
    delivered_granules: dict[int, int]
    num_registers: int

    @property
    def most_phis(self) -> int:
        """Phis of the block that has most."""
        return int((self.blocks[:, BODY] - self.blocks[:, ROWS]).max(initial=0))


def encode(program: Program, rates: Rates) -> Encoded:
    """Encodes a program.

    Raises:
      DumpError: A branch in the shadow of another; says which bundle.
    """
    live = _live_registers(program)
    zero = len(program.register_names)
    starts = _block_starts(program, rates)
    number_of = {start: number for number, start in enumerate(starts)}
    rows: list[list[int]] = []
    blocks: list[tuple[int, ...]] = []
    delivered: dict[int, int] = {}
    definitions = _definitions(program)
    for number, start in enumerate(starts):
        end = starts[number + 1] if number + 1 < len(starts) else len(program.bundles)
        first, body = len(rows), -1
        for address in range(start, end):
            for item in program.bundles[address].instructions:
                if not _is_live(item, live):
                    continue
                if item.op is not Op.PHI and body < 0:
                    body = len(rows)
                if item.op is Op.COPY and item.detail.endswith("_to_smem"):
                    allocation = _allocation(item.terms[2], definitions)
                    granules = max(delivered.get(allocation, 0), item.terms[1].constant)
                    delivered[allocation] = granules
                extra = _extra(item, program, rates, address, number_of)
                rows.append(_row(item, extra=extra, offset=address - start, zero=zero))
        body = len(rows) if body < 0 else body
        follower = number + 1 if end < len(program.bundles) else -1
        blocks.append((start, end - start, first, body, len(rows), follower))
    return Encoded(
        rows=np.array(rows, np.int64).reshape(-1, NUM_COLUMNS),
        blocks=np.array(blocks, np.int64),
        delivered_granules=delivered,
        num_registers=zero + 1,
    )


def _row(item: Instruction, *, extra: int, offset: int, zero: int) -> list[int]:
    """One instruction as integers."""
    row = [
        int(item.op),
        zero if item.result == NO_REGISTER else item.result,
        item.predicate,
        int(item.negated),
        extra,
        offset,
    ]
    for term in (*item.terms[:NUM_TERMS], *[Term(0)] * (NUM_TERMS - len(item.terms))):
        first = zero if term.first == NO_REGISTER else term.first
        second = zero if term.second == NO_REGISTER else term.second
        row += [term.constant, first, second]
    return row


def _extra(
    item: Instruction, program: Program, rates: Rates, address: int, number_of: dict[int, int]
) -> int:
    """What else a row needs: a phi's kind, a copy's kind, a branch's block and shadow.

    A branch packs (missing delay cycles, target block + 1); block -1 leaves the kernel.
    """
    if item.op is Op.PHI:
        return int(program.bundles[address].label == "LB")
    if item.op is Op.COPY:
        direction = direction_of(item.detail)
        words = WORDS_IN if item.detail.endswith("_to_smem") else WORDS_OUT
        kind = int(direction) + len(Direction) * item.is_strided
        return kind + NUM_KINDS * (words if "smem" in item.detail else 0)
    if item.op is Op.BRANCH:
        missing = rates.branch_delay - printed_delay(program, address, rates)
        return missing << 32 | number_of.get(item.target, -1) + 1
    return 0


def _block_starts(program: Program, rates: Rates) -> list[int]:
    """Bundles where blocks start: branch targets, and behind the shadow of every branch."""
    count = len(program.bundles)
    starts = {0} | {a for a, bundle in enumerate(program.bundles) if bundle.label}
    for address, end in shadow_ends(program, rates).items():
        starts.add(end + 1)
        starts |= {item.target for item in program.bundles[address].instructions}
    return sorted(start for start in starts if 0 <= start < count)


def _is_live(item: Instruction, live: set[int]) -> bool:
    """Whether an instruction is kept."""
    return item.op in _KEPT or item.result in live


def _live_registers(program: Program) -> set[int]:
    """Registers that effects depend on, over all paths."""
    readers: dict[int, list[Instruction]] = {}
    live: set[int] = set()
    for bundle in program.bundles:
        for item in bundle.instructions:
            if item.op in _EFFECTS:
                live |= set(_inputs(item))
            else:
                readers.setdefault(item.result, []).append(item)
    waiting = list(live)
    while waiting:
        for item in readers.get(waiting.pop(), ()):
            for register in _inputs(item):
                if register not in live:
                    live.add(register)
                    waiting.append(register)
    live.discard(NO_REGISTER)
    return live


def _inputs(item: Instruction) -> Iterable[int]:
    """Registers that decide what an instruction does here: not the addresses of copies."""
    terms = item.terms
    if item.op is Op.COPY and "smem" not in item.detail:
        terms = (terms[1], terms[3])
    yield item.predicate
    for term in terms:
        yield term.first
        yield term.second


def _definitions(program: Program) -> dict[int, Instruction]:
    """The instruction that writes each register; the dump is in SSA form."""
    return {
        item.result: item
        for bundle in program.bundles
        for item in bundle.instructions
        if item.result != NO_REGISTER
    }


def _allocation(term: Term, definitions: dict[int, Instruction]) -> int:
    """The allocation that a term names through moves; -1 when the text does not say."""
    item = Instruction(op=Op.MOV, terms=(term,))
    while item.op is Op.MOV and item.terms[0].first in definitions:
        item = definitions[item.terms[0].first]
    return (item.terms[0].constant >> ALLOCATION_BITS) - 1 if item.op is Op.MOV else -1
