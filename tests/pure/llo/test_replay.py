"""Machines walked through a recording side by side; `test_recording.py` has whole launches."""

import numpy as np
import pytest

from rpa_tune.llo.engines import rates_of
from rpa_tune.llo.machine import load_machine
from rpa_tune.llo.opcodes import Op
from rpa_tune.llo.recording import Recording
from rpa_tune.llo.replay import replay

FLAG = 7
READ, WRITE, LOCAL = range(3)


def rates(**values):
    machine = load_machine("v6e").with_values(values, source="test", confidence="guess")
    return rates_of(machine)


def recorded(rows, trace):
    """One block of 9 bundles; rows are (operation, first constant), a cycle apart."""
    table = [[int(op), cycle, first, 0, 0, 0] for cycle, (op, first) in enumerate(rows)]
    arrays = (np.array(a, np.int32) for a in (table, [[0, len(rows), 9]], [0, *trace]))
    return Recording(*arrays, num_flags=FLAG + 1)


def test_a_flag_that_counts_a_later_copy_first_does_so_in_a_replay():
    """A read and a write on one flag: which ends the wait for one granule, the latencies say."""
    read, write, wait = (Op.COPY, READ), (Op.COPY, WRITE), (Op.WAIT, 0)
    recording = recorded((read, write, wait), (FLAG, 1) * 3)
    late = rates(read_latency_cycles=9000, write_latency_cycles=500)
    usual = rates(read_latency_cycles=500, write_latency_cycles=9000)
    alone = [replay(recording, [one])[0] for one in (late, usual)]
    assert all(500 < end < 1500 for end in alone), "the copy that comes first ends the wait"
    assert replay(recording, [late, usual]) == replay(recording, [late, usual, usual])[:2] == alone


@pytest.mark.parametrize(("queues", "different_ends"), [(1.0, 3), (2.0, 5)])
def test_machines_side_by_side_end_as_each_does_alone(queues, different_ends, monkeypatch):
    """Also where a read waits for a write in its queue, or slows down beside one."""
    copies = [(Op.COPY, kind) for kind in (READ, WRITE, READ, LOCAL, WRITE)]
    recording = recorded((*copies, (Op.WAIT, 0)), [*(FLAG, 4000) * 5, FLAG, 20000])
    machines = [
        rates(copy_queues=queues, read_fixed_cycles=fixed, shared_bytes_per_s=shared)
        for fixed in (1, 100, 3000)
        for shared in (5e11, 5e12)
    ]
    together = replay(recording, machines)
    assert len(set(together)) == different_ends
    assert replay(recording, []) == []
    monkeypatch.setattr("rpa_tune.llo.replay.replay_abreast", lambda *_: False)
    assert replay(recording, machines) == together
