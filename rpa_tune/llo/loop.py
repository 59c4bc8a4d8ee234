"""The compiled loop of `fast.py`: arrays in, arrays changed, nothing else.

Written for the compiler, not the reader: `interpreter.py` is the definition. Words are whole
numbers or the bits of floats; `words.py` computes with both.
"""

from typing import Any

import numpy as np

from rpa_tune.llo import encode
from rpa_tune.llo.arrays import (
    BAD_FLAG,
    BAD_SIZE,
    BARRIERS_FULL,
    BEHIND_OPERAND,
    DEADLOCK,
    DONE,
    HALTED,
    MAX_BARRIERS,
    NO_MEMORY,
    NOT_GIVEN,
    POOL_FULL,
    RING_FULL,
    SMEM_FULL,
    TOO_LONG,
    TRACE_FULL,
)
from rpa_tune.llo.engines import Direction, Owner
from rpa_tune.llo.opcodes import Op
from rpa_tune.llo.program import ALLOCATION_BITS, OPERAND_BITS

# Compiled into the code of this file, which is cached until it changes: so does an edit of theirs.
from rpa_tune.llo.timed import expect, flag_number, matmul, pop, serve, take
from rpa_tune.llo.words import arithmetic, inlined, jit, wrap_word

# The compiled code sees plain integers.
_OP, _RESULT, _PREDICATE, _NEGATED = encode.OP, encode.RESULT, encode.PREDICATE, encode.NEGATED
_EXTRA, _OFFSET, _TERMS = encode.EXTRA, encode.OFFSET, encode.TERMS
_WORDS_IN = encode.WORDS_IN
_FIRST, _LENGTH, _ROWS, _BODY, _END, _NEXT = range(6)
_MOV, _LOAD, _STORE = int(Op.MOV), int(Op.LOAD), int(Op.STORE)
_SELECT, _NOTP = int(Op.SELECT), int(Op.NOT_PREDICATE)
_BRANCH, _HALT, _WAIT, _SYNC_ADD = map(int, (Op.BRANCH, Op.HALT, Op.WAIT, Op.SYNC_ADD))
_SYNC_READ, _DELAY, _COPY, _OPERAND = map(int, (Op.SYNC_READ, Op.DELAY, Op.COPY, Op.OPERAND))
_MATMUL, _POP = int(Op.MATMUL), int(Op.POP)
_BARRIER = int(Op.BARRIER)
# Operations whose row in a recording depends on the run.
_TIMED = np.zeros(len(Op) + 1, np.bool_)
_TIMED[[int(op) for op in encode.RECORDED]] = True
_OWN_SCALAR, _OWN_MXU, _OWN_SYNC = int(Owner.SCALAR), int(Owner.MXU_WAIT), int(Owner.SYNC)
_OWN_READ = int(Owner.DMA_WAIT_READ)  # then DMA_WAIT_WRITE and PROLOGUE, as Direction orders them
_WORD = 1 << 32
_OFFSET_MASK = (1 << ALLOCATION_BITS) - 1
_OPERAND_UNITS = 1 << OPERAND_BITS
_NUM_DIRECTIONS = len(Direction)
_NUM_KINDS = encode.NUM_KINDS


@inlined
def _store(state: Any, address: int, value: int) -> bool:
    """Writes SMEM; False outside of the allocation."""
    allocation = (address >> ALLOCATION_BITS) - 1
    offset = address & _OFFSET_MASK
    if (
        allocation < 0
        or allocation >= len(state.smem_size)
        or offset >= state.smem_size[allocation]
    ):
        return False
    state.smem[state.smem_base[allocation] + offset] = value
    return True


@inlined
def _load(state: Any, address: int) -> int:
    """Reads SMEM; zero outside of the allocation, where nothing can have been written."""
    allocation = (address >> ALLOCATION_BITS) - 1
    offset = address & _OFFSET_MASK
    if (
        allocation < 0
        or allocation >= len(state.smem_size)
        or offset >= state.smem_size[allocation]
    ):
        return 0
    word: int = state.smem[state.smem_base[allocation] + offset]
    return word


