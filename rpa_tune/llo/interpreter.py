"""The definition of a kernel's execution: bundle by bundle, in plain Python.

This is the oracle. It is written to be read; `fast.py` runs the same semantics compiled and is
tested against it. Control flow never depends on time: a run is exact, only its timing a model.
"""

from typing import Protocol

import numpy as np
import numpy.typing as npt

from rpa_tune.errors import DumpError
from rpa_tune.llo.arithmetic import BINARY, UNARY, wrap
from rpa_tune.llo.delay_slots import shadow_ends
from rpa_tune.llo.engines import (
    WAIT_OWNER,
    Arrival,
    Direction,
    MatrixUnit,
    Owner,
    Rates,
    SyncFlag,
    copy_engines,
    direction_of,
)
from rpa_tune.llo.opcodes import Op
from rpa_tune.llo.program import ALLOCATION_BITS, NO_REGISTER, Bundle, Instruction, Program, Term
from rpa_tune.llo.run import HaltError, MissingOperandError, Operands, Run


class Observer(Protocol):
    """Watches an execution; times are cycles since the first bundle."""

    def bundle(self, address: int, cycle: int) -> None:
        """A bundle issues."""

    def stall(self, address: int, owner: Owner, start: int, end: int) -> None:
        """Time passes before a bundle."""

    def copy(self, direction: Direction, start: float, end: float, num_bytes: int) -> None:
        """An engine serves a copy."""

    def matmul(self, unit: int, start: float, end: float) -> None:
        """An MXU multiplies."""


