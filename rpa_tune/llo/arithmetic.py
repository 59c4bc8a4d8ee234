"""What scalar operations compute, in plain Python: the definition of what `words.py` compiles."""

import operator
from collections.abc import Callable

import numpy as np

from rpa_tune.llo.opcodes import Op

_WORD = 1 << 32

BINARY: dict[Op, Callable[[int, int], int]] = {
    Op.ADD: operator.add,
    Op.SUB: operator.sub,
    Op.MUL: operator.mul,
    Op.MUL_HIGH_UNSIGNED: lambda a, b: (a % _WORD) * (b % _WORD) >> 32,
    Op.REMAINDER: lambda a, b: (a % _WORD) % (b % _WORD) if b else 0,
    Op.QUOTIENT: lambda a, b: (a % _WORD) // (b % _WORD) if b else 0,
    Op.AND: operator.and_,
    Op.OR: operator.or_,
    Op.XOR: operator.xor,
    Op.SHL: lambda a, b: a << (b & 31),
    Op.SHR_LOGICAL: lambda a, b: (a % _WORD) >> (b & 31),
    Op.SHR_ARITHMETIC: lambda a, b: a >> (b & 31),
    Op.MIN: min,
    Op.MAX: max,
    Op.MIN_UNSIGNED: lambda a, b: min(a % _WORD, b % _WORD),
    Op.MAX_UNSIGNED: lambda a, b: max(a % _WORD, b % _WORD),
    Op.EQ: operator.eq,
    Op.NE: operator.ne,
    Op.LT: operator.lt,
    Op.LE: operator.le,
    Op.GT: operator.gt,
    Op.GE: operator.ge,
    Op.LT_UNSIGNED: lambda a, b: a % _WORD < b % _WORD,
    Op.LE_UNSIGNED: lambda a, b: a % _WORD <= b % _WORD,
    Op.GT_UNSIGNED: lambda a, b: a % _WORD > b % _WORD,
    Op.GE_UNSIGNED: lambda a, b: a % _WORD >= b % _WORD,
    Op.OR_PREDICATE: lambda a, b: bool(a) or bool(b),
    Op.AND_PREDICATE: lambda a, b: bool(a) and bool(b),
    Op.XOR_PREDICATE: lambda a, b: bool(a) != bool(b),
    Op.NAND_PREDICATE: lambda a, b: not (a and b),
    Op.CARRY: lambda a, b: (a % _WORD + b % _WORD) >> 32,
    Op.FLOAT_ADD: lambda a, b: _bits(_float(a) + _float(b)),
    Op.FLOAT_SUB: lambda a, b: _bits(_float(a) - _float(b)),
    Op.FLOAT_MUL: lambda a, b: _bits(_float(a) * _float(b)),
    Op.FLOAT_MAX: lambda a, b: _bits(max(_float(a), _float(b))),
    Op.FLOAT_MIN: lambda a, b: _bits(min(_float(a), _float(b))),
    Op.FLOAT_EQ: lambda a, b: bool(_float(a) == _float(b)),
    Op.FLOAT_NE: lambda a, b: bool(_float(a) != _float(b)),
    Op.FLOAT_LT: lambda a, b: bool(_float(a) < _float(b)),
    Op.FLOAT_LE: lambda a, b: bool(_float(a) <= _float(b)),
    Op.FLOAT_GT: lambda a, b: bool(_float(a) > _float(b)),
    Op.FLOAT_GE: lambda a, b: bool(_float(a) >= _float(b)),
}

UNARY: dict[Op, Callable[[int], int]] = {
    Op.LEADING_ZEROS: lambda a: 32 - (a % _WORD).bit_length(),
    Op.FLOAT_WEIRD: lambda a: not np.isfinite(_float(a)),
    Op.FLOAT_FLOOR: lambda a: _bits(np.floor(_float(a))),
    Op.FLOAT_CEIL: lambda a: _bits(np.ceil(_float(a))),
    Op.FLOAT_TO_INT: lambda a: _to_int(float(_float(a))),
    Op.INT_TO_FLOAT: lambda a: _bits(np.float32(a)),
}


def _float(word: int) -> np.float32:
    """The float32 whose bits are a word's."""
    return np.uint32(word % _WORD).view(np.float32)


def _bits(value: np.float32) -> int:
    return int(value.view(np.uint32))


def _to_int(value: float) -> int:
    """The nearest whole number, of two the even one, in the range of a word; 0 of no number."""
    if np.isnan(value):
        return 0
    return int(min(max(np.rint(value), -_WORD >> 1), (_WORD >> 1) - 1))


def wrap(value: int) -> int:
    """Reduces to a signed 32-bit integer."""
    value %= _WORD
    return value - _WORD if value >= _WORD >> 1 else value
