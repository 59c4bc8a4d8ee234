"""Rows of a trace's file with their places: CSV, JSON Lines, JSON, plain or gzipped."""

import gzip
import json
from pathlib import Path

import pytest

from rpa_tune.errors import TraceError
from rpa_tune.workload.trace_file import iterate_rows, parse_json, read_text

ROWS = [{"a": 1, "b": "x"}, {"a": 2, "b": 'y, "z"'}]


def test_the_same_rows_in_three_formats_and_each_with_its_place() -> None:
    lines = "\n\n".join(map(json.dumps, ROWS))
    assert list(iterate_rows("t", lines)) == [("t:1", ROWS[0]), ("t:3", ROWS[1])]
    assert list(iterate_rows("t", f"\n {json.dumps(ROWS, indent=1)}")) == [
        ("t, entry 1", ROWS[0]),
        ("t, entry 2", ROWS[1]),
    ]
    csv = 'a,b\r\n1,x\r\n2,"y, ""z"""\r\n'
    assert list(iterate_rows("t", csv)) == [
        ("t:2", {"a": "1", "b": "x"}),
        ("t:3", {"a": "2", "b": 'y, "z"'}),
    ]


def test_a_place_in_csv_is_a_line_of_the_file() -> None:
    """A field may hold a line break, and lines may be blank; an editor counts lines, not rows."""
    places = [place for place, _ in iterate_rows("t", 'a,b\n\n1,"x\ny"\n2,z\n\n\n3,w\n')]
    assert places == ["t:4", "t:5", "t:8"]


@pytest.mark.parametrize(
    "text", ["a\u2028b", "a\x85b", "a\r\nb", "\x0b\x1c", "{}", "[", '"', "é😀"]
)
def test_any_text_survives_json_lines(text: str) -> None:
    """Also one with a character that `str.splitlines` takes for the end of a line."""
    rows = [{"a": text}, {text: 1}]
    lines = "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    assert [row for _, row in iterate_rows("t", lines)] == rows


@pytest.mark.parametrize(
    ("text", "message", "where"),
    [
        ('{"a": 1}\n{"a": }', "not JSON: Expecting value", "t:2, column 7"),
        ('[{"a": 1},\n {"a" 2}]', "not JSON: Expecting ':' delimiter", "t:2, column 7"),
        ('{"a": 1}\n5', "an object is needed, got int", "t:2"),
        ("[[1]]", "an object is needed, got list", "t, entry 1"),
        ("[" * 100_000, "not JSON: ", "t"),
        ('{"a": ' + "9" * 5000 + "}", "not JSON: ", "t:1"),
        ('a,b\n1,"' + "x" * 200_000, "not CSV: field larger", "t:2"),
    ],
    ids=["line", "list", "number", "nested", "deep", "long", "field"],
)
def test_what_is_no_row_has_a_place(text: str, message: str, where: str) -> None:
    with pytest.raises(TraceError, match=message) as caught:
        list(iterate_rows("t", text))
    assert caught.value.where == where


def test_json_alone_is_read_as_json() -> None:
    assert parse_json('[1, "x", null]', "t:") == [1, "x", None]


@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["plain", "gzip"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"], ids=["no_mark", "mark"])
def test_packed_or_not_with_a_mark_or_without(tmp_path: Path, pack, mark: bytes) -> None:
    path = tmp_path / "any.name"
    path.write_bytes(pack(mark + "é,b\n".encode()))
    assert read_text("t", path, "known") == "é,b\n"


@pytest.mark.parametrize(
    "data",
    [b"\xff\xfe\x00", gzip.compress(b"a,b\n" * 99)[:-9], b"\x1f\x8b" + b"\0" * 9, None],
    ids=["binary", "cut", "no_gzip", "missing"],
)
def test_unreadable_files_say_what_can_be_given(tmp_path: Path, data: bytes | None) -> None:
    path = tmp_path / "t"
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(TraceError, match="trace is not readable: ") as caught:
        read_text("t.csv", path, "known: a, b")
    assert caught.value.where == "t.csv"
    assert caught.value.hint == "give a CSV or JSON Lines file, or a trace; known: a, b"
