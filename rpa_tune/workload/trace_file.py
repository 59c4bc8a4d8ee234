"""A trace's file as rows with their places: CSV, JSON Lines or a JSON list, plain or gzipped."""

import csv
import gzip
import io
import json
import zlib
from collections.abc import Iterator, Mapping
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

from rpa_tune.errors import TraceError

Row = Mapping[str, Any]


def read_text(name: str, source: Path | Traversable, known: str) -> str:
    """The text of a file, unpacked if it is gzipped.

    Raises:
      TraceError: It cannot be read, or is no text; the hint ends with what is `known`.
    """
    try:
        data = source.read_bytes()
        if data[:2] == b"\x1f\x8b":
            data = gzip.decompress(data)
        return data.decode("utf-8-sig")
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise TraceError(
            f"trace is not readable: {error}",
            where=name,
            hint=f"give a CSV or JSON Lines file, or a trace; {known}",
        ) from error


def iterate_rows(name: str, text: str) -> Iterator[tuple[str, Row]]:
    """(place, column -> value) of every row: JSON, JSON Lines or CSV by the first character.

    Raises:
      TraceError: Not what the first character promises; with line and column.
    """
    start = text.lstrip()[:1]
    if start == "[":
        for number, entry in enumerate(parse_json(text, f"{name}:"), start=1):
            place = f"{name}, entry {number}"
            yield place, _object(place, entry)
    elif start == "{":
        for number, line in enumerate(text.split("\n"), start=1):
            if line.strip():
                place = f"{name}:{number}"
                yield place, _object(place, parse_json(line, place))
    else:
        rows = csv.DictReader(io.StringIO(text, newline=""))
        try:
            for csv_row in rows:
                yield f"{name}:{rows.line_num}", csv_row
        except csv.Error as error:
            # That of the reader below: a DictReader's own number is still that of the row before.
            where = f"{name}:{rows.reader.line_num}"
            raise TraceError(f"not CSV: {error}", where=where) from error


def parse_json(text: str, place: str) -> Any:
    """Reads one JSON value.

    Args:
      text: The value.
      place: File and line; one that ends with a colon gets the line added.

    Raises:
      TraceError: Not JSON, or more than any reader of JSON takes; with line and column.
    """
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        line = f"{error.lineno}" if place.endswith(":") else ""
        raise TraceError(
            f"not JSON: {error.msg}", where=f"{place}{line}, column {error.colno}"
        ) from error
    except (ValueError, RecursionError) as error:  # a number of 5,000 digits, or brackets as deep
        raise TraceError(f"not JSON: {error}", where=place.removesuffix(":")) from error


def _object(place: str, entry: object) -> Row:
    if not isinstance(entry, dict):
        raise TraceError(f"an object is needed, got {type(entry).__name__}", where=place)
    return entry
