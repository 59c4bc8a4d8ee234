"""The compiled half of the engines against the readable one, event by event.

Run as the Python that numba compiles; that the compiled code does the same, whole launches show
(`test_recording.py`, `test_interpreter.py`).
"""

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rpa_tune.llo import timed
from rpa_tune.llo.arrays import BUFFERS, FLAGS_PER_ALLOCATION, RING, UNITS
from rpa_tune.llo.engines import Arrival, Direction, MatrixUnit, SyncFlag, copy_engines, rates_of
from rpa_tune.llo.machine import load_machine
from rpa_tune.llo.program import ALLOCATION_BITS
from rpa_tune.llo.replay import clockwork

CHIPS = ["v5e", "v6e", "v7x"]
SETTINGS = settings(max_examples=30, derandomize=True, deadline=None)


def make_state(pool=8):
    return SimpleNamespace(
        pool=np.zeros((pool, 4), np.int64),
        flag_head=np.zeros(4, np.int64),
        flag_tail=np.zeros(4, np.int64),
        flag_count=np.zeros(4, np.int64),
        mxu=np.zeros((UNITS, 2)),
        ring=np.zeros((UNITS, RING), np.int64),
        ring_ends=np.zeros((UNITS, 2), np.int64),
        buffers=np.full((UNITS, BUFFERS), -1, np.int64),
        scalars=np.zeros(6, np.int64),
    )


def test_both_kinds_of_machines_are_here() -> None:
    assert {rates_of(load_machine(chip)).queues[1] for chip in CHIPS} == {0, 1}


@pytest.mark.parametrize("chip", CHIPS)
@SETTINGS
@given(
    copies=st.lists(
        st.tuples(st.sampled_from(Direction), st.booleans(), st.integers(0, 900),
                  st.integers(1, 1 << 20)),
        max_size=20,
    )
)  # fmt: skip
def test_copies_are_served_as_the_engines_serve_them(chip, copies) -> None:
    rates = rates_of(load_machine(chip))
    clock, engines = clockwork(rates), copy_engines(rates)
    engine, now = np.zeros((3, 3)), 0
    for direction, is_strided, later, num_bytes in copies:
        now += later
        right = engines[direction].start(now, num_bytes, is_strided=is_strided)
        kind = int(direction) + 3 * is_strided
        found = timed.serve.py_func(
            clock.copies, clock.queues, clock.slowdown, engine, kind, now, num_bytes
        )
        assert found == right
    for one in engines:
        assert engine[one.direction, 1] == one.busy_cycles
        assert engine[one.direction, 2] == one.fixed_busy_cycles


@SETTINGS
@given(arrivals=st.lists(st.tuples(st.integers(0, 5), st.integers(1, 9)), max_size=7))
def test_a_flag_counts_arrivals_in_time_and_equal_times_in_order(arrivals) -> None:
    state, flag = make_state(), SyncFlag()
    for order, (at, granules) in enumerate(arrivals):
        assert timed.expect.py_func(state, 2, at, granules, order)
        flag.expect(Arrival(at=at, order=order, granules=granules, direction=Direction.READ))
    for number, right in enumerate(flag.arrivals, 1):
        slot = timed.take.py_func(state, 2)
        # The arrival's own number stands in the direction's place.
        assert state.pool[slot, :3].tolist() == [right.at, right.granules, right.order]
        assert state.flag_count[2] == sum(a.granules for a in flag.arrivals[:number])
    assert state.flag_head.tolist() == [0] * 4


def test_a_pool_has_so_many_slots_and_gives_them_again() -> None:
    state = make_state(pool=4)
    for _ in range(3):
        for number in range(3):
            assert timed.expect.py_func(state, 1, number, 1, 0)
        assert not timed.expect.py_func(state, 1, 9, 1, 0)
        for _ in range(3):
            timed.take.py_func(state, 1)
    assert state.flag_count[1] == 9


def test_flags_are_numbered_by_allocation_and_offset() -> None:
    number = timed.flag_number.py_func
    assert FLAGS_PER_ALLOCATION == 64
    assert number((3 << ALLOCATION_BITS) + 5) == 3 * 64 + 5
    assert number((3 << ALLOCATION_BITS) + 63) == 3 * 64 + 63
    assert number((3 << ALLOCATION_BITS) + 64) == -1


@pytest.mark.parametrize("chip", CHIPS)
@SETTINGS
@given(
    events=st.lists(
        st.tuples(st.booleans(), st.integers(0, 60), st.sampled_from([8, 16, 128]),
                  st.sampled_from([-1, -1, 0, 5])),
        max_size=25,
    )
)  # fmt: skip
def test_matmuls_and_pops_are_those_of_the_matrix_unit(chip, events) -> None:
    rates = rates_of(load_machine(chip))
    inputs, state, unit, now = clockwork(rates), make_state(), MatrixUnit(rates), 0
    num_unmatched = 0
    for is_pop, later, rows, buffer in events:
        now += later
        if is_pop:
            right = unit.pop(now, buffer)
            num_unmatched += right is None
            found = timed.pop.py_func(state, now, 3, buffer)
            assert found == (now if right is None else right)
        else:
            right = unit.matmul(now, rows, buffer)
            assert timed.matmul.py_func(inputs, state, now, 3, rows, buffer) == right
    assert state.scalars[1] == num_unmatched
    assert state.mxu[3, 1] == unit.busy_cycles


def test_more_results_than_a_unit_holds_are_refused() -> None:
    inputs, state = clockwork(rates_of(load_machine("v6e"))), make_state()
    results = 128 // 8 * int(inputs.numbers[4])
    for _ in range(RING // results):
        assert timed.matmul.py_func(inputs, state, 0, 0, 128, -1) >= 0
    assert timed.matmul.py_func(inputs, state, 0, 0, 128, -1) == -1
