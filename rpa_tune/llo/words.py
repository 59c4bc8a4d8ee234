"""Arithmetic of the compiled loop: words of 32 bits, whole numbers or floats, held in 64 bits."""

from typing import Any

import numba
import numpy as np

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
_CLZ, _FADD, _FSUB, _FMUL = map(int, (Op.LEADING_ZEROS, Op.FLOAT_ADD, Op.FLOAT_SUB, Op.FLOAT_MUL))
_FMAX, _FMIN, _FEQ, _FNE = map(int, (Op.FLOAT_MAX, Op.FLOAT_MIN, Op.FLOAT_EQ, Op.FLOAT_NE))
_FLT, _FLE, _FGT, _FGE = map(int, (Op.FLOAT_LT, Op.FLOAT_LE, Op.FLOAT_GT, Op.FLOAT_GE))
_WEIRD, _FLOOR, _CEIL = map(int, (Op.FLOAT_WEIRD, Op.FLOAT_FLOOR, Op.FLOAT_CEIL))
_TO_INT, _TO_FLOAT, _CARRY = map(int, (Op.FLOAT_TO_INT, Op.INT_TO_FLOAT, Op.CARRY))
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
def _bits(value: float) -> Any:
    """The word of a float32."""
    return np.int64(np.float32(value).view(np.int32))


@jit
def _to_int(value: float) -> Any:
    """The nearest whole number, of two the even one, in the range of a word; 0 of no number."""
    if np.isnan(value):
        return 0
    return int(min(max(np.rint(np.float64(value)), -float(_HALF)), float(_HALF - 1)))


@jit
def _floats(op: int, a: int, b: int) -> Any:
    """The operations from `LEADING_ZEROS` on, most of them of floats."""
    if op == _CLZ:
        zeros = 32
        a &= _WORD - 1
        while a:
            a >>= 1
            zeros -= 1
        return zeros
    if op == _CARRY:
        return ((a & (_WORD - 1)) + (b & (_WORD - 1))) >> 32
    if op == _TO_FLOAT:
        return _bits(np.float32(a))
    x, y = np.int32(a).view(np.float32), np.int32(b).view(np.float32)
    if op == _FADD:
        return _bits(x + y)
    if op == _FSUB:
        return _bits(x - y)
    if op == _FMUL:
        return _bits(x * y)
    if op == _FMAX:
        return _bits(max(x, y))
    if op == _FMIN:
        return _bits(min(x, y))
    if op == _FEQ:
        return int(x == y)
    if op == _FNE:
        return int(x != y)
    if op == _FLT:
        return int(x < y)
    if op == _FLE:
        return int(x <= y)
    if op == _FGT:
        return int(x > y)
    if op == _FGE:
        return int(x >= y)
    if op == _WEIRD:
        return int(not np.isfinite(x))
    if op == _FLOOR:
        return _bits(np.floor(x))
    if op == _CEIL:
        return _bits(np.ceil(x))
    return _to_int(x)


@jit
def arithmetic(op: int, a: int, b: int) -> int:
    """Operations of two values; of one, it is `a`."""
    if op >= _CLZ:
        word: int = _floats(op, a, b)
        return word
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