@inlined
def _copy_words(inputs: Any, state: Any, delivers: bool, values: Any) -> int:
    """Moves words between SMEM and an operand or a spill slot; returns a stop reason."""
    source, granules, destination, _ = values
    outside = source if delivers else destination
    words = granules * inputs.numbers[0] // 4
    for index in range(len(inputs.operand_values)):
        length = inputs.data_of_operand[index, 1]
        offset = outside - inputs.operand_values[index]
        if length == -2 or offset < 0 or offset >= _OPERAND_UNITS:
            continue
        if not delivers or words == 0:
            return DONE
        state.scalars[3] = index
        if length < 0:
            return NOT_GIVEN
        first = offset * inputs.numbers[6] // 4
        if first >= length:
            return BEHIND_OPERAND
        start = inputs.data_of_operand[index, 0] + first
        for word in range(min(words, length - first)):
            if not _store(state, destination + word, inputs.data[start + word]):
                return SMEM_FULL
        return DONE
    allocation = (outside >> ALLOCATION_BITS) - 1
    if allocation < 0 or allocation >= len(inputs.is_spill) or inputs.is_spill[allocation] == 0:
        return NO_MEMORY
    for word in range(words):
        if not _store(state, destination + word, _load(state, source + word)):
            return SMEM_FULL
    return DONE


