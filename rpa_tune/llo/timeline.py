"""What one simulated launch tells: where every cycle went, what moved, what bounds it.

A `Timeline` is made from a `Run`, whoever executed it. Times are simulated, never measured.
"""

import functools
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from rpa_tune.llo.delay_slots import printed_delay
from rpa_tune.llo.engines import Direction, Owner, Rates
from rpa_tune.llo.machine import Machine
from rpa_tune.llo.opcodes import Op, Slot
from rpa_tune.llo.program import Program
from rpa_tune.llo.run import Run

_Number = TypeVar("_Number", int, float)
# A copy engine that is busy this share of the time limits the kernel whatever waits are seen.
_BUSY_SHARE = 0.9
_VECTOR_SLOTS = tuple(slot for slot in Slot if slot is not Slot.SALU)
_UNITS = tuple(slot for slot in Slot if slot not in (Slot.FILL, Slot.SPILL))


@dataclass(frozen=True, kw_only=True, slots=True)
class LoopRegion:
    """One loop of the schedule.

    Attributes:
      first: Address of the loop body's first bundle.
      last: Address of the last bundle before the loop is left, delay slots included.
      depth: Nesting depth, 1 for an outermost loop.
      entries: Times the loop was entered.
      trips: Times its body ran, over all entries.
      bundles: Bundles executed inside, inner loops included.
      cycles: Cycles spent inside, stalls and inner loops included.
      share: `cycles` over the kernel's total.
    """

    first: int
    last: int
    depth: int
    entries: int
    trips: int
    bundles: int
    cycles: int
    share: float


@dataclass(frozen=True, kw_only=True, slots=True)
class SlotUse:
    """Use of one issue slot over the bundles executed.

    Attributes:
      instructions: Instructions executed.
      share: Of the slot's capacity over all bundles executed.
    """

    instructions: int
    share: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Timeline:
    """One simulated launch.

    On two cores, bytes, copies, bundles, slots and MXU time are those of both; cycles by owner,
    engine times, loops and what bounds it are those of the core that ends last.

    Attributes:
      chip: Machine it ran on.
      core_cycles: From launch to the last bundle of each core.
      total_cycles: The same of the core that ends last.
      cycles_by_owner: Who each cycle belongs to; adds up to `total_cycles`.
      time_us: `total_cycles` at the nominal clock.
      num_bundles: Bundles executed.
      read_bytes: HBM (or CMEM, v4) to VMEM.
      write_bytes: VMEM to HBM (or CMEM).
      prefetch_bytes: All other copies: scalar operands to SMEM.
      num_copies: Copies from and to HBM with a size above zero.
      num_prefetch_copies: The same for the other copies.
      read_busy_cycles: Time spent serving reads.
      write_busy_cycles: Time spent serving writes.
      mxu_busy_cycles: Time the MXUs multiply, summed over units.
      slots: Use per issue slot, by name; FILL and SPILL are part of VLOAD and VSTORE.
      loops: Every loop of the text, outermost first.
      bound_by: `hbm`, `dma_issue`, `dma_latency`, `mxu`, `vector`, `scalar`, `sync` or
        `launch`; see `bound_by`.
      unknown: What was met and not modelled, with counts.
      guesses: Parameters the time depends on that have no evidence.
      set_us: Its time under each set of parameters that the evidence does not tell from these, if
        it was asked for; see `ensemble.py`.
    """

    chip: str
    core_cycles: tuple[int, ...]
    total_cycles: int
    cycles_by_owner: dict[str, int]
    time_us: float
    num_bundles: int
    read_bytes: int
    write_bytes: int
    prefetch_bytes: int
    num_copies: int
    num_prefetch_copies: int
    read_busy_cycles: float
    write_busy_cycles: float
    mxu_busy_cycles: float
    slots: dict[str, SlotUse]
    loops: tuple[LoopRegion, ...]
    bound_by: str
    unknown: dict[str, int]
    guesses: tuple[str, ...]
    set_us: tuple[float, ...] = ()

    @property
    def busiest_slot(self) -> str:
        """The slot with the largest share of its capacity."""
        return max((slot.name for slot in _UNITS), key=lambda name: self.slots[name].share)

    @property
    def achieved_bytes_per_s(self) -> float:
        """HBM traffic in both directions over the time, bytes/s."""
        return (self.read_bytes + self.write_bytes) / self.time_us * 1e6


