"""Recordings of a live engine (`rpa_tune.capture`) back to steps.

A recording may end in the middle of a line, since servers die; that line is left out. Anything
else that does not parse is an error, or is dropped and counted.
"""

import gzip
import json
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rpa_tune.capture.writer import SCHEMA
from rpa_tune.errors import TraceError
from rpa_tune.workload.step import EngineStep

MAX_FILES = 1000  # rotated files looked for; a recording has `num_files` of them


@dataclass(frozen=True, kw_only=True, slots=True)
class CapturedSteps:
    """What a capture holds.

    Attributes:
      steps: Launches in order; their pages are not known.
      dropped: Reason -> launches left out, by the recorder or by us.
    """

    steps: tuple[EngineStep, ...]
    dropped: Mapping[str, int]


class BadStepError(Exception):
    """A line that is no launch: column and what is wrong with it."""

    def __init__(self, column: str, detail: str) -> None:
        """Keeps the column apart."""
        super().__init__(detail)
        self.column = column


def is_recording(path: Path) -> bool:
    """Whether a file begins as a recording does."""
    try:
        head = json.loads(next(_lines(path), ""))
    except (OSError, ValueError, RecursionError, EOFError, zlib.error):
        return False
    return isinstance(head, dict) and str(head.get("schema")).startswith("rpa-capture/")


def load_recording(path: Path, *, drop_bad: bool = False) -> CapturedSteps:
    """Reads a recording with its rotated files, oldest first.

    Raises:
      TraceError: Not a recording, of another schema, without launches, or with a bad line while
        `drop_bad` is off.
    """
    rotated = [path.with_name(f"{path.name}.{n}") for n in range(MAX_FILES, 0, -1)]
    dropped: Counter[str] = Counter()
    steps: list[EngineStep] = []
    for file in [*(other for other in rotated if other.exists()), path]:
        steps.extend(_read_file(file, dropped, drop_bad=drop_bad))
    if not steps:
        raise TraceError("recording has no launches", where=str(path))
    return CapturedSteps(steps=tuple(steps), dropped=dict(dropped))


def _read_file(path: Path, dropped: Counter[str], *, drop_bad: bool) -> Iterator[EngineStep]:
    try:
        lines = list(_lines(path))
    except (OSError, UnicodeDecodeError, EOFError, zlib.error) as error:
        raise TraceError(f"recording is not readable: {error}", where=str(path)) from error
    _check_header(path, lines[0] if lines else "")
    for number, line in enumerate(lines[1:], start=2):
        try:
            row = _row(line)
            step, num_lost = _step(row), _num_lost(row)
            dropped["recorder was behind"] += num_lost
            yield step
        except BadStepError as error:
            if number == len(lines) and not line.endswith("\n"):
                dropped["torn last line"] += 1
                continue
            if not drop_bad:
                raise TraceError(
                    f"bad launch: {error}",
                    where=f"{path}:{number}" + (f", column {error.column!r}" * bool(error.column)),
                    hint="skip bad lines with {}",
                    settings=("requests: {drop_bad: true}",),
                ) from error
            dropped["bad launch"] += 1
    if not dropped["recorder was behind"]:
        del dropped["recorder was behind"]


def _lines(path: Path) -> Iterator[str]:
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "rt", encoding="utf-8", newline="\n") as file:
        yield from file


def _check_header(path: Path, line: str) -> None:
    try:
        schema = json.loads(line)["schema"]
    except (ValueError, RecursionError, KeyError, TypeError):
        schema = None
    if schema != SCHEMA:
        raise TraceError(
            f"not a recording: schema {schema!r}, need {SCHEMA!r}",
            where=f"{path}:1",
            hint="record with rpa_tune.capture of this version",
        )


def _row(line: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise BadStepError("", f"not JSON: {getattr(error, 'msg', error)}") from error
    if not isinstance(row, dict):
        raise BadStepError("", f"an object is needed, got {row!r:.40}")
    return row


def _step(row: Mapping[str, Any]) -> EngineStep:
    """Checks one launch and puts its decodes first.

    Engines that verify drafts count them as decodes; here a decode has one query token, unless the
    workload says otherwise (`decode_query_size`).
    """
    q_lens, kv_lens = _lengths(row, "q"), _lengths(row, "kv")
    if not len(q_lens) or len(q_lens) != len(kv_lens):
        raise BadStepError("kv", f"{len(q_lens)} query lengths and {len(kv_lens)} context lengths")
    if (q_lens < 1).any() or (kv_lens < q_lens).any():
        at = int(((q_lens < 1) | (kv_lens < q_lens)).argmax())
        raise BadStepError(
            "q", f"sequence {at}: need 1 <= q <= kv, got {q_lens[at]} and {kv_lens[at]}"
        )
    num_decode = row.get("nd")
    if type(num_decode) is not int or not 0 <= num_decode <= len(q_lens):
        raise BadStepError("nd", f"need 0 to {len(q_lens)} decodes, got {num_decode!r}")
    is_decode = (np.arange(len(q_lens)) < num_decode) & (q_lens == 1)
    order = np.argsort(~is_decode, kind="stable")
    return EngineStep(
        start_us=_seconds(row) * 1e6,
        q_lens=q_lens[order],
        kv_lens=kv_lens[order],
        num_decode=int(is_decode.sum()),
    )


def _num_lost(row: Mapping[str, Any]) -> int:
    """Launches before this one that the recorder had to drop."""
    number = row.get("dropped", 0)
    if type(number) is not int or not 0 <= number < 2**63:
        raise BadStepError("dropped", f"a number of launches is needed, got {number!r:.40}")
    return number


def _seconds(row: Mapping[str, Any]) -> float:
    """When the launch started, 0 when that is not there."""
    value = row.get("t", 0)
    if type(value) not in (int, float) or not 0 <= value < 2**63:
        raise BadStepError("t", f"a time in seconds is needed, got {value!r:.40}")
    return float(value)


def _lengths(row: Mapping[str, Any], column: str) -> np.ndarray[Any, np.dtype[np.int32]]:
    values = row.get(column)
    if not isinstance(values, list) or not all(type(v) is int and 0 <= v < 2**31 for v in values):
        raise BadStepError(column, "a list of token counts is needed")
    return np.array(values, np.int32)


def write_steps(
    path: Path, steps: Sequence[EngineStep], *, block_size: int, page_tables: bool = False
) -> None:
    """Writes steps in the form of a recording, so that it can be read back as one.

    Args:
      path: File to write.
      steps: Launches.
      block_size: Tokens in a page.
      page_tables: Add the pages of every sequence (`pages`), which a recording does not have.

    Raises:
      TraceError: The file cannot be written.
    """
    try:
        with path.open("w", encoding="utf-8") as file:
            file.write(json.dumps({"schema": SCHEMA, "page_size": block_size, "every": 1}) + "\n")
            for step in steps:
                row: dict[str, Any] = {
                    "t": round(step.start_us / 1e6, 6),
                    "q": step.q_lens.tolist(),
                    "kv": step.kv_lens.tolist(),
                    "nd": step.num_decode,
                }
                if page_tables:
                    row["pages"] = step.page_table(block_size)
                file.write(json.dumps(row, separators=(",", ":")) + "\n")
    except OSError as error:
        raise TraceError(f"steps cannot be written: {error}", where=str(path)) from error
