"""`rpa-tune calibrate`: its errors; the fit itself is tested with the simulator."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from golden import make

from rpa_tune.cli.calibrate import calibrate
from rpa_tune.errors import UsageError
from rpa_tune.interop import records
from rpa_tune.llo.machine import load_machine
from rpa_tune.llo.simulate import simulate

DATA = Path(__file__).parents[2] / "benchmarks" / "data" / "measured_rpa.json"


def invoke(*args):
    return CliRunner().invoke(calibrate, [str(arg) for arg in args], standalone_mode=False)


def test_records_of_another_chip_are_refused(tmp_path):
    result = invoke(DATA, "--chip", "v5p", "--cache", tmp_path)
    assert isinstance(result.exception, UsageError)
    assert "no device times of v5p" in str(result.exception)


def test_a_missing_file_is_refused(tmp_path):
    result = invoke(tmp_path / "none.json", "--chip", "v6e")
    assert "cannot read records" in str(result.exception)


@pytest.fixture
def golden_schedules(monkeypatch):
    """Stands in for the compiler: every record gets a golden kernel and its scalars."""
    program = make.program("0.0.42.1/v6e_decode.txt.gz")
    monkeypatch.setattr(records.Record, "operands", lambda self: make.operands("decode"))

    def schedules(chosen, **_):
        for record in chosen:
            yield record, "no schedule" if record.index == 0 else program

    monkeypatch.setattr("rpa_tune.cli.calibrate.schedules", schedules)
    return program


def test_fits_and_writes_rows_for_the_machine_table(golden_schedules, tmp_path):
    slow = load_machine("v6e").with_values(
        {"read_latency_cycles": 2000.0}, source="test", confidence="guess"
    )
    time_us = simulate(golden_schedules, slow, make.operands("decode")).time_us
    data = json.loads(DATA.read_text())
    for row in data["records"]:
        row["measured_us"] = time_us
    path, output = tmp_path / "records.json", tmp_path / "rows.yaml"
    path.write_text(json.dumps(data))
    result = invoke(
        path, "--chip", "v6e", "--parameter", "read_latency_cycles", "--output", output, "--json"
    )
    assert result.exception is None
    answer = json.loads(result.stdout)
    assert answer["skipped"] == ["record 0: no schedule"]
    assert all(abs(row["error"]) < 0.1 for row in answer["fit"])
    row = answer["rows"]["v6e"]["read_latency_cycles"]
    assert row["value"] > 1.2 * load_machine("v6e").value("read_latency_cycles")
    assert row["confidence"] == "fitted"
    assert "read_latency_cycles" in output.read_text()
