"""Measured rows as lines of JSON, and recordings that are found by what was called."""

import json
import zipfile

import pytest
from click.testing import CliRunner
from golden import make

from rpa_tune.cli.calibrate import calibrate
from rpa_tune.errors import UsageError
from rpa_tune.interop.measured_rows import (
    MANIFEST,
    Recordings,
    call_digest,
    is_lines,
    keep_recordings,
    load_lines,
)
from rpa_tune.llo.machine import load_machine
from rpa_tune.llo.recording import pack
from rpa_tune.llo.simulate import record, replay_us

LINE = {"chip": "v6e", "kernel": "made up", "measured_us": 100.0, "workload": {"num_seqs": 3}}


def write(path, *lines):
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.fixture
def launch():
    return record(
        make.program("0.0.42.1/v6e_decode.txt.gz"), load_machine("v6e"), make.operands("decode")
    )


@pytest.fixture
def archive(tmp_path, launch):
    path = tmp_path / "recordings.zip"
    keep_recordings(path, {"a": pack([launch])}, {"a": "jax 1"}, {"a": call_digest(LINE)})
    return path


def invoke(*args):
    return CliRunner().invoke(calibrate, [str(arg) for arg in args], standalone_mode=False)


def test_who_measured_it_and_what_came_out_are_not_the_call():
    other = LINE | {"measured_us": 7.0, "source": "somebody else", "software": "jax 2"}
    assert call_digest(other) == call_digest(LINE)
    for change in ({"chip": "v7x"}, {"workload": {"num_seqs": 4}}, {"page_size": 16}):
        assert call_digest(LINE | change) != call_digest(LINE)


def test_a_recording_is_found_by_its_call(archive, launch):
    found = Recordings(archive)
    (machine,) = machines = [load_machine("v6e")]
    assert replay_us(found.of_call(call_digest(LINE)), machines) == replay_us([launch], machines)
    assert found.of_call("0" * 16) is None
    assert found.launches("b") is None
    assert machine.chip == "v6e"


@pytest.mark.parametrize("change", ["manifest", "content", "no archive"])
def test_a_damaged_archive_is_refused(tmp_path, archive, change):
    with zipfile.ZipFile(archive) as old:
        contents = {name: old.read(name) for name in old.namelist()}
    if change == "manifest":
        contents[MANIFEST] = b"[]"
    elif change == "content":
        contents["a"] += b"x"
    with zipfile.ZipFile(archive, "w") as new:
        for name, content in contents.items():
            new.writestr(name, content)
    if change == "no archive":
        archive.write_bytes(b"PK")
    with pytest.raises(UsageError, match="cannot read recordings"):
        Recordings(archive).launches("a")


@pytest.mark.parametrize(
    ("change", "says"),
    [({"chip": "v9"}, "chip='v9' is not one of"), ({"measured_us": 0}, "number above zero"),
     ({"measured_us": True}, "number above zero"), ({"measured_us": float("nan")}, "above zero"),
     ({"kernel": None}, "kernel is missing")],
)  # fmt: skip
def test_a_bad_line_is_named(tmp_path, change, says):
    bad = {name: value for name, value in (LINE | change).items() if value is not None}
    path = write(tmp_path / "rows.jsonl", LINE, bad)
    with pytest.raises(UsageError, match=says) as caught:
        load_lines(path)
    assert caught.value.where == f"{path}:2"


def test_other_files_are_no_lines(tmp_path):
    (tmp_path / "records.json").write_text('{"records": []}')
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    assert not any(is_lines(tmp_path / n) for n in ("records.json", "binary", "none"))
    assert is_lines(write(tmp_path / "rows.jsonl", LINE))
    path = tmp_path / "torn.jsonl"
    path.write_text(json.dumps(LINE) + "\n\n" + json.dumps(LINE)[:-1])
    with pytest.raises(UsageError) as caught:
        load_lines(path)
    assert caught.value.where == f"{path}:3"


def test_calibrate_fits_to_lines_whose_calls_were_recorded(tmp_path, archive, launch):
    slow = load_machine("v6e").with_values({"launch_us": 3.0}, source="test", confidence="guess")
    (us,) = replay_us([launch], [slow])
    path = write(
        tmp_path / "rows.jsonl", LINE | {"measured_us": us}, LINE | {"page_size": 7},
        LINE | {"measured_us": 0.001}, LINE | {"chip": "v7x"},
    )  # fmt: skip
    args = (path, "--recordings", archive, "--chip", "v6e", "--parameter", "launch_us", "--json")
    result = invoke(*args)
    assert result.exception is None, result.exception
    found = json.loads(result.stdout)
    assert [row["label"] for row in found["fit"]] == ["line 1"]
    before = load_machine("v6e").value("launch_us")
    assert before < found["rows"]["v6e"]["launch_us"]["value"] < 3.0
    not_recorded, impossible = found["skipped"]
    assert not_recorded.startswith("line 2: its call is not in")
    assert impossible.startswith("line 3: its bundles alone")


def test_calibrate_says_what_lines_lack(tmp_path, archive):
    path = write(tmp_path / "rows.jsonl", LINE)
    assert "add --recordings" in invoke(path, "--chip", "v6e").exception.hint
    result = invoke(path, "--chip", "v7x", "--recordings", archive)
    assert "no measured rows of v7x" in str(result.exception)
