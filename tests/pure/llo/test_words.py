"""Arithmetic of both interpreters against numpy's int32, uint32 and float32."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from rpa_tune.llo.arithmetic import BINARY, UNARY, wrap
from rpa_tune.llo.opcodes import Op
from rpa_tune.llo.words import arithmetic, wrap_word

words = st.integers(-(2**31), 2**31 - 1)
LEAST, MOST = -(2**31), 2**31 - 1


def unsigned(word: int) -> int:
    return int(np.uint32(word & 0xFFFFFFFF))


def shift(word: int) -> int:
    return word & 31


def number(word: int) -> np.float32:
    return np.array(word & 0xFFFFFFFF, np.uint32).view(np.float32)[()]


def word_of(value: float) -> int:
    return int(np.float32(value).view(np.uint32))


def nearest(value: float) -> int:
    if math.isnan(value):
        return 0
    return MOST if value > MOST else LEAST if value < LEAST else round(value)


# Results as whole numbers; `wrap_word` makes words of them.
RIGHT = {
    Op.ADD: lambda a, b: a + b,
    Op.SUB: lambda a, b: a - b,
    Op.MUL: lambda a, b: a * b,
    Op.MUL_HIGH_UNSIGNED: lambda a, b: unsigned(a) * unsigned(b) >> 32,
    Op.AND: lambda a, b: a & b,
    Op.OR: lambda a, b: a | b,
    Op.XOR: lambda a, b: a ^ b,
    Op.SHL: lambda a, b: a * 2 ** shift(b),
    Op.SHR_LOGICAL: lambda a, b: unsigned(a) // 2 ** shift(b),
    Op.SHR_ARITHMETIC: lambda a, b: a // 2 ** shift(b),
    Op.MIN: min,
    Op.MAX: max,
    Op.MIN_UNSIGNED: lambda a, b: min(unsigned(a), unsigned(b)),
    Op.MAX_UNSIGNED: lambda a, b: max(unsigned(a), unsigned(b)),
    Op.EQ: lambda a, b: a == b,
    Op.NE: lambda a, b: a != b,
    Op.LT: lambda a, b: a < b,
    Op.LE: lambda a, b: a <= b,
    Op.GT: lambda a, b: a > b,
    Op.GE: lambda a, b: a >= b,
    Op.LT_UNSIGNED: lambda a, b: unsigned(a) < unsigned(b),
    Op.LE_UNSIGNED: lambda a, b: unsigned(a) <= unsigned(b),
    Op.GT_UNSIGNED: lambda a, b: unsigned(a) > unsigned(b),
    Op.GE_UNSIGNED: lambda a, b: unsigned(a) >= unsigned(b),
    Op.OR_PREDICATE: lambda a, b: bool(a) or bool(b),
    Op.AND_PREDICATE: lambda a, b: bool(a) and bool(b),
    Op.XOR_PREDICATE: lambda a, b: bool(a) != bool(b),
    Op.NAND_PREDICATE: lambda a, b: not (a and b),
    Op.REMAINDER: lambda a, b: unsigned(a) % unsigned(b) if b else 0,
    Op.QUOTIENT: lambda a, b: unsigned(a) // unsigned(b) if b else 0,
    Op.LEADING_ZEROS: lambda a, b: f"{unsigned(a):032b}".find("1") % 33,
    Op.CARRY: lambda a, b: unsigned(a) + unsigned(b) > 0xFFFFFFFF,
    Op.FLOAT_ADD: lambda a, b: word_of(np.float64(number(a)) + np.float64(number(b))),
    Op.FLOAT_SUB: lambda a, b: word_of(np.float64(number(a)) - np.float64(number(b))),
    Op.FLOAT_MUL: lambda a, b: word_of(np.float64(number(a)) * np.float64(number(b))),
    Op.FLOAT_MAX: lambda a, b: word_of(number(b) if number(b) > number(a) else number(a)),
    Op.FLOAT_MIN: lambda a, b: word_of(number(b) if number(b) < number(a) else number(a)),
    Op.FLOAT_EQ: lambda a, b: number(a) == number(b),
    Op.FLOAT_NE: lambda a, b: number(a) != number(b),
    Op.FLOAT_LT: lambda a, b: number(a) < number(b),
    Op.FLOAT_LE: lambda a, b: number(a) <= number(b),
    Op.FLOAT_GT: lambda a, b: number(a) > number(b),
    Op.FLOAT_GE: lambda a, b: number(a) >= number(b),
    Op.FLOAT_WEIRD: lambda a, b: not math.isfinite(number(a)),
    Op.FLOAT_FLOOR: lambda a, b: word_of(np.floor(number(a))),
    Op.FLOAT_CEIL: lambda a, b: word_of(np.ceil(number(a))),
    Op.FLOAT_TO_INT: lambda a, b: nearest(float(number(a))),
    Op.INT_TO_FLOAT: lambda a, b: word_of(np.float64(a)),
}
FLOATS = [op for op in RIGHT if op.name.startswith("FLOAT")]


@pytest.mark.parametrize("op", RIGHT, ids=lambda op: op.name.lower())
@settings(max_examples=8, derandomize=True, deadline=None)
@given(a=words, b=words)
@example(a=LEAST, b=-1)
@example(a=MOST, b=LEAST)
@example(a=-1, b=0)
@example(a=7, b=33)
def test_two_words_give_the_word_that_numpy_has(op: Op, a: int, b: int) -> None:
    check(op, a, b)


@pytest.mark.parametrize("op", FLOATS, ids=lambda op: op.name.lower())
def test_two_floats_give_the_float_that_numpy_has(op: Op) -> None:
    values = (0.0, -0.0, 0.5, 1.5, 2.5, -3.75, 1e-40, 3e9, -3e9, 3.4e38, math.inf, math.nan)
    for a, b in itertools.product(map(word_of, values), repeat=2):
        check(op, wrap_word(a), wrap_word(b))


def check(op: Op, a: int, b: int) -> None:
    with np.errstate(all="ignore"):
        right = wrap_word(int(RIGHT[op](a, b)))
        found = [wrap_word(arithmetic(int(op), a, b))]
        if op in BINARY:
            found.append(wrap(int(BINARY[op](a, b))))
        elif op in UNARY:
            found.append(wrap(int(UNARY[op](a))))
    if op in FLOATS and math.isnan(number(right)):
        assert all(math.isnan(number(word)) for word in found)  # its bits are the machine's
    else:
        assert set(found) == {right}


@pytest.mark.parametrize("value", [0, -1, MOST, MOST + 1, LEAST, LEAST - 1, 2**40 + 5, -(2**62)])
def test_a_word_is_the_low_half_with_its_sign(value: int) -> None:
    assert wrap_word(value) == int(np.array(value, np.int64).astype(np.int32))
