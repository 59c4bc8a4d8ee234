"""The engines beside the bundles, one by one."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rpa_tune.llo.engines import (
    Arrival,
    CopyEngine,
    CopyRates,
    Direction,
    MatrixUnit,
    SyncFlag,
    copy_engines,
    direction_of,
    rates_of,
)
from rpa_tune.llo.machine import load_machine

RATES = CopyRates(
    fixed_cycles=10, bytes_per_cycle=100, copy_bytes_per_cycle=50, latency_cycles=1000
)
STRIDED = RATES._replace(bytes_per_cycle=200)


def engines(*, shares_queue: bool = False) -> list[CopyEngine]:
    """Engines of easy numbers."""
    return copy_engines(
        rates_of(load_machine("v6e"))._replace(
            copies=((RATES, STRIDED),) * 3,
            queues=(0, 0, 2) if shares_queue else (0, 1, 2),
            slowdown=0.0,
        )
    )


def read_engine() -> CopyEngine:
    return engines()[Direction.READ]


def test_a_copy_alone_is_limited_by_its_own_rate():
    assert read_engine().start(0, 1000) == 10 + 20 + 1000


def test_strided_copies_have_a_rate_of_their_own():
    engine = read_engine()
    engine.start(0, 1000, is_strided=True)
    assert engine.queue.free_at == 10 + 5
    engine.start(0, 1000)
    assert engine.queue.free_at == 10 + 5 + 10 + 10


def test_reads_and_writes_of_one_queue_are_served_in_order():
    read, write, local = engines(shares_queue=True)
    write.start(0, 1000)
    assert read.start(0, 1000) == 20 + 30 + 1000, "behind the write"
    assert local.start(0, 1000) == 30 + 1000, "scalar operands have a queue of their own"
    apart, opposite, _ = engines()
    opposite.start(0, 1000)
    assert apart.start(0, 1000) == 30 + 1000


def test_queued_copies_share_the_engine():
    engine = read_engine()
    done = [engine.start(0, 1000) for _ in range(4)]
    # One every 20 cycles; each is done when its own 30 are over.
    assert done == [1030, 1050, 1070, 1090]
    assert engine.busy_cycles == 80
    assert engine.fixed_busy_cycles == 40


def test_an_empty_copy_is_free():
    engine = read_engine()
    assert engine.start(7, 0) == 7
    assert engine.num_copies == 0


@given(st.lists(st.tuples(st.integers(0, 100), st.integers(1, 10_000)), min_size=1, max_size=20))
def test_copies_of_one_engine_finish_in_order_and_at_most_at_bandwidth(copies):
    engine = read_engine()
    now, done = 0, []
    for wait, size in copies:
        now += wait
        done.append(engine.start(now, size))
        assert done[-1] >= now + RATES.latency_cycles + size / RATES.copy_bytes_per_cycle
    total = sum(size for _, size in copies)
    assert max(done) - RATES.latency_cycles >= total / RATES.bytes_per_cycle


def test_reads_and_writes_slow_each_other_down():
    rates = rates_of(load_machine("v6e"))
    alone = copy_engines(rates)[Direction.READ].start(0, 1 << 20)
    apart = copy_engines(rates)
    apart[Direction.WRITE].start(0, 1 << 20)
    assert apart[Direction.READ].start(0, 1 << 20) > alone
    both = max(e.queue.free_at for e in apart)
    machine = load_machine("v6e")
    shared = machine.value("shared_bytes_per_s") / machine.value("clock_hz")
    assert both == pytest.approx((2 << 20) / shared + rates.copies[0][0].fixed_cycles, rel=0.01)


def test_directions():
    assert direction_of("hbm_to_vmem") is Direction.READ
    assert direction_of("vmem_to_hbm") is Direction.WRITE
    assert direction_of("cmem_to_vmem") is Direction.READ
    assert direction_of("hbm_to_smem") is Direction.LOCAL
    assert direction_of("vmem_to_vmem") is Direction.LOCAL


def test_a_flag_waits_for_the_copy_that_completes_it():
    flag = SyncFlag()
    flag.expect(Arrival(300, 2, 4, Direction.WRITE))
    flag.expect(Arrival(100, 1, 4, Direction.READ))
    assert flag.wait(50, 4) == (100, Direction.READ)
    assert flag.wait(50, 8) == (300, Direction.WRITE)
    assert flag.wait(400, 8) == (400, None)
    with pytest.raises(ValueError, match="8"):
        flag.wait(400, 9)


def test_matmul_results_come_in_order_after_the_latency():
    rates = rates_of(load_machine("v6e"))
    unit = MatrixUnit(rates)
    assert unit.matmul(100, 16, -1) == 100
    assert [unit.pop(100, -1) for _ in range(4)] == [100 + rates.latency_narrow] * 4
    assert unit.pop(100, -1) is None, "two rows of eight, two halves of 256 columns"


def test_matmul_results_by_address():
    rates = rates_of(load_machine("v7x"))
    unit = MatrixUnit(rates)
    unit.matmul(0, 8, 4)
    assert unit.pop(0, 5) == rates.latency_wide
    assert unit.pop(0, 4) == rates.latency_wide
    assert unit.pop(0, 4) is None


@pytest.mark.parametrize(("chip", "cycles"), [("v5p", 32), ("v6e", 16), ("v7x", 8)])
def test_rows_of_float8_take_what_the_compiler_spaces_them_by(chip, cycles):
    rates = rates_of(load_machine(chip))
    unit = MatrixUnit(rates)
    unit.matmul(0, 32, 0)
    assert unit.busy_cycles == unit.free_at == cycles
    unit.matmul(0, 16, 64)
    assert unit.busy_cycles == cycles + 16 * rates.cycles_per_row


def test_matmuls_queue_and_then_stall_the_issue():
    rates = rates_of(load_machine("v6e"))
    unit = MatrixUnit(rates)
    issued, now = [], 0
    for _ in range(6):
        now = unit.matmul(now, 16, -1)
        issued.append(now)
    # 8 cycles each; two may wait in the queue.
    assert issued == [0, 0, 0, 8, 16, 24]