@inlined
def _copy(inputs: Any, state: Any, row: int, now: int, values: Any) -> int:
    """Starts a copy: operands are (source, granules, destination, flag); returns a stop reason."""
    _, granules, _, flag = values
    extra = inputs.rows[row, _EXTRA]
    kind = extra % _NUM_KINDS
    direction = kind % _NUM_DIRECTIONS
    if granules < 0:
        return BAD_SIZE
    number = flag_number(flag)
    if number < 0 or number >= len(state.flag_count):
        return BAD_FLAG
    if extra >= _NUM_KINDS:
        stopped = _copy_words(inputs, state, extra // _NUM_KINDS == _WORDS_IN, values)
        if stopped != DONE:
            return int(stopped)
    if granules == 0:
        return DONE
    num_bytes = granules * inputs.numbers[0]
    at = serve(inputs.copies, inputs.queues, inputs.slowdown, state.engine, kind, now, num_bytes)
    state.moved[direction, 0] += 1
    state.moved[direction, 1] += num_bytes
    return DONE if expect(state, number, at, granules, direction) else POOL_FULL


@jit
def run_loop(inputs: Any, state: Any) -> int:
    """Runs blocks until the program ends; returns why it stopped.

    One long function on purpose: what it calls is `inlined`, and stands in it.
    """
    rows, blocks, registers = inputs.rows, inputs.blocks, state.registers
    zero = len(registers) - 1
    phis = state.phis
    base = state.scalars[0]
    trace = state.trace
    traced = 0
    block = 0
    jumped = False
    came_from = -1
    issued = 0
    while block >= 0:
        first = blocks[block, _FIRST]
        back_edge = jumped and came_from >= first
        state.counts[block] += 1
        state.entered[block] += 0 if back_edge else 1
        issued += blocks[block, _LENGTH]
        if issued > inputs.max_bundles:
            state.scalars[2] = first
            return TOO_LONG
        start, body = blocks[block, _ROWS], blocks[block, _BODY]
        # What a block does outlives it only where the recording has room for all of it.
        is_traced = traced + 1 + 2 * (blocks[block, _END] - body) <= len(trace)
        if is_traced:
            trace[traced] = block
            traced += 1
        elif len(trace):
            state.scalars[2] = first
            return TRACE_FULL
        for i in range(start, body):
            choice = int(back_edge) if rows[i, _EXTRA] else int(not jumped)
            k = _TERMS + 3 * choice
            phis[i - start] = rows[i, k] + registers[rows[i, k + 1]] + registers[rows[i, k + 2]]
        for i in range(start, body):
            registers[rows[i, _RESULT]] = wrap_word(phis[i - start])
        following = blocks[block, _NEXT]
        taken = False
        for i in range(body, blocks[block, _END]):
            op = rows[i, _OP]
            now = base + rows[i, _OFFSET]
            if op == _BRANCH:
                missing = rows[i, _EXTRA] >> 32
                if missing:
                    base += missing
                    state.stalls[first + rows[i, _OFFSET], _OWN_SCALAR] += missing
            predicate = rows[i, _PREDICATE]
            if predicate >= 0 and (registers[predicate] != 0) == (rows[i, _NEGATED] == 1):
                if is_traced and _TIMED[op]:
                    trace[traced] = -1
                    traced += 1
                continue
            a = rows[i, _TERMS] + registers[rows[i, _TERMS + 1]] + registers[rows[i, _TERMS + 2]]
            k = _TERMS + 3
            b = rows[i, k] + registers[rows[i, k + 1]] + registers[rows[i, k + 2]]
            if op in (_MATMUL, _POP):
                if op == _MATMUL:
                    until = matmul(inputs, state, now, a, b, rows[i, _TERMS + 6])
                    if until < 0:
                        state.scalars[2] = first + rows[i, _OFFSET]
                        return RING_FULL
                else:
                    until = pop(state, now, a, rows[i, _TERMS + 6])
                if until > now:
                    state.stalls[first + rows[i, _OFFSET], _OWN_MXU] += until - now
                    base += until - now
            elif op == _MOV:
                registers[rows[i, _RESULT]] = wrap_word(a)
            elif op == _LOAD:
                registers[rows[i, _RESULT]] = _load(state, a)
            elif op == _SELECT:
                k = _TERMS + (3 if a != 0 else 6)
                c = rows[i, k] + registers[rows[i, k + 1]] + registers[rows[i, k + 2]]
                registers[rows[i, _RESULT]] = wrap_word(c)
            elif op == _BRANCH:
                taken = True
                following = (rows[i, _EXTRA] & (_WORD - 1)) - 1
            elif op == _STORE:
                if not _store(state, a, b):
                    state.scalars[2] = first + rows[i, _OFFSET]
                    return SMEM_FULL
            elif op == _NOTP:
                registers[rows[i, _RESULT]] = int(a == 0)
            elif op == _COPY:
                k = _TERMS + 6
                c = rows[i, k] + registers[rows[i, k + 1]] + registers[rows[i, k + 2]]
                d = rows[i, k + 3] + registers[rows[i, k + 4]] + registers[rows[i, k + 5]]
                if is_traced:
                    trace[traced], trace[traced + 1] = flag_number(d), b
                    traced += 2
                stopped: int = _copy(inputs, state, i, now, (a, b, c, d))
                if stopped != DONE:
                    state.scalars[2] = first + rows[i, _OFFSET]
                    return stopped
            elif op == _WAIT:
                number = flag_number(a)
                if number < 0 or number >= len(state.flag_count):
                    state.scalars[2] = first + rows[i, _OFFSET]
                    return BAD_FLAG
                if is_traced:
                    trace[traced], trace[traced + 1] = number, b
                    traced += 2
                until = now
                owner = _OWN_SYNC
                while state.flag_count[number] < b:
                    if state.flag_head[number] == 0:
                        state.scalars[2] = first + rows[i, _OFFSET]
                        state.scalars[3] = number
                        return DEADLOCK
                    slot = take(state, number)
                    if state.pool[slot, 0] > until:
                        until = state.pool[slot, 0]
                        owner = _OWN_READ + state.pool[slot, 2]
                state.stalls[first + rows[i, _OFFSET], owner] += until - now
                base += until - now
            elif op == _SYNC_ADD:
                number = flag_number(a)
                if number < 0 or number >= len(state.flag_count):
                    state.scalars[2] = first + rows[i, _OFFSET]
                    return BAD_FLAG
                if is_traced:
                    trace[traced], trace[traced + 1] = number, b
                    traced += 2
                state.flag_count[number] += b
            elif op == _SYNC_READ:
                number = flag_number(a)
                if number < 0 or number >= len(state.flag_count):
                    state.scalars[2] = first + rows[i, _OFFSET]
                    return BAD_FLAG
                while state.flag_head[number] > 0 and state.pool[state.flag_head[number], 0] <= now:
                    take(state, number)
                registers[rows[i, _RESULT]] = wrap_word(state.flag_count[number])
            elif op == _OPERAND:
                registers[rows[i, _RESULT]] = inputs.operand_values[a]
            elif op == _BARRIER:
                if state.scalars[4] == MAX_BARRIERS:
                    state.scalars[2] = first + rows[i, _OFFSET]
                    return BARRIERS_FULL
                state.barriers[state.scalars[4]] = now
                state.scalars[4] += 1
                state.stalls[first + rows[i, _OFFSET], _OWN_SYNC] += inputs.numbers[5]
                base += inputs.numbers[5]
                registers[rows[i, _RESULT]] = wrap_word(a)
            elif op == _DELAY:
                if is_traced:
                    trace[traced] = a
                    traced += 1
                state.stalls[first + rows[i, _OFFSET], _OWN_SYNC] += a
                base += a
            elif op == _HALT:
                state.scalars[2] = first + rows[i, _OFFSET]
                return HALTED
            else:
                registers[rows[i, _RESULT]] = wrap_word(arithmetic(op, a, b))
        registers[zero] = 0
        base += blocks[block, _LENGTH]
        came_from = first + blocks[block, _LENGTH] - 1
        jumped = taken
        block = following
    state.scalars[0] = base
    state.scalars[5] = traced
    return DONE
