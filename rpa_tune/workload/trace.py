"""Request traces: CSV or JSON Lines files of lengths and times, plain or gzipped, to requests.

A trace is recognised by its column names, so any file with the usual ones is read. Lengths are
checked here, once: what the engine gets is sane. `trace_formats.py` knows the column names.
"""

import csv
import gzip
import io
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

from rpa_tune.errors import TraceError
from rpa_tune.workload.request import Request
from rpa_tune.workload.trace_formats import BadFieldError, Row, TraceFormat, find_format

TRACES = {
    "azure-conv": "azure_conv_2023.csv.gz",
    "azure-code": "azure_code_2023.csv.gz",
    "mooncake": "mooncake_conversation.csv.gz",
}


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
    """

    name: str
    requests: tuple[Request, ...]
    dropped: Mapping[str, int]


def load_trace(name_or_path: str | Path, rules: TraceRules) -> Trace:
    """Reads a shipped trace by name, or a file.

    Raises:
      TraceError: No such file, an unknown format, or a bad row while `rules.drop_bad` is off;
        with the line and the column.
    """
    name = str(name_or_path)
    source: Path | Traversable = Path(name_or_path)
    if name in TRACES:
        source = resources.files("rpa_tune.workload") / "traces" / TRACES[name]
    return _read(name, _text_of(name, source), rules)


def _text_of(name: str, source: Path | Traversable) -> str:
    try:
        data = source.read_bytes()
        if data[:2] == b"\x1f\x8b":
            data = gzip.decompress(data)
        return data.decode("utf-8-sig")
    except (OSError, EOFError, gzip.zlib.error, UnicodeDecodeError) as error:  # type: ignore[attr-defined]
        raise TraceError(
            f"trace is not readable: {error}",
            where=name,
            hint=f"give a CSV or JSON Lines file, or one of {', '.join(TRACES)}",
        ) from error


def _read(name: str, text: str, rules: TraceRules) -> Trace:
    requests: list[Request] = []
    dropped: Counter[str] = Counter()
    layout: TraceFormat | None = None
    last_s = first_s = None
    for line, row in _rows(name, text):
        layout = layout or _format_of(name, line, row)
        try:
            request = layout.request(row, max_model_len=rules.max_model_len)
            if last_s is not None and request.arrival_s < last_s:
                raise BadFieldError(
                    layout.time_column or "",
                    "unsorted time",
                    f"{request.arrival_s:.3f} s is before the row above ({last_s:.3f} s)",
                )
        except BadFieldError as error:
            if not rules.drop_bad:
                raise TraceError(
                    f"{error.reason}: {error.detail}",
                    where=f"{name}:{line}, column {error.column!r}",
                    hint="mend the row, or leave bad rows out with --drop-bad",
                ) from error
            dropped[error.reason] += 1
            continue
        last_s = request.arrival_s
        first_s = last_s if first_s is None else first_s
        requests.append(_shifted(request, first_s))
        if rules.limit is not None and len(requests) >= rules.limit:
            break
    if not requests:
        lost = ", ".join(f"{count} {reason}" for reason, count in dropped.items())
        raise TraceError(
            f"trace has no usable request{f' ({lost})' if lost else ': it is empty'}", where=name
        )
    return Trace(name=name, requests=tuple(requests), dropped=dict(dropped))


def _shifted(request: Request, first_s: float) -> Request:
    return Request(
        arrival_s=request.arrival_s - first_s,
        prompt_tokens=request.prompt_tokens,
        output_tokens=request.output_tokens,
        cached_prefix_tokens=request.cached_prefix_tokens,
        prefix=request.prefix,
    )


def _format_of(name: str, line: int, row: Row) -> TraceFormat:
    try:
        return find_format(row)
    except BadFieldError as error:
        raise TraceError(error.detail, where=f"{name}:{line}", hint=error.reason) from error


def _rows(name: str, text: str) -> Iterator[tuple[int, Row]]:
    """(line number, column -> value) of every row, JSON Lines or CSV by the first character."""
    start = text.lstrip()[:1]
    if start == "[":
        yield from enumerate(_parse_json(name, 1, text), start=1)
    elif start == "{":
        for line, content in enumerate(text.splitlines(), start=1):
            if content.strip():
                yield line, _parse_json(name, line, content)
    else:
        reader = csv.DictReader(io.StringIO(text, newline=""), restkey="", restval=None)
        for row in reader:
            yield reader.line_num, row


def _parse_json(name: str, line: int, text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise TraceError(
            f"not JSON: {error.msg}", where=f"{name}:{line + error.lineno - 1}:{error.colno}"
        ) from error
