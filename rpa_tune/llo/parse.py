"""Reads `*-final_bundles.txt` dumps of libtpu into `Program` records.

Everything the simulator relies on is checked, so that a changed format is an error with file and
line and never a silently wrong time: bundle numbering, mnemonics, operand counts, labels.
"""

import re
import struct
from collections.abc import Iterator
from pathlib import Path

from rpa_tune.errors import DumpError
from rpa_tune.known_versions import supported_libtpus
from rpa_tune.llo.located import has_lost_copy, located
from rpa_tune.llo.meetings import MeetingError, Meetings
from rpa_tune.llo.opcodes import Meaning, Op, Slot, meaning, memory_spaces
from rpa_tune.llo.order import executable_order
from rpa_tune.llo.pointers import Pointers
from rpa_tune.llo.program import (
    ALLOCATION_BITS,
    MAX_ALLOCATIONS,
    NO_REGISTER,
    Bundle,
    Instruction,
    KernelOperand,
    Program,
    Term,
)
from rpa_tune.llo.sources import without_sources
from rpa_tune.llo.vectors import check_path

HEAD = re.compile(r"^ *(0x[0-9a-f]+|0) +(?:([A-Z]{2}):|:) ([> ]*)\{", re.MULTILINE)
INSTRUCTION = re.compile(
    r"\s*(?:(%\w+(?:, ?%\w+)*) = )?([a-z]\w*(?:\.<[\w ]+>|[\w.]*)(?:\[\d+\][\w.]*)?)\s*(.*)",
    re.DOTALL,
)
_COMMENT = re.compile(r"/\*.*?\*/", re.DOTALL)
_REGION = re.compile(r"(Start/End empty|Start) region (\d+)")
_PREDICATE = re.compile(r"\(\s*(!?)(%\w+)\s*\)\s*,?\s*")
_PREDICATED_MOVE = re.compile(r"\(\s*(!?)(%\w+),\s*(%\w+)\s*\)\s*,?\s*")
_ADDRESS_PART = re.compile(r"%\w+|#\w+|\$0x[0-9a-f]+")
_SPLIT = re.compile(r",\s*(?![^\[]*\])")
_ANNOTATION = re.compile(
    r"\[(?:resolvable:\$(?:true|false)|thread:\$\d+)\]\s*|(?<=[^,\s])\s+\[#\w+\]$"
)
_TARGET = re.compile(r"target = \$region(\d+)")
_OPERAND = re.compile(r"\[shape: ([^,\[\]]+\[[\d,]*\])[^,]*, index: (\d+), kind: (\w+)")
_MXU = re.compile(r"mxu(\d)")
_BUFFER = re.compile(r"mrb\[(\d+)\]")
_WIDTH = re.compile(r"\.(?:bf|f|s|u)(\d+)")
_GENERAL = re.compile(r"/\* (\w+)-to-(\w+) \*/\s*$")
_DIVISION = re.compile(r"/\* k(DivAndRem|Div|Rem) \*/")
_HEADER_END = "= control target key end"
_WORD = 1 << 32
_TERMS = {Op.LOAD: 1, Op.STORE: 2, Op.SELECT: 3, Op.WAIT: 2, Op.SYNC_ADD: 2, Op.HALT: 0}
_UNARY = (
    Op.MOV, Op.NOT_PREDICATE, Op.SYNC_READ, Op.DELAY, Op.LEADING_ZEROS, Op.FLOAT_WEIRD,
    Op.FLOAT_FLOOR, Op.FLOAT_CEIL, Op.FLOAT_TO_INT, Op.INT_TO_FLOAT,
)  # fmt: skip


def load_program(path: Path) -> Program:
    """Parses a `*-final_bundles.txt` dump.

    Raises:
      DumpError: The file is missing, empty, or not understood; says file and line.
    """
    try:
        text = without_sources(path.read_text())
    except OSError as error:
        raise DumpError(f"cannot read dump: {error.strerror}", where=str(path)) from error
    return _Parser(path, text).parse()


