"""What of a trace depends on the machine, and what costs the same under every one."""

import numpy as np

from rpa_tune.llo.events import BEFORE, CYCLE, GRANULES, NUMBER, ROW, SLOT, find_events
from rpa_tune.llo.opcodes import Op

COPY, WAIT, ADD, DELAY = map(int, (Op.COPY, Op.WAIT, Op.SYNC_ADD, Op.DELAY))
BRANCH, MATMUL, POP = map(int, (Op.BRANCH, Op.MATMUL, Op.POP))


def events(rows, blocks, trace):
    """Rows are (operation, cycle, first constant)."""
    table = [[op, cycle, first, 0, 0, 0] for op, cycle, first in rows]
    return find_events(*(np.array(a, np.int32) for a in (table, blocks, trace)), 4)


def test_what_was_forbidden_moves_nothing_or_only_takes_cycles_is_no_event():
    rows = [(COPY, 1, 0), (COPY, 2, 0), (DELAY, 3, 0), (BRANCH, 4, 5), (COPY, 6, 0)]
    trace = [0, -1, 2, 0, 30, 2, 8, 0, -1, -1, -1, 3, 9]  # the block twice
    found = events(rows, [[0, 5, 10]], trace)
    # The first time 30 cycles of delay; each time 10 bundles, and 5 cycles left out of the dump.
    assert found.table[:, [ROW, CYCLE, NUMBER, GRANULES]].tolist() == [[4, 41, 2, 8], [4, 56, 3, 9]]
    assert (found.cycles, found.bundles) == (60, 20)


def test_matmuls_and_pops_that_follow_each_other_are_one_event():
    rows = [(MATMUL, 0, 0), (POP, 1, 0), (POP, 2, 0), (ADD, 3, 0), (POP, 4, 0)]
    found = events(rows, [[0, 5, 6]], [0, 1, -16])
    assert found.table[:, [ROW, NUMBER]].tolist() == [[0, 3], [3, 1], [4, 5]]


def test_a_wait_names_the_last_copy_that_it_counts_and_a_copy_the_one_before():
    rows = [(COPY, 0, 0), (COPY, 1, 0), (WAIT, 2, 0), (ADD, 3, 0), (WAIT, 4, 0), (COPY, 5, 0)]
    found = events(rows, [[0, 6, 7]], [0, *(1, 8), *(1, 8), *(1, 8), *(1, -8), *(1, 9), *(1, 8)])
    first, second, wait, _, other, third = found.table[:, [SLOT, BEFORE]].tolist()
    assert (first, second, third) == ([1, 0], [2, 1], [2, 0]), "a slot is taken again"
    # Eight granules are the first copy's; nine were never promised, so the second is the last.
    assert (wait[0], other[0], found.num_slots) == (1, 2, 3)
