"""Pallas calls of a function, and what is known of their operands."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from pure.user_kernel import kernels

from rpa_tune.user_kernel.find import (
    MARK,
    Known,
    Unknown,
    find_calls,
    mark_calls,
    numbered,
    words_of,
)

X = jax.ShapeDtypeStruct((16, 128), jnp.float32)


def calls(function, *arguments):
    """The calls; arrays are known, shapes are not."""
    traced = mark_calls(jax.make_jaxpr(function)(*arguments))
    known = [
        Unknown(sources=(f"argument {i}",))
        if isinstance(argument, jax.ShapeDtypeStruct)
        else Known(value=argument)
        for i, argument in enumerate(arguments)
    ]
    return numbered(find_calls(traced, known))


def test_what_is_computed_from_known_values_is_known_inside_of_jit_too():
    (call,) = calls(kernels.derived, np.array([3, 4], np.int32), X)
    assert (call.name, call.grid, call.mark) == ("rows", (2,), f"{MARK}0")
    assert call.shapes == ("int32[2]", "float32[16,128]")
    assert call.scalars()[0].tolist() == [3, 7]
    assert call.operands[1] == Unknown(sources=("argument 1",))


def test_a_value_that_is_not_known_says_what_it_depends_on():
    lens = jax.ShapeDtypeStruct((2,), jnp.int32)
    (call,) = calls(kernels.derived, lens, X)
    assert call.scalars() == {}
    assert call.operands[0] == Unknown(sources=("argument 0",))


@pytest.mark.parametrize(("which", "names"), [(1, ["first"]), (0, ["second"])])
def test_a_known_branch_is_the_only_one(which, names):
    starts = np.zeros(2, np.int32)
    assert [call.name for call in calls(kernels.chosen, np.int32(which), starts, X)] == names


def test_both_branches_where_it_is_not_known():
    which = jax.ShapeDtypeStruct((), jnp.int32)
    found = calls(kernels.chosen, which, np.zeros(2, np.int32), X)
    assert {call.name for call in found} == {"first", "second"}
    assert all(call.scalars()[0].tolist() == [0, 0] for call in found)


def test_in_a_loop_only_what_does_not_change_is_known():
    steady, changing = calls(kernels.looped, np.array([1, 2], np.int32), X)
    assert (steady.name, steady.is_in_loop) == ("steady", True)
    assert steady.scalars()[0].tolist() == [1, 2]
    assert changing.scalars() == {}
    assert changing.operands[0].sources == ("argument 1", "values that change in a loop")


def test_calls_of_one_name_are_numbered_and_marked_apart():
    first, second = calls(kernels.twice, X)
    assert (first.name, second.name) == ("_double", "_double#2")
    assert first.mark != second.mark
    assert second.operands[0].sources == ("argument 0", "the result of _double")


def test_small_elements_share_words_with_the_rows_below():
    array = np.arange(16, dtype=np.int8).reshape(1, 8, 2)
    words = words_of(array).reshape(2, 128)
    assert words[0, 0].tobytes() == bytes([0, 2, 4, 6])  # rows 0 to 3 of the first column
    assert words[1, 1].tobytes() == bytes([9, 11, 13, 15])
    assert not words[:, 2:].any()
    halves = words_of(np.array([[1, 2], [3, 4]], np.int16)).reshape(4, 128)
    assert halves[0, 0] == 1 + (3 << 16)
    assert words_of(np.float32([1.0])).tolist() == [0x3F800000]


@pytest.mark.parametrize(
    "array",
    [np.zeros(4, np.int8), np.zeros((2, 16, 4), np.int8), np.zeros((8, 256), np.int8),
     np.zeros(2, bool), np.zeros(2, np.int64)],
)  # fmt: skip
def test_a_layout_that_is_not_known_is_not_guessed(array):
    assert words_of(array) is None
