"""The machine table is complete, and says what it rests on."""

import pytest

from rpa_tune.errors import UsageError
from rpa_tune.hw.chip import CONFIDENCES, load_chips
from rpa_tune.llo.engines import rates_of
from rpa_tune.llo.machine import load_machine


@pytest.mark.parametrize("chip", load_chips())
def test_every_number_has_a_source_and_a_confidence(chip):
    machine = load_machine(chip)
    for name, number in machine.numbers.items():
        assert number.source, name
        assert number.confidence in CONFIDENCES, name
        assert number.value is not None, name
        assert number.value > 0, name
    rates_of(machine)


def test_chips_differ_in_parameters_by_the_barrier_between_two_cores_alone():
    names = {chip: set(load_machine(chip).numbers) for chip in load_chips()}
    everywhere = set.intersection(*names.values())
    for name, chip in load_chips().items():
        barrier = {"barrier_cycles"} if chip.num_cores_per_device > 1 else set()
        assert names[name] == everywhere | barrier, name


@pytest.mark.parametrize("chip", load_chips())
def test_rates_stay_below_what_the_vendor_says(chip):
    machine, record = load_machine(chip), load_chips()[chip]
    # The chip table has a core's share; one core alone may have the other's too.
    nominal = record.hbm_bytes_per_s * record.num_cores_per_device
    for name in ("read", "write"):
        for kind in ("linear", "strided"):
            assert 0.4 * nominal < machine.value(f"{name}_{kind}_bytes_per_s") <= nominal
    assert machine.value("clock_hz") <= record.clock_hz


def test_guesses_are_named():
    machine = load_machine("v4")
    assert "matmul_latency_bf16_cycles" in machine.guesses
    known = machine.with_values(
        {"matmul_latency_bf16_cycles": 120.0}, source="test", confidence="fitted"
    )
    assert "matmul_latency_bf16_cycles" not in known.guesses
    assert machine.value("matmul_latency_bf16_cycles") != 120.0, "the table is not changed"


def test_unknown_names_are_refused():
    with pytest.raises(UsageError, match="v9"):
        load_machine("v9")
    with pytest.raises(KeyError, match="warp"):
        load_machine("v6e").with_values({"warp": 1.0}, source="", confidence="guess")
