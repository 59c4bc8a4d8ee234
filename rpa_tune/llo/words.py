"""Arithmetic of the compiled loop: two's complement words held in 64 bits."""

from typing import Any

import numba

from rpa_tune.llo.opcodes import Op

# The compiled code sees plain integers.
_ADD, _SUB, _MUL, _AND, _OR, _XOR = map(int, (Op.ADD, Op.SUB, Op.MUL, Op.AND, Op.OR, Op.XOR))
_SHL, _SHRL, _SHRA = map(int, (Op.SHL, Op.SHR_LOGICAL, Op.SHR_ARITHMETIC))
_MIN, _MAX, _MINU, _MAXU = map(int, (Op.MIN, Op.MAX, Op.MIN_UNSIGNED, Op.MAX_UNSIGNED))
_EQ, _NE, _LT, _LE, _GT, _GE = map(int, (Op.EQ, Op.NE, Op.LT, Op.LE, Op.GT, Op.GE))
_LTU, _LEU, _GTU = map(int, (Op.LT_UNSIGNED, Op.LE_UNSIGNED, Op.GT_UNSIGNED))
_MULHI = int(Op.MUL_HIGH_UNSIGNED)
_REMAINDER, _QUOTIENT = int(Op.REMAINDER), int(Op.QUOTIENT)
_ORP, _ANDP, _XORP, _NANDP = map(
    int, (Op.OR_PREDICATE, Op.AND_PREDICATE, Op.XOR_PREDICATE, Op.NAND_PREDICATE)
)
_WORD, _HALF = 1 << 32, 1 << 31


# No references are counted (`_nrt`), so that no array can be made inside: passing the arrays of
# `State` to a function cost ten times as much as what the function did.
_OPTIONS: dict[str, Any] = {"cache": True, "error_model": "numpy", "_nrt": False}


def jit(function: Any) -> Any:
    """Compiles, with the same arithmetic as Python and a cache on disk.

    But for a division of floats by zero, which gives an infinity.
    """
    return numba.njit(**_OPTIONS)(function)


def inlined(function: Any) -> Any:
    """The same, for what a compiled function calls again and again: its body stands in the caller.

    A call would pass every field of every array of `State` on the stack.
    """
    return numba.njit(**_OPTIONS, forceinline=True)(function)


@jit
def wrap_word(value: int) -> int:
    """Reduces to a signed 32-bit integer."""
    return ((value + _HALF) & (_WORD - 1)) - _HALF


@jit
def arithmetic(op: int, a: int, b: int) -> int:
    """Operations of two values."""
    if op == _ADD:
        return a + b
    if op == _SUB:
        return a - b
    if op == _MUL:
        return a * b
    if op == _MULHI:
        # In halves of `b`: the whole product does not fit 64 signed bits.
        a &= _WORD - 1
        return (a * ((b >> 16) & 0xFFFF) + (a * (b & 0xFFFF) >> 16)) >> 16
    if op == _REMAINDER:
        return (a & (_WORD - 1)) % (b & (_WORD - 1)) if b != 0 else 0
    if op == _QUOTIENT:
        return (a & (_WORD - 1)) // (b & (_WORD - 1)) if b != 0 else 0
    if op == _AND:
        return a & b
    if op == _OR:
        return a | b
    if op == _XOR:
        return a ^ b
    if op == _SHL:
        return a << (b & 31)
    if op == _SHRL:
        return (a & (_WORD - 1)) >> (b & 31)
    if op == _SHRA:
        return a >> (b & 31)
    if op == _MIN:
        return min(a, b)
    if op == _MAX:
        return max(a, b)
    if op == _EQ:
        return int(a == b)
    if op == _NE:
        return int(a != b)
    if op == _LT:
        return int(a < b)
    if op == _LE:
        return int(a <= b)
    if op == _GT:
        return int(a > b)
    if op == _GE:
        return int(a >= b)
    if op == _ORP:
        return int(a != 0 or b != 0)
    if op == _ANDP:
        return int(a != 0 and b != 0)
    if op == _XORP:
        return int((a != 0) != (b != 0))
    if op == _NANDP:
        return int(not (a != 0 and b != 0))
    a &= _WORD - 1
    b &= _WORD - 1
    if op == _MINU:
        return min(a, b)
    if op == _MAXU:
        return max(a, b)
    if op == _LTU:
        return int(a < b)
    if op == _LEU:
        return int(a <= b)
    if op == _GTU:
        return int(a > b)
    return int(a >= b)