class Interpreter:
    """One execution of a program on one core."""

    def __init__(
        self,
        program: Program,
        rates: Rates,
        operands: Operands,
        observer: Observer | None = None,
        *,
        core: int = 0,
    ) -> None:
        self.observer = observer
        self.program = program
        self.rates = rates
        self.operands = operands
        self.shadow_ends = shadow_ends(program, rates)
        self.registers = [0] * len(program.register_names)
        self.smem: dict[int, int] = {} if program.core_id is None else {program.core_id: core}
        self.flags: dict[int, SyncFlag] = {}
        self.engines = copy_engines(rates)
        self.units: dict[int, MatrixUnit] = {}
        self.now = 0
        self.num_started = 0
        self.branch: tuple[int, int] | None = None
        count = len(program.bundles)
        self.result = Run(
            executed=np.zeros(count, np.int64),
            entered=np.zeros(count, np.int64),
            stall_cycles=np.zeros((count, len(Owner)), np.int64),
        )

    def run(self, max_bundles: int) -> Run:
        """Executes until the program leaves its last bundle.

        Raises:
          DumpError: A wait that never completes, a halt, or no end within `max_bundles`.
        """
        address, came_from, jumped = 0, -1, False
        end = len(self.program.bundles)
        issued = 0
        while address < end:
            bundle = self.program.bundles[address]
            back_edge = jumped and came_from >= address
            self.result.entered[address] += not back_edge
            self.result.executed[address] += 1
            # A loop body merges the back edge, other labels the jumps, with falling through.
            self._issue(address, bundle, back_edge if bundle.label == "LB" else jumped)
            issued += 1
            if issued > max_bundles:
                raise self._error(address, f"the kernel did not end within {max_bundles} bundles")
            came_from, jumped = address, False
            address += 1
            if self.branch is not None:
                left, target = self.branch
                if left == 0:
                    address, jumped, self.branch = target, True, None
                else:
                    self.branch = (left - 1, target)
        return self._finish()

    def _issue(self, address: int, bundle: Bundle, jumped: bool) -> None:
        """Issues one bundle: its stalls, its operations, its cycle."""
        phis = []
        for item in bundle.instructions:
            if item.op is Op.PHI:
                # Phis of one bundle read all before any is written.
                phis.append(
                    (item.result, self._value(item.terms[self._phi_choice(bundle, jumped)]))
                )
                continue
            for register, value in phis:
                self.registers[register] = value
            phis.clear()
            self._execute(address, item)
        for register, value in phis:
            self.registers[register] = value
        if self.observer is not None:
            self.observer.bundle(address, self.now)
        self.now += 1

    @staticmethod
    def _phi_choice(bundle: Bundle, jumped: bool) -> int:
        """Which operand a phi takes: at a loop body (above, back edge), else (jumped, fell)."""
        return int(jumped) if bundle.label == "LB" else int(not jumped)

    def _execute(self, address: int, item: Instruction) -> None:
        """Executes one instruction unless its predicate forbids it."""
        op = item.op
        if op is Op.BRANCH:
            self._shadow(address)
        if item.predicate != NO_REGISTER and bool(self.registers[item.predicate]) == item.negated:
            return
        if (binary := BINARY.get(op)) is not None:
            left, right = item.terms
            self._set(item, int(binary(self._value(left), self._value(right))))
        elif (unary := UNARY.get(op)) is not None:
            self._set(item, int(unary(self._value(item.terms[0]))))
        elif op is Op.MOV:
            self._set(item, self._value(item.terms[0]))
        elif op is Op.SELECT:
            condition, yes, no = item.terms
            self._set(item, self._value(yes if self._value(condition) else no))
        elif op is Op.NOT_PREDICATE:
            self._set(item, int(not self._value(item.terms[0])))
        elif op is Op.LOAD:
            self._set(item, self._load(self._value(item.terms[0])))
        elif op is Op.STORE:
            self.smem[self._value(item.terms[0])] = self._value(item.terms[1])
        elif op is Op.BRANCH:
            self._branch(address, item)
        else:
            self._execute_timed(address, item)

    def _execute_timed(self, address: int, item: Instruction) -> None:
        """Executes an instruction that copies, waits, multiplies, or is rare."""
        op = item.op
        if op is Op.COPY:
            self._copy(address, item)
        elif op is Op.WAIT:
            self._wait(address, self._value(item.terms[0]), self._value(item.terms[1]))
        elif op is Op.SYNC_ADD:
            self._flag(item.terms[0]).count += self._value(item.terms[1])
        elif op is Op.SYNC_READ:
            flag = self._flag(item.terms[0])
            flag.absorb(self.now)
            self._set(item, flag.count)
        elif op is Op.MATMUL or op is Op.POP:
            self._matrix(address, item)
        elif op is Op.OPERAND:
            self._set(item, self._operand(item.terms[0].constant))
        elif op is Op.BARRIER:
            # The other core runs the same bundles up to here, so it is here too.
            self.result.barriers.append(self.now)
            self._stall(address, Owner.SYNC, self.now + self.rates.barrier_cycles)
            if item.result != NO_REGISTER:
                self._set(item, self._value(item.terms[0]))
        elif op is Op.DELAY:
            self._stall(address, Owner.SYNC, self.now + self._value(item.terms[0]))
        elif op is Op.HALT:
            raise HaltError(self.program, address)
        else:
            raise AssertionError(f"{op} has no semantics")

    def _value(self, term: Term) -> int:
        """The value of an operand."""
        value = term.constant
        if term.first != NO_REGISTER:
            value += self.registers[term.first]
            if term.second != NO_REGISTER:
                value += self.registers[term.second]
        return value

    def _set(self, item: Instruction, value: int) -> None:
        """Writes an instruction's result register."""
        self.registers[item.result] = wrap(value)

    def _load(self, address: int) -> int:
        """Reads SMEM. Words nobody wrote are zero: the compiler reads dummies speculatively."""
        return self.smem.get(address, 0)

    def _operand(self, index: int) -> int:
        """The address of a memory operand, or the value of a scalar one."""
        if self.program.operands[index].space == "register":
            return int(self._operand_array(index)[0])
        return Program.operand_address(index)

    def _operand_array(self, index: int) -> npt.NDArray[np.int32]:
        """The values of a scalar-prefetch operand."""
        if index not in self.operands:
            raise MissingOperandError(self.program, index)
        return np.asarray(self.operands[index], np.int32).reshape(-1)

    def _shadow(self, address: int) -> None:
        """Charges the delay slots of a branch that the dump leaves out."""
        missing = self.rates.branch_delay - (self.shadow_ends[address] - address)
        self._stall(address, Owner.SCALAR, self.now + missing)

    def _branch(self, address: int, item: Instruction) -> None:
        """Takes a branch, which has its effect after its delay slots."""
        self.branch = (self.shadow_ends[address] - address, item.target)

    def _copy(self, address: int, item: Instruction) -> None:
        """Starts a copy; one into SMEM also delivers a scalar operand."""
        source, granules, destination, flag = (self._value(term) for term in item.terms[:4])
        if granules < 0:
            raise self._error(address, f"a copy of {granules} granules")
        direction = direction_of(item.detail)
        if "smem" in item.detail:
            self._copy_words(address, item.detail, source, granules, destination)
        engine, num_bytes = self.engines[direction], granules * self.rates.granule_bytes
        begin = max(engine.queue.free_at, float(self.now))
        at = engine.start(self.now, num_bytes, is_strided=item.is_strided)
        if self.observer is not None and num_bytes:
            self.observer.copy(direction, begin, engine.queue.free_at, num_bytes)
        self.num_started += 1
        target = self.flags.setdefault(flag, SyncFlag())
        target.expect(Arrival(at, self.num_started, granules, direction))

    def _copy_words(
        self, address: int, copy: str, source: int, granules: int, destination: int
    ) -> None:
        """Moves words between SMEM and an operand or, where SMEM was too small, a spill slot."""
        delivers = copy.endswith("_to_smem")
        outside = source if delivers else destination
        words = granules * self.rates.granule_bytes // 4
        if place := self.program.operand_at(outside):
            # What goes to an output is not read back.
            if delivers and words:
                start = place[1] * self.rates.hbm_address_bytes // 4
                values = self._operand_array(place[0])[start : start + words].tolist()
                if not values:
                    raise self._error(address, f"a {copy} copy from behind operand {place[0]}")
                self.smem.update(enumerate(values, start=destination))
            return
        if not self.program.is_spill(outside):
            raise self._error(address, f"a {copy} copy of neither an operand nor a spill slot")
        for word in range(words):
            self.smem[destination + word] = self._load(source + word)

    def _flag(self, term: Term) -> SyncFlag:
        """The flag at an address."""
        return self.flags.setdefault(self._value(term), SyncFlag())

    def _wait(self, address: int, flag: int, granules: int) -> None:
        """Waits until a flag has counted."""
        try:
            until, direction = self.flags.setdefault(flag, SyncFlag()).wait(self.now, granules)
        except ValueError as count:
            name = self.program.allocation_names[(flag >> ALLOCATION_BITS) - 1]
            offset = flag & ((1 << ALLOCATION_BITS) - 1)
            raise self._error(
                address,
                f"deadlock: a wait for {granules} granules on flag {name} + {offset} never ends;"
                f" it has counted {count} and no copy is in flight",
            ) from None
        self._stall(address, Owner.SYNC if direction is None else WAIT_OWNER[direction], until)

    def _matrix(self, address: int, item: Instruction) -> None:
        """Issues a matmul or pops a result."""
        number, rows, buffer = (term.constant for term in item.terms)
        unit = self.units.setdefault(number, MatrixUnit(self.rates))
        if item.op is Op.MATMUL:
            until: int | None = unit.matmul(self.now, rows, buffer)
            if self.observer is not None:
                busy = unit.busy(rows)
                self.observer.matmul(number, unit.free_at - busy, unit.free_at)
        else:
            until = unit.pop(self.now, buffer)
        if until is None:
            self.result.unknown["MXU results popped that no matmul made"] += 1
        else:
            self._stall(address, Owner.MXU_WAIT, until)

    def _stall(self, address: int, owner: Owner, until: int) -> None:
        """Lets time pass before a bundle."""
        if self.observer is not None and until > self.now:
            self.observer.stall(address, owner, self.now, until)
        self.result.stall_cycles[address, owner] += until - self.now
        self.now = until

    def _finish(self) -> Run:
        """Closes the books."""
        run = self.result
        run.end_cycle = self.now
        run.engines = [
            (e.num_copies, e.num_bytes, e.busy_cycles, e.fixed_busy_cycles) for e in self.engines
        ]
        run.mxu_busy_cycles = sum(unit.busy_cycles for unit in self.units.values())
        for flag in self.flags.values():
            if in_flight := sum(arrival.granules > 0 for arrival in flag.arrivals):
                run.unknown["copies in flight at exit"] += in_flight
        return run

    def _error(self, address: int, message: str) -> DumpError:
        """A DumpError at a bundle."""
        return DumpError(message, where=self.program.where(address))


def interpret(
    program: Program,
    rates: Rates,
    operands: Operands,
    *,
    core: int = 0,
    max_bundles: int = 1 << 40,
) -> Run:
    """Executes a program on one core; see `Interpreter.run`."""
    return Interpreter(program, rates, operands, core=core).run(max_bundles)
