"""Request traces: CSV or JSON Lines files of lengths and times, plain or gzipped, to requests.

A trace is recognised by its column names, so any file with the usual ones is read. Lengths are
checked here, once: what the engine gets is sane. `trace_formats.py` knows the column names.
"""

import csv
import dataclasses
import gzip
import io
import json
import math
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

from rpa_kernels.names import did_you_mean, find_name
from rpa_tune.errors import TraceError
from rpa_tune.workload.request import Request
from rpa_tune.workload.trace_formats import (
    BadFieldError,
    Row,
    TraceFormat,
    expand_conversation,
    find_format,
)

TRACES = {
    "azure-conv": "azure_conv_2023.csv.gz",
    "azure-code": "azure_code_2023.csv.gz",
    "mooncake": "mooncake_conversation.csv.gz",
}
# The files' own names.
OTHER_NAMES = {file.removesuffix(".csv.gz"): name for name, file in TRACES.items()}


@dataclass(frozen=True, kw_only=True, slots=True)
class TraceRules:
    """What a request must be, and what happens to one that is not.

    Attributes:
      max_model_len: Prompts must be shorter, so that one output token fits.
      drop_bad: Leave bad rows out and count them, instead of refusing the file.
      limit: Requests to read, counted from the start; None for all.
    """

    max_model_len: int
    drop_bad: bool = False
    limit: int | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Trace:
    """Requests of one file.

    Attributes:
      name: The shipped trace's name, or the file's path.
      requests: In order of arrival, the first at 0 s.
      dropped: Reason -> rows left out for it.
      is_estimated: Whether token counts were guessed from the length of texts.
    """

    name: str
    requests: tuple[Request, ...]
    dropped: Mapping[str, int]
    is_estimated: bool = False


def load_trace(name_or_path: str | Path, rules: TraceRules) -> Trace:
    """Reads a shipped trace by name, or a file.

    Raises:
      TraceError: No such file, an unknown format, or a bad row while `rules.drop_bad` is off;
        with the line and the column.
    """
    name = str(name_or_path)
    source: Path | Traversable = Path(name_or_path)
    # A file of that name comes first, unless the name is the trace's very own.
    shipped = (
        name if name in TRACES or Path(name).exists() else find_name(name, TRACES, OTHER_NAMES)
    )
    if shipped is not None and shipped in TRACES:
        name, source = shipped, resources.files("rpa_tune.workload") / "traces" / TRACES[shipped]
    return _read(name, _text_of(name, source), rules)


def _text_of(name: str, source: Path | Traversable) -> str:
    try:
        data = source.read_bytes()
        if data[:2] == b"\x1f\x8b":
            data = gzip.decompress(data)
        return data.decode("utf-8-sig")
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise TraceError(
            f"trace is not readable: {error}",
            where=name,
            hint="give a CSV or JSON Lines file, or a trace; "
            + did_you_mean(name, TRACES, OTHER_NAMES, what="traces"),
        ) from error


def _read(name: str, text: str, rules: TraceRules) -> Trace:
    requests: list[Request] = []
    dropped: Counter[str] = Counter()
    layout: TraceFormat | None = None
    start_s = last_s = -math.inf
    for place, row in _rows(name, text):
        layout = layout or _format_of(place, row)
        try:
            request = layout.request(row, max_model_len=rules.max_model_len)
            if request.arrival_s < last_s:
                detail = f"{request.arrival_s:.3f} s comes after {last_s:.3f} s"
                raise BadFieldError(layout.time_column or "", "unsorted time", detail)
        except BadFieldError as error:
            if not rules.drop_bad:
                raise TraceError(
                    f"{error.reason}: {error.detail}",
                    where=f"{place}, column {error.column!r}",
                    hint="mend the row, or leave bad rows out with --drop-bad (drop_bad: true)",
                ) from error
            dropped[error.reason] += 1
            continue
        last_s = request.arrival_s
        start_s = last_s if not requests else start_s
        requests.append(dataclasses.replace(request, arrival_s=last_s - start_s))
        if rules.limit is not None and len(requests) >= rules.limit:
            break
    if not requests:
        lost = ", ".join(f"{count} x {reason}" for reason, count in dropped.items())
        raise TraceError(f"trace has no usable request: {lost or 'it is empty'}", where=name)
    return Trace(
        name=name,
        requests=tuple(requests),
        dropped=dict(dropped),
        is_estimated=layout is not None and layout.is_estimated,
    )


def _format_of(place: str, row: Row) -> TraceFormat:
    try:
        return find_format(row)
    except BadFieldError as error:
        raise TraceError(error.detail, where=place, hint=error.reason) from error


def _rows(name: str, text: str) -> Iterator[tuple[str, Row]]:
    """(place, column -> value) of every request: JSON, JSON Lines or CSV by the first character."""
    start = text.lstrip()[:1]
    if start == "[":
        entries = _parse_json(f"{name}:", text)
        for number, entry in enumerate(entries, start=1):
            place = f"{name}, entry {number}"
            for row in expand_conversation(_object(place, entry), key=f"conversation{number}"):
                yield place, row
    elif start == "{":
        for number, line in enumerate(text.split("\n"), start=1):
            if line.strip():
                place = f"{name}:{number}"
                entry = _object(place, _parse_json(place, line))
                for row in expand_conversation(entry, key=f"conversation{number}"):
                    yield place, row
    else:
        reader = csv.DictReader(io.StringIO(text, newline=""))
        try:
            for csv_row in reader:
                yield f"{name}:{reader.line_num}", csv_row
        except csv.Error as error:
            raise TraceError(f"not CSV: {error}", where=f"{name}:{reader.line_num}") from error


def _object(place: str, entry: object) -> Row:
    if not isinstance(entry, dict):
        raise TraceError(f"an object is needed, got {type(entry).__name__}", where=place)
    return entry


def _parse_json(place: str, text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        line = f"{error.lineno}" if place.endswith(":") else ""
        raise TraceError(
            f"not JSON: {error.msg}", where=f"{place}{line}, column {error.colno}"
        ) from error
