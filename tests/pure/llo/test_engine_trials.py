"""`benchmarks/engine_trials.py`: its engine is the simulator's where a form adds nothing."""

import importlib
import sys
from pathlib import Path

import numpy as np
import pytest

from rpa_tune.llo.calibrate import predict
from rpa_tune.llo.machine import load_machine

BENCHMARKS = Path(__file__).parents[3] / "benchmarks"
ROWS = ("stacked-64", "sglang-48", "v3-5")


@pytest.fixture
def trials(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("engine_trials")


@pytest.fixture
def some(trials):
    """Three rows and the shipped machine's values."""
    fitted, _, _ = trials.load()
    machine = load_machine("v7x")
    clock = machine.value("clock_hz")
    values = {
        "fixed": machine.value("read_fixed_cycles"),
        "latency": machine.value("read_latency_cycles"),
        "linear": machine.value("read_linear_bytes_per_s") / clock,
        "strided": machine.value("read_strided_bytes_per_s") / clock,
        "launch_us": machine.value("launch_us"),
        "bf16": machine.value("matmul_latency_bf16_cycles"),
        "f32": machine.value("matmul_latency_f32_cycles"),
    }
    return [o for o in fitted if o.label in ROWS], values


def test_without_what_a_form_adds_it_is_the_engine_of_the_simulator(trials, some):
    rows, values = some
    assert len(rows) == len(ROWS)
    np.testing.assert_allclose(
        trials.times_us(rows, values), predict(load_machine("v7x"), rows), atol=0.02
    )


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("busy_share", 0.5), ("restart", 300.0), ("write_fixed", 2000.0),
        ("write_latency", 9000.0), ("half_bytes", 1e6), ("half_copies", 3.0), ("half_flags", 2.0),
        ("half_copy", 1e5), ("stolen", 1e-3),
    ],
)  # fmt: skip
def test_what_a_form_adds_takes_time(trials, some, name, value):
    rows, values = some
    more = trials.times_us(rows, values | {name: value}) - trials.times_us(rows, values)
    assert more.min() > -1e-9
    assert more.max() > 0.1


def test_copies_are_quicker_while_the_core_waits(trials, some):
    """At half the rate while it works they are as slow as with half the rate, or quicker."""
    rows, values = some
    halved = values | {"linear": values["linear"] / 2, "strided": values["strided"] / 2}
    shared = trials.times_us(rows, values | {"busy_share": 0.5})
    assert (shared <= trials.times_us(rows, halved) + 1e-9).all()


def test_a_fit_finds_the_values_that_made_the_times(trials, some):
    rows, values = some
    made = values | {"linear": 1500.0, "strided": 1500.0}
    times = trials.times_us(rows, made)
    observed = [
        trials.Observation(label=o.label, launches=o.launches, measured_us=us, group=o.group)
        for o, us in zip(rows, times.tolist(), strict=True)
    ]
    found = trials.fit(trials.TRIALS[0], observed)
    np.testing.assert_allclose(trials.times_us(rows, found), times, rtol=0.02)


def test_held_parameters_are_not_fitted(trials, some):
    rows, _ = some
    held = {"linear": 1234.0}
    found = trials.fit(trials.Trial(name="held", held=held), rows)
    assert found["linear"] == 1234.0


def test_its_report_has_every_part(trials, some, monkeypatch, tmp_path, capsys):
    rows, _ = some
    parts = {o.label: o.label.partition("-")[0] for o in rows}
    monkeypatch.setattr(trials, "load", lambda: (rows, rows[:1], parts))
    monkeypatch.setattr(trials, "TRIALS", trials.TRIALS[:2])
    path = tmp_path / "report.json"
    monkeypatch.setattr(
        sys, "argv", ["engine_trials.py", "--form", "one rate", "--json", str(path)]
    )
    trials.main()
    out = capsys.readouterr().out
    assert "| one rate |" in out
    assert "tokamax rpa" in out
    assert "strided" not in out
    assert '"groups"' in path.read_text()


def test_rows_left_out_of_every_fit_are_predicted_by_it(trials, some):
    rows, _ = some
    parts = {o.label: o.label.partition("-")[0] for o in rows}
    found = trials.judge_without(trials.TRIALS[0], rows[:2], rows[2:], parts)
    assert found["joint"].keys() == found["without"].keys() | {"the rows left out"}
    assert found["joint"]["the rows left out"]["n"] == 1
