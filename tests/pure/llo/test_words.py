"""Arithmetic of the compiled loop against numpy's int32 and uint32."""

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from rpa_tune.llo.opcodes import Op
from rpa_tune.llo.words import arithmetic, wrap_word

words = st.integers(-(2**31), 2**31 - 1)
LEAST, MOST = -(2**31), 2**31 - 1


def unsigned(word: int) -> int:
    return int(np.uint32(word & 0xFFFFFFFF))


def shift(word: int) -> int:
    return word & 31


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
}


@pytest.mark.parametrize("op", RIGHT, ids=lambda op: op.name.lower())
@settings(max_examples=8, derandomize=True, deadline=None)
@given(a=words, b=words)
@example(a=LEAST, b=-1)
@example(a=MOST, b=LEAST)
@example(a=-1, b=0)
@example(a=7, b=33)
def test_two_words_give_the_word_that_numpy_has(op: Op, a: int, b: int) -> None:
    right = int(np.array(int(RIGHT[op](a, b)) & 0xFFFFFFFF, np.uint32).view(np.int32))
    assert wrap_word(arithmetic(int(op), a, b)) == right


@pytest.mark.parametrize("value", [0, -1, MOST, MOST + 1, LEAST, LEAST - 1, 2**40 + 5, -(2**62)])
def test_a_word_is_the_low_half_with_its_sign(value: int) -> None:
    assert wrap_word(value) == int(np.array(value, np.int64).astype(np.int32))