class _Parser:
    """One parse: the names seen so far and where we are, for messages."""

    def __init__(self, path: Path, text: str) -> None:
        self.path = path
        self.text = text
        self.line = 1
        self.registers: dict[str, int] = {}
        self.allocations: dict[str, int] = {}
        self.operands: dict[int, KernelOperand] = {}
        self.regions: dict[str, int] = {}
        self.branches: list[tuple[int, int, str]] = []
        self.pushed: dict[int, list[int]] = {}
        self.pointers = Pointers()
        self.data: dict[int, int] = {}  # lines by registers with a value of a vector
        self.meetings = Meetings()

    def parse(self) -> Program:
        """Reads all bundles, then resolves branches."""
        bundles = list(self._bundles())
        if not bundles:
            raise self._error("no bundle found", "a dump has one `{ ... }` line per bundle")
        if len(self.allocations) > MAX_ALLOCATIONS:
            raise self._error(f"{len(self.allocations)} allocations", f"at most {MAX_ALLOCATIONS}")
        self._resolve_branches(bundles)
        bundles = self._copies_located(self.pointers.shifted_back(bundles))
        if self.meetings.num_cores > 1 and self.meetings.core_id is None:
            raise self._error("cores meet, but none asks which it is", "`sld` of the core id")
        program = Program(
            path=self.path,
            bundles=tuple(bundles),
            operands=self.operands,
            register_names=tuple(self.registers),
            allocation_names=tuple(self.allocations),
            num_cores=self.meetings.num_cores,
            core_id=self.meetings.core_id,
        )
        check_path(program, self.data)
        return program

    def _copies_located(self, bundles: list[Bundle]) -> list[Bundle]:
        """Bundles in which every copy says between which memories it is."""
        if not any(map(has_lost_copy, bundles)):
            return bundles
        bundles = located(bundles, self.pointers.memories)
        for bundle in filter(has_lost_copy, bundles):
            self.line = bundle.line
            rule = "and its pointers were spilled to words that hold others too"
            raise self._error("`dma.general` without a comment `FROM-to-TO`", rule)
        return bundles

    def _bundles(self) -> Iterator[Bundle]:
        """Parses bundle after bundle."""
        start = self.text.find(_HEADER_END)
        if start < 0:
            raise self._error(
                "no legend found", f"a dump starts with a legend ending in `{_HEADER_END}`"
            )
        start += len(_HEADER_END)
        self.line += self.text.count("\n", 0, start)
        heads = list(HEAD.finditer(self.text, start))
        if heads and self.text[start : heads[0].start()].strip():
            raise self._error("text before the first bundle", "expected bundle 0")
        for number, head in enumerate(heads):
            self.line += self.text.count("\n", start, head.start())
            start = head.start()
            if int(head[1], 16) != number:
                raise self._error(
                    f"bundle {head[1]} follows {number - 1:#x}", "addresses count up by one"
                )
            end = heads[number + 1].start() if number + 1 < len(heads) else len(self.text)
            yield self._bundle(number, head, self.text[head.end() : end])

    def _bundle(self, number: int, head: re.Match[str], body: str) -> Bundle:
        """Parses the text of one bundle, from behind its brace to the next bundle."""
        close = body.rfind("}")
        comment = body[close + 1 :].strip()
        if close < 0 or (comment and not (comment.startswith("/*") and comment.endswith("*/"))):
            raise self._error("bundle without a closing brace", "one bundle is `{ ... } /* ... */`")
        is_entry = bool(head[2])
        if "region" in body:
            for kind, region in _REGION.findall(body):
                is_entry = is_entry or kind == "Start"
                self.regions.setdefault(f"{region}:{kind}", number)
        slots = [0] * len(Slot)
        found: list[Instruction] = []
        if close > 1:
            for part in body[:close].split(";;"):
                self._instruction(part, number, slots, found)
        if not head[2] and any(item.op is Op.PHI for item in found):
            raise self._error("phi outside of a label", "phis stand at LB and PF labels")
        return Bundle(
            line=self.line,
            label=head[2] or "",
            depth=head[3].count(">"),
            is_entry=is_entry,
            is_exit="End region" in comment,
            instructions=executable_order(found),
            slots=tuple(slots),
        )

    def _instruction(
        self, text: str, number: int, slots: list[int], found: list[Instruction]
    ) -> None:
        """Counts one instruction's slots and keeps it when the path depends on it."""
        match = INSTRUCTION.fullmatch(text)
        if match is None:
            if not text.strip():
                return
            raise self._error(f"cannot read instruction `{text.strip()[:80]}`", "")
        result, mnemonic, rest = match.groups()
        known = meaning(mnemonic)
        if known is None:
            raise self._error(
                f"unknown opcode `{mnemonic}`", "opcodes.yaml in rpa_tune/llo has all"
            )
        for slot in known.slots:
            slots[slot] += 1
        if known.op is None:
            if mnemonic == "vmov" and result is not None:
                self.meetings.constant(result, _COMMENT.sub("", rest).strip())
            if known.slots in ((Slot.VLOAD,), (Slot.VSTORE,)) and "_spill]" in rest:
                slots[known.slots[0] + 1] += 1
            return
        if known.op in (Op.MATMUL, Op.POP):
            found.append(self._mxu_event(known.op, mnemonic))
        elif known.op is Op.OPERAND:
            found.append(self._operand(mnemonic, result, rest))
        elif known.op is not Op.NOP:
            item = self._scalar(known, mnemonic, result, rest, number)
            found.extend(self._special(item, mnemonic, rest))

    def _mxu_event(self, op: Op, mnemonic: str) -> Instruction:
        """A matmul or a pop of its result: (MXU, rows, result buffer or -1)."""
        unit = _MXU.search(mnemonic)
        width = _WIDTH.search(mnemonic)
        if unit is None or width is None:
            raise self._error(f"`{mnemonic}` names no MXU or no element type", "")
        buffer = _BUFFER.search(mnemonic)
        rows = 8 * 32 // int(width[1]) if op is Op.MATMUL else 0
        values = (int(unit[1]), rows, int(buffer[1]) if buffer else -1)
        return Instruction(op=op, terms=tuple(Term(v) for v in values))

    def _operand(self, mnemonic: str, result: str | None, rest: str) -> Instruction:
        """The address, or the value, of a kernel operand."""
        match = _OPERAND.search(rest)
        if match is None or result is None:
            raise self._error(f"cannot read operand `{rest[:80]}`", "")
        space = mnemonic.split(".", 1)[1]
        index = int(match[2])
        self.operands[index] = KernelOperand(
            index=index,
            space="register" if space.startswith("<") else space,
            shape=match[1],
            is_output=match[3] == "output",
        )
        register = self._register(result)
        self.pointers.memories[register] = space
        return Instruction(op=Op.OPERAND, result=register, terms=(Term(index),))

    def _scalar(
        self, known: Meaning, mnemonic: str, result: str | None, rest: str, number: int
    ) -> Instruction:
        """An operation of the scalar path."""
        op = known.op
        assert op is not None
        if op is Op.HALT:
            # The message is a comment with comments inside, over several lines.
            rest, _, detail = rest.partition("/*")
            detail = detail.strip(" */\n").partition("\n")[0]
        else:
            detail = ""
        rest = _COMMENT.sub("", rest).strip()
        predicate, negated, target = NO_REGISTER, False, NO_REGISTER
        if op is Op.BRANCH:
            if (place := _TARGET.search(rest)) is None:
                raise self._error("branch without a region target", "")
            rest, target = rest[: place.start()].strip(), int(place[1])
            self.branches.append((number, self.line, place[1]))
        if op is Op.MOV and (move := _PREDICATED_MOVE.match(rest)):
            value = self._term(rest[move.end() :])
            other = self._term(move[3])
            pair = (other, value) if move[1] else (value, other)
            terms: tuple[Term, ...] = (Term(0, self._register(move[2])), *pair)
            op = Op.SELECT
        else:
            if op is Op.COPY:
                detail = f"{known.source}_to_{known.destination}"
            rest = _ANNOTATION.sub("", rest)
            if match := _PREDICATE.search(rest):
                # A halt or a branch lists its condition the same way.
                negated, predicate = bool(match[1]), self._register(match[2])
                rest = (rest[: match.start()] + rest[match.end() :]).strip()
            if op is Op.STORE or op is Op.LOAD:
                rest = rest.replace("] ", "], ", 1)
            terms = tuple(self._term(part) for part in _SPLIT.split(rest)) if rest else ()
        self._check_count(op, mnemonic, len(terms))
        return Instruction(
            op=op,
            result=NO_REGISTER if result is None else self._register(result),
            terms=terms,
            predicate=predicate,
            negated=negated,
            target=target,
            detail=detail,
        )

    def _special(self, item: Instruction, mnemonic: str, rest: str) -> tuple[Instruction, ...]:
        """What a few mnemonics do besides their operation."""
        if mnemonic == "dma.general":
            # XLA's own computations have no comment: there the pointers say which memories.
            pointers = [self.pointers.memories.get(item.terms[i].first, "") for i in (0, 2)]
            ends = match.groups() if (match := _GENERAL.search(rest)) else pointers
            is_known = set(ends) <= set(memory_spaces())
            return (item._replace(detail="_to_".join(ends) if is_known else ""),)
        if item.op is Op.REMAINDER:
            # Results are queued for `spop.drf`, the quotient first where both are wanted.
            if (match := _DIVISION.search(rest)) is None:
                raise self._error(f"`{mnemonic}` without a comment", "`kRem`, `kDiv`, `kDivAndRem`")
            if match[1] in ("Rem", "Div"):
                self.pushed[item.result] = [item.result]
                return (item if match[1] == "Rem" else item._replace(op=Op.QUOTIENT),)
            quotient = self._register(f"quotient of {item.result}")
            self.pushed[item.result] = [quotient, item.result]
            return (item._replace(op=Op.QUOTIENT, result=quotient), item)
        if mnemonic == "spop.drf":
            if not (waiting := self.pushed.get(item.terms[0].first)):
                raise self._error(f"`{mnemonic}` takes more results than a division has", "")
            return (item._replace(terms=(Term(0, waiting.pop(0)),)),)
        if mnemonic == "vpush" and not self.meetings.is_received(item.terms[0].first):
            self.data[item.result] = self.line
            return (item._replace(terms=(Term(0),)),)
        try:
            return self.meetings.parts(self.pointers.read(item, mnemonic), mnemonic, rest)
        except MeetingError as error:
            raise self._error(*error.args) from None

    def _check_count(self, op: Op, mnemonic: str, count: int) -> None:
        """Raises DumpError unless the operation has as many operands as it must."""
        if op is Op.COPY:
            # Source, granules, destination, flag; then three strides, or (`dma.general`) a flag
            # that nobody waits for, the address of the strides, and two options.
            good = count == 8 if mnemonic == "dma.general" else count in (4, 7)
        elif op is Op.BRANCH:
            good = count == 0
        elif op is Op.BARRIER:
            good = count == (2 if mnemonic == "vwait.ge.trace" else 0)
        elif op in _UNARY:
            good = count == (2 if mnemonic == "scvt.pr.f32.s32" else 1)
        else:
            good = count == _TERMS.get(op, 2)
        if not good:
            raise self._error(f"`{mnemonic}` with {count} operands", "the format may have changed")

    def _term(self, text: str) -> Term:
        """Parses a register, an integer, or an address that is a sum of both."""
        text = text.strip()
        if text.startswith("%"):
            return Term(0, self._register(text))
        if not text.startswith("["):
            if (constant := _constant(text)) is None:
                raise self._error(f"cannot read operand `{text[:60]}`", "")
            return Term(constant)
        constant, registers = 0, []
        inner = text.strip("[]").removeprefix("smem:[")
        for part in inner.split(" + "):
            if not _ADDRESS_PART.fullmatch(part):
                raise self._error(f"cannot read address `{text[:60]}`", "an address is a sum")
            if part[0] == "%":
                registers.append(self._register(part))
            elif part[0] == "$":
                constant += int(part[1:], 16)
            else:
                order = self.allocations.setdefault(part, len(self.allocations))
                constant += (order + 1) << ALLOCATION_BITS
        if len(registers) > 2:
            raise self._error(f"address `{text[:60]}` adds more than two registers", "")
        return Term(constant, *registers)

    def _register(self, name: str) -> int:
        """The number of a register, by its whole name."""
        return self.registers.setdefault(name, len(self.registers))

    def _resolve_branches(self, bundles: list[Bundle]) -> None:
        """Replaces region numbers of branches by bundle indices.

        A forward target is an empty region, or one that holds nothing but spill code and starts
        at a `PF`; a backward one a loop body; none of these leaves.
        """
        for number, line, region in self.branches:
            target = self.regions.get(f"{region}:Start/End empty")
            if target is None:
                target = self.regions.get(f"{region}:Start", len(bundles))
                if number < target < len(bundles) and bundles[target].label != "PF":
                    self.line = line
                    raise self._error(
                        f"forward branch to region {region}, which has a body",
                        "forward branches go to empty regions or to a PF",
                    )
            bundles[number] = bundles[number]._replace(
                instructions=tuple(
                    item._replace(target=target) if item.op is Op.BRANCH else item
                    for item in bundles[number].instructions
                )
            )

    def _error(self, message: str, rule: str) -> DumpError:
        """A DumpError at the current line."""
        hint = f"this libtpu may print another format; tested are {', '.join(supported_libtpus())}"
        message += f"; {rule}" if rule else ""
        return DumpError(message, where=f"{self.path}:{self.line}", hint=hint)


def _constant(text: str) -> int | None:
    """The 32-bit signed reading of a whole number, or of the bits of a float; None of neither."""
    try:
        value = int(text, 0) % _WORD
        return value - _WORD if value >= _WORD // 2 else value
    except ValueError:
        pass
    try:
        return int.from_bytes(struct.pack("<f", float(text)), "little", signed=True)
    except (ValueError, OverflowError):
        return None
