"""The compiled interpreter: the semantics of `interpreter.py` over the arrays of `encode.py`.

Equal to the oracle cycle for cycle; the tests compare every field of the `Run`. Memory does not
grow with the bundles executed. The first call in an environment compiles for some seconds; the
result is cached on disk beside this file, or in the user's cache folder.
"""

import weakref

import numpy as np

from rpa_tune.errors import DumpError
from rpa_tune.llo import encode
from rpa_tune.llo.arrays import (
    BAD_FLAG,
    BAD_SIZE,
    BARRIERS_FULL,
    BEHIND_OPERAND,
    BUFFERS,
    DEADLOCK,
    DONE,
    FLAGS_PER_ALLOCATION,
    HALTED,
    MAX_BARRIERS,
    NO_MEMORY,
    NOT_GIVEN,
    POOL,
    POOL_FULL,
    RING,
    RING_FULL,
    SMEM_FULL,
    TOO_LONG,
    TRACE_FULL,
    UNITS,
    Inputs,
    State,
)
from rpa_tune.llo.encode import Encoded
from rpa_tune.llo.engines import Direction, Owner, Rates
from rpa_tune.llo.loop import run_loop
from rpa_tune.llo.program import ALLOCATION_BITS, Program
from rpa_tune.llo.replay import clockwork
from rpa_tune.llo.run import HaltError, MissingOperandError, Operands, Run

_SMEM_WORDS = 4096  # of an allocation, until a store needs more
_TRACE_WORDS = 1 << 26  # of a recording, until a run needs more

_encoded: "weakref.WeakKeyDictionary[Program, dict[int, Encoded]]" = weakref.WeakKeyDictionary()


def run_fast(
    program: Program,
    rates: Rates,
    operands: Operands,
    *,
    core: int = 0,
    max_bundles: int,
    is_recorded: bool = False,
) -> Run:
    """Executes a program on one core; see `interpreter.interpret`.

    With `is_recorded` the run holds a recording, which `recording.replay` times again.
    """
    encoded = encode_once(program, rates)
    inputs = _inputs(program, encoded, rates, operands, max_bundles)
    words, trace_words = _SMEM_WORDS, _TRACE_WORDS if is_recorded else 0
    while True:
        state = _state(program, encoded, inputs, (words, trace_words), core)
        stopped = run_loop(inputs, state)
        if stopped == SMEM_FULL and words < 1 << ALLOCATION_BITS:
            words <<= 2
        elif stopped == TRACE_FULL:
            trace_words <<= 2
        else:
            break
    if stopped != DONE:
        raise _error(program, stopped, state, max_bundles)
    return _result(program, encoded, state)


def encode_once(program: Program, rates: Rates) -> Encoded:
    """The encoded program, made when it is first asked for."""
    by_delay = _encoded.setdefault(program, {})
    if rates.branch_delay not in by_delay:
        by_delay[rates.branch_delay] = encode.encode(program, rates)
    return by_delay[rates.branch_delay]


def num_flags(program: Program) -> int:
    """Flags that a program can name."""
    return (len(program.allocation_names) + 1) * FLAGS_PER_ALLOCATION


def _inputs(
    program: Program, encoded: Encoded, rates: Rates, operands: Operands, max_bundles: int
) -> Inputs:
    """Gathers what a run reads."""
    data = [np.zeros(0, np.int64)]
    count = max(program.operands, default=0) + 1
    operand_values = np.zeros(count, np.int64)
    data_of_operand = np.full((count, 2), -2, np.int64)
    for index, operand in program.operands.items():
        if operand.space == "register":
            if index not in operands:
                raise MissingOperandError(program, index)
            operand_values[index] = operands[index].flat[0]
            continue
        operand_values[index] = Program.operand_address(index)
        data_of_operand[index] = (0, -1)
        if index in operands:
            values = np.asarray(operands[index], np.int32).reshape(-1).astype(np.int64)
            data_of_operand[index] = (sum(map(len, data)), len(values))
            data.append(values)
    clock = clockwork(rates)
    return Inputs(
        rows=encoded.rows,
        blocks=encoded.blocks,
        copies=clock.copies,
        queues=clock.queues,
        slowdown=clock.slowdown,
        numbers=clock.numbers,
        cycles_per_row=clock.cycles_per_row,
        operand_values=operand_values,
        data=np.concatenate(data),
        data_of_operand=data_of_operand,
        is_spill=np.array([n.endswith("_spill") for n in program.allocation_names], np.int64),
        max_bundles=max_bundles,
    )