def make_timeline(
    program: Program, machine: Machine, rates: Rates, runs: Sequence[Run]
) -> Timeline:
    """Reads the runs of all cores."""
    run = max(runs, key=lambda run: run.end_cycle)
    slots = slot_table(program)
    has_vector = slots[:, _VECTOR_SLOTS].any(axis=1)
    owners = run.stall_cycles.sum(axis=0)
    owners[Owner.ISSUE] += int(run.executed[has_vector].sum())
    owners[Owner.SCALAR] += int(run.executed[~has_vector].sum())
    owners[Owner.LAUNCH] = machine.launch_cycles
    cycles_by_owner = {owner.name.lower(): int(owners[owner]) for owner in Owner}
    total = sum(cycles_by_owner.values())
    assert total == run.end_cycle + int(owners[Owner.LAUNCH])
    launch_cycles = int(owners[Owner.LAUNCH])
    executed = np.sum([run.executed for run in runs], axis=0)
    num_bundles = int(executed.sum())
    executed_slots = executed @ slots
    slot_use = {
        slot.name: SlotUse(
            instructions=int(executed_slots[slot]),
            share=float(executed_slots[slot]) / (machine.slot_capacity[slot] * num_bundles),
        )
        for slot in Slot
    }
    copies, num_bytes = Counter[Direction](), Counter[Direction]()
    for each in runs:
        for direction in Direction:
            copies[direction] += each.engines[direction][0]
            num_bytes[direction] += each.engines[direction][1]
    return Timeline(
        chip=machine.chip,
        core_cycles=tuple(run.end_cycle + launch_cycles for run in runs),
        total_cycles=total,
        cycles_by_owner=cycles_by_owner,
        time_us=total / machine.value("clock_hz") * 1e6,
        num_bundles=num_bundles,
        read_bytes=num_bytes[Direction.READ],
        write_bytes=num_bytes[Direction.WRITE],
        prefetch_bytes=num_bytes[Direction.LOCAL],
        num_copies=copies[Direction.READ] + copies[Direction.WRITE],
        num_prefetch_copies=copies[Direction.LOCAL],
        read_busy_cycles=run.engines[Direction.READ][2],
        write_busy_cycles=run.engines[Direction.WRITE][2],
        mxu_busy_cycles=sum(run.mxu_busy_cycles for run in runs),
        slots=slot_use,
        loops=tuple(_loops(program, rates, run, total)),
        bound_by=bound_by(cycles_by_owner, run, slot_use, rates),
        unknown=dict(sum((run.unknown for run in runs), Counter())),
        guesses=_guesses(program, machine),
    )


def one_after_the_other(timelines: Sequence[Timeline]) -> Timeline:
    """Launches of which each begins when the one before has ended, as one.

    Loops and what bounds it are those of the longest; the others' addresses are of other programs.
    """
    if len(timelines) == 1:
        return timelines[0]
    longest = max(timelines, key=lambda one: one.total_cycles)
    sums = {
        name: sum(getattr(one, name) for one in timelines)
        for name in (
            "total_cycles", "time_us", "num_bundles", "read_bytes", "write_bytes",
            "prefetch_bytes", "num_copies", "num_prefetch_copies", "read_busy_cycles",
            "write_busy_cycles", "mxu_busy_cycles",
        )
    }  # fmt: skip
    # A slot's capacity is the same in every bundle: shares weigh by bundles.
    slots = {
        name: SlotUse(
            instructions=sum(one.slots[name].instructions for one in timelines),
            share=sum(one.slots[name].share * one.num_bundles for one in timelines)
            / sums["num_bundles"],
        )
        for name in longest.slots
    }
    return replace(
        longest,
        core_cycles=_sums(one.core_cycles for one in timelines),
        cycles_by_owner={
            name: sum(one.cycles_by_owner[name] for one in timelines)
            for name in longest.cycles_by_owner
        },
        slots=slots,
        unknown=dict(sum((Counter(one.unknown) for one in timelines), Counter())),
        guesses=tuple(dict.fromkeys(name for one in timelines for name in one.guesses)),
        set_us=_sums(one.set_us for one in timelines),
        **sums,
    )


def _sums(rows: Iterable[tuple[_Number, ...]]) -> tuple[_Number, ...]:
    """Of each place."""
    return tuple(sum(column) for column in zip(*rows, strict=True))


