"""Sets of parameters: what they say of a time, and of two."""

import pytest
from golden import make

from rpa_tune.hw.chip import load_chips
from rpa_tune.llo.ensemble import interval, load_sets, share_of_wins
from rpa_tune.llo.machine import load_machine
from rpa_tune.llo.simulate import simulate
from rpa_tune.llo.timeline import one_after_the_other


def spread(chip):
    """Half the width of the interval of a golden decode, over its time."""
    name = f"0.0.42.1/{chip}_decode.txt.gz"
    timeline = simulate(
        make.program(name), load_machine(chip), make.operands_of(name), sets=load_sets(chip)
    )
    low, high = interval(timeline.set_us)
    assert low < timeline.time_us < high
    return (high - low) / 2 / timeline.time_us


@pytest.mark.parametrize("chip", load_chips())
def test_every_chip_has_a_dozen_or_two_that_surround_its_machine(chip):
    sets, machine = load_sets(chip), load_machine(chip)
    assert 12 <= len(sets) <= 24
    for name in ("read_latency_cycles", "matmul_latency_bf16_cycles", "launch_us"):
        values = [one.machine.value(name) for one in sets]
        assert min(values) < machine.value(name) < max(values), name
    assert min(one.scale for one in sets) < 1 < max(one.scale for one in sets)
    kept = {"granule_bytes", "branch_delay_cycles", "mxu_size", "copy_queues"}
    for name in kept:
        assert {one.machine.value(name) for one in sets} == {machine.value(name)}


def test_a_chip_that_nobody_measured_is_less_sure_than_one_that_was():
    assert spread("v4") > 2 * spread("v6e")
    assert spread("v5p") > 2 * spread("v7x")


def test_an_interval_leaves_a_tenth_outside():
    assert interval([5.0]) == (5.0, 5.0)
    assert interval(list(map(float, range(101)))) == pytest.approx((5.0, 95.0))


def test_wins_are_counted_set_by_set():
    assert share_of_wins([1, 2, 3, 4], [2, 3, 4, 1]) == 0.75
    assert share_of_wins([1, 1], [1, 2]) == 0.75, "a tie is half a win"
    with pytest.raises(ValueError, match="zip"):
        share_of_wins([1], [1, 2])


def test_launches_one_after_the_other_are_one_that_takes_as_long_as_all():
    name = "0.0.42.1/v6e_decode.txt.gz"
    sets = load_sets("v6e")
    one = simulate(make.program(name), load_machine("v6e"), make.operands_of(name), sets=sets)
    assert one_after_the_other([one]) is one
    both = one_after_the_other([one, one])
    assert both.total_cycles == 2 * one.total_cycles == sum(both.cycles_by_owner.values())
    assert both.time_us == pytest.approx(2 * one.time_us)
    assert both.set_us == tuple(2 * us for us in one.set_us)
    assert both.core_cycles == (both.total_cycles,)
    assert (both.read_bytes, both.num_copies) == (2 * one.read_bytes, 2 * one.num_copies)
    for slot, use in one.slots.items():
        assert both.slots[slot].instructions == 2 * use.instructions
        assert both.slots[slot].share == pytest.approx(use.share)
    assert (both.loops, both.bound_by, both.guesses) == (one.loops, one.bound_by, one.guesses)