def _state(
    program: Program, encoded: Encoded, inputs: Inputs, room: tuple[int, int], core: int
) -> State:
    """A machine before the first bundle, with room for words of SMEM and of a recording."""
    smem_words, trace_words = room
    allocations = len(program.allocation_names)
    sizes = np.full(allocations, smem_words, np.int64)
    for allocation, granules in encoded.delivered_granules.items():
        if allocation >= 0:
            words = granules * int(inputs.numbers[0]) // 4
            sizes[allocation] = max(sizes[allocation], words)
    bases = np.concatenate([[0], np.cumsum(sizes)])
    flags = num_flags(program)
    smem = np.zeros(int(bases[-1]), np.int64)
    if program.core_id is not None:
        allocation, word = divmod(program.core_id, 1 << ALLOCATION_BITS)
        smem[bases[allocation - 1] + word] = core
    return State(
        registers=np.zeros(encoded.num_registers, np.int64),
        phis=np.zeros(encoded.most_phis, np.int64),
        smem=smem,
        smem_base=bases[:-1].astype(np.int64),
        smem_size=sizes,
        flag_count=np.zeros(flags, np.int64),
        flag_head=np.zeros(flags, np.int64),
        flag_tail=np.zeros(flags, np.int64),
        pool=np.zeros((POOL, 4), np.int64),  # memory that is not written is not taken
        engine=np.zeros((len(Direction), 3)),
        moved=np.zeros((len(Direction), 2), np.int64),
        mxu=np.zeros((UNITS, 2)),
        ring=np.zeros((UNITS, RING), np.int64),
        ring_ends=np.zeros((UNITS, 2), np.int64),
        buffers=np.full((UNITS, BUFFERS), -1, np.int64),
        counts=np.zeros(len(encoded.blocks), np.int64),
        entered=np.zeros(len(encoded.blocks), np.int64),
        stalls=np.zeros((len(program.bundles), len(Owner)), np.int64),
        scalars=np.zeros(6, np.int64),
        barriers=np.zeros(MAX_BARRIERS, np.int64),
        trace=np.empty(trace_words, np.int32),
    )


def _result(program: Program, encoded: Encoded, state: State) -> Run:
    """Spreads block counts over bundles."""
    lengths = encoded.blocks[:, encode.LENGTH]
    executed = np.repeat(state.counts, lengths)
    entered = executed.copy()
    entered[encoded.blocks[:, encode.FIRST]] = state.entered
    run = Run(
        executed=executed,
        entered=entered,
        stall_cycles=state.stalls,
        end_cycle=int(state.scalars[0]),
        engines=[
            (int(moved[0]), int(moved[1]), float(engine[1]), float(engine[2]))
            for moved, engine in zip(state.moved, state.engine, strict=True)
        ],
        mxu_busy_cycles=float(state.mxu[:, 1].sum()),
        barriers=state.barriers[: state.scalars[4]].tolist(),
        trace=state.trace[: state.scalars[5]].copy(),
    )
    if state.scalars[1]:
        run.unknown["MXU results popped that no matmul made"] = int(state.scalars[1])
    in_flight = 0
    for head in state.flag_head[state.flag_head > 0]:
        while head > 0:
            in_flight += 1
            head = state.pool[head, 3]
    if in_flight:
        run.unknown["copies in flight at exit"] = in_flight
    return run


def _error(program: Program, stopped: int, state: State, max_bundles: int) -> DumpError:
    """Why a run stopped, as the oracle says it."""
    address, detail = int(state.scalars[2]), int(state.scalars[3])
    if stopped == NOT_GIVEN:
        return MissingOperandError(program, detail)
    if stopped == HALTED:
        return HaltError(program, address)
    if stopped == DEADLOCK:
        name = program.allocation_names[detail // FLAGS_PER_ALLOCATION - 1]
        message = (
            f"deadlock: a wait on flag {name} + {detail % FLAGS_PER_ALLOCATION} never ends;"
            f" it has counted {int(state.flag_count[detail])} granules and no copy is in flight"
        )
    else:
        message = {
            TOO_LONG: f"the kernel did not end within {max_bundles} bundles",
            SMEM_FULL: "a store outside of its SMEM allocation",
            POOL_FULL: f"more than {POOL} copies in flight",
            RING_FULL: f"more than {RING} matmul results not popped",
            BAD_FLAG: "a flag outside of its allocation",
            BAD_SIZE: "a copy of negative size",
            BARRIERS_FULL: f"more than {MAX_BARRIERS} barriers between the cores",
            NO_MEMORY: "a copy of words of neither an operand nor a spill slot",
            BEHIND_OPERAND: f"a copy of words from behind operand {detail}",
        }[stopped]
    return DumpError(message, where=program.where(address))
