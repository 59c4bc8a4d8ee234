"""Measured records: read completely, wrong ones refused."""

import json
from pathlib import Path

import pytest

from rpa_tune.errors import UsageError
from rpa_tune.interop.records import load_records

DATA = Path(__file__).parents[3] / "benchmarks" / "data" / "measured_rpa.json"


def test_the_public_records_read_completely():
    rows = json.loads(DATA.read_text())["records"]
    records = load_records(DATA)
    assert [r.measured_us for r in records] == [row["measured_us"] for row in rows]
    assert all(r.batch.misfit(r.problem) is None for r in records)
    assert {r.case for r in records} == {"decode", "prefill", "mixed"}
    # The sliding window is in the note only.
    assert records[5].problem.sliding_window == 128
    assert records[7].assumed, "lengths that are given in words are marked"
    assert records[0].is_device_time
    assert not records[20].is_device_time


def test_operands_are_those_of_the_v3_call():
    record = load_records(DATA)[0]
    operands = record.operands()
    assert sorted(operands) == list(range(7))
    assert operands[0].tolist() == [2048]
    assert operands[3].tolist() == [0, 0, 1], "one sequence, mixed"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"case": "verify"}, "'verify' is not one of"),
        ({"kv_len": "a few"}, "a few"),
        ({"kv_len": 1, "q_len": 2}, "q_len"),
        ({"measured_us": "soon"}, "must be a number above zero"),
    ],
)
def test_wrong_records_are_refused_by_position(tmp_path, change, says):
    rows = json.loads(DATA.read_text())["records"][:2]
    rows[1] |= change
    path = tmp_path / "records.json"
    path.write_text(json.dumps({"records": rows}))
    with pytest.raises(UsageError, match=f"record 1 is not understood: .*{says}"):
        load_records(path)


def test_missing_files_are_errors(tmp_path):
    with pytest.raises(UsageError, match="cannot read records"):
        load_records(tmp_path / "none.json")