def _guesses(program: Program, machine: Machine) -> tuple[str, ...]:
    """What the time rests on without evidence: parameters of the machine, and of the model."""
    return (
        *(name for name in machine.guesses if name != "barrier_cycles" or program.num_cores > 1),
        *(("copies of CMEM timed as HBM",) if uses_cmem(program) else ()),
        *(text for copy, text in _ODD_COPIES.items() if copy in _copies(program)),
        *(("each core gets half of HBM's bandwidth",) if program.num_cores > 1 else ()),
    )


@functools.lru_cache(maxsize=64)
def slot_table(program: Program) -> npt.NDArray[np.int64]:
    """Instructions per bundle and slot, [num_bundles, len(Slot)]."""
    return np.array([bundle.slots for bundle in program.bundles], np.int64)


def bound_by(owners: dict[str, int], run: Run, slots: dict[str, SlotUse], rates: Rates) -> str:
    """What limits a kernel, by rules in this order.

    1. A queue of copies busy for 90 % of the time or more limits it, whatever waits are seen.
    2. Otherwise the largest of these owners: copies (`dma_wait_read`, `dma_wait_write`,
       `prologue`), `mxu_wait`, `issue`, `scalar`, `sync`, `launch`.

    Copies become `hbm` when the busier queue spends at least half its time on bytes, else
    `dma_issue` (a fixed cost per copy); when the queues are busy for less than half of the time
    copies are waited for, `dma_latency`. `issue` becomes `mxu` when the MXU slot is the
    busiest of its bundles, else `vector`.
    """
    total = sum(owners.values())
    busy, fixed = _busier_queue(run, rates)
    waits = owners["dma_wait_read"] + owners["dma_wait_write"] + owners["prologue"]
    groups = {"copies": waits} | {
        name: owners[name] for name in ("mxu_wait", "issue", "scalar", "sync", "launch")
    }
    largest = max(groups, key=lambda name: groups[name])
    if busy >= _BUSY_SHARE * total or largest == "copies":
        if busy < waits / 2:
            return "dma_latency"
        return "dma_issue" if fixed > busy / 2 else "hbm"
    if largest == "mxu_wait":
        return "mxu"
    if largest == "issue":
        units = (slot.name for slot in _UNITS if slot is not Slot.SALU)
        return "mxu" if max(units, key=lambda name: slots[name].share) == "MXU" else "vector"
    return largest


def _busier_queue(run: Run, rates: Rates) -> tuple[float, float]:
    """(busy cycles, of which fixed) of the queue of reads or writes that serves longer."""
    read, write = (run.engines[d][2:] for d in (Direction.READ, Direction.WRITE))
    if rates.queues[Direction.READ] == rates.queues[Direction.WRITE]:
        return read[0] + write[0], read[1] + write[1]
    return max(read, write)


def _loops(program: Program, rates: Rates, run: Run, total: int) -> Iterable[LoopRegion]:
    """Every loop: a branch back to a label, with the bundles between."""
    cycles = run.executed + run.stall_cycles.sum(axis=1)
    for first, last in loop_bounds(program, rates):
        inside = slice(first, last + 1)
        spent = int(cycles[inside].sum())
        yield LoopRegion(
            first=first,
            last=last,
            depth=program.bundles[first].depth,
            entries=int(run.entered[first]),
            trips=int(run.executed[first]),
            bundles=int(run.executed[inside].sum()),
            cycles=spent,
            share=spent / total,
        )


# Copies whose speed no measured time says anything of.
_ODD_COPIES = {
    "hbm_to_hbm": "copies from HBM to HBM timed as writes, their reads not counted",
    "vmem_to_vmem": "copies from VMEM to VMEM timed as scalar operands",
}


def _copies(program: Program) -> set[str]:
    """What is copied where."""
    return {
        item.detail
        for bundle in program.bundles
        for item in bundle.instructions
        if item.op is Op.COPY
    }


def uses_cmem(program: Program) -> bool:
    """Whether an operand lives in CMEM, whose speed is not modelled."""
    return any(operand.space == "cmem" for operand in program.operands.values())


@functools.lru_cache(maxsize=64)
def loop_bounds(program: Program, rates: Rates) -> tuple[tuple[int, int], ...]:
    """First and last bundle of every loop, in address order."""
    last_of: dict[int, int] = {}
    for address, bundle in enumerate(program.bundles):
        for item in bundle.instructions:
            if item.op is Op.BRANCH and item.target <= address:
                last = address + printed_delay(program, address, rates)
                last_of[item.target] = max(last, last_of.get(item.target, 0))
    return tuple(sorted(last_of.items()))
