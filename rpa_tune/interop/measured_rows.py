"""Measured rows of kernels that are in no package: lines of JSON, and recordings of their launches.

A line says what was called and how long it took; `benchmarks/data/measured_rpa_2.jsonl` of the
repository shows every field. What the call's launches do is in an archive of recordings, found by
the call's digest, so that a line whose call was not recorded is never timed with another's launch.
"""

import hashlib
import json
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rpa_tune.errors import UsageError
from rpa_tune.hw.chip import load_chips
from rpa_tune.llo.recording import Launch, unpack

MANIFEST = "manifest.json"
# Fields that say who measured what and when; all others say what was called.
_NOT_THE_CALL = {
    "measured_us", "source", "timed", "software", "device", "not_recorded", "block_choice", "entry",
    "left_out",
}  # fmt: skip
_MAX_US = 1e18


@dataclass(frozen=True, kw_only=True, slots=True)
class MeasuredLine:
    """One line.

    Attributes:
      place: Its number in the file, from 0.
      chip: Name in the chip table.
      measured_us: Device time.
      contents: Every field.
    """

    place: int
    chip: str
    measured_us: float
    contents: Mapping[str, Any]


def is_lines(path: Path) -> bool:
    """Whether a file begins as a line of measured rows does."""
    try:
        with path.open("rb") as file:
            first = file.readline(1 << 20)
    except OSError:
        return False
    try:
        return isinstance(line := json.loads(first), dict) and "measured_us" in line
    except (ValueError, RecursionError):
        return False


def load_lines(path: Path) -> tuple[MeasuredLine, ...]:
    """Reads a file of measured rows.

    Raises:
      UsageError: It cannot be read, or a line is not understood.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise UsageError(f"cannot read measured rows: {error}", where=str(path)) from error
    return tuple(
        _line(path, place, text) for place, text in enumerate(lines) if text and not text.isspace()
    )


def _line(path: Path, place: int, text: str) -> MeasuredLine:
    try:
        row = json.loads(text)
        if not isinstance(row, dict):
            raise ValueError(f"an object is needed, got {text:.40}")
        for name in ("chip", "kernel", "measured_us"):
            if name not in row:
                raise ValueError(f"{name} is missing")
        chip, time = row["chip"], row["measured_us"]
        if not isinstance(chip, str) or chip not in load_chips():
            raise ValueError(f"chip={chip!r:.40} is not one of {', '.join(load_chips())}")
        if type(time) not in (int, float) or not 0 < time < _MAX_US:
            raise ValueError(f"measured_us={time!r:.40} must be a number above zero")
    except (ValueError, RecursionError) as error:
        raise UsageError(
            f"a measured row is not understood: {error}",
            where=f"{path}:{place + 1}",
            hint="benchmarks/data/measured_rpa_2.jsonl of the repository shows every field",
        ) from error
    return MeasuredLine(place=place, chip=chip, measured_us=float(time), contents=row)


def call_digest(contents: Mapping[str, Any]) -> str:
    """Of what a line says was called: the same whoever measured it, and whatever came out."""
    called = {name: value for name, value in contents.items() if name not in _NOT_THE_CALL}
    return hashlib.sha256(json.dumps(called, sort_keys=True).encode()).hexdigest()[:16]


class Recordings:
    """An archive of recordings, as `benchmarks/record_measured.py` keeps them."""

    def __init__(self, path: Path) -> None:
        """Reads the manifest.

        Raises:
          UsageError: The file is missing or no such archive.
        """
        self.path = path
        try:
            with zipfile.ZipFile(path) as archive:
                self.manifest: dict[str, Any] = json.loads(archive.read(MANIFEST))
                self._contents = {name: archive.read(name) for name in self.manifest["sha256"]}
            self._by_call = {self.manifest["calls"][name]: name for name in self._contents}
        except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
            raise self._damaged(error) from error

    def launches(self, name: str) -> tuple[Launch, ...] | None:
        """What was recorded under a name.

        Raises:
          UsageError: It is damaged.
        """
        if name not in self._contents:
            return None
        content = self._contents[name]
        try:
            if hashlib.sha256(content).hexdigest() != self.manifest["sha256"][name]:
                raise ValueError(f"{name} is not what the manifest says")
            return unpack(content)
        except ValueError as error:
            raise self._damaged(error) from error

    def of_call(self, digest: str) -> tuple[Launch, ...] | None:
        """What was recorded of a call.

        Raises:
          UsageError: It is damaged.
        """
        return self.launches(self._by_call[digest]) if digest in self._by_call else None

    def _damaged(self, error: Exception) -> UsageError:
        return UsageError(
            f"cannot read recordings: {error}",
            where=str(self.path),
            hint="python benchmarks/record_measured.py makes them again",
        )


def keep_recordings(
    path: Path,
    contents: Mapping[str, bytes],
    versions: Mapping[str, str],
    calls: Mapping[str, str],
) -> None:
    """Writes recordings, one entry a row; the same contents give the same file.

    Args:
      path: The archive.
      contents: Packed recordings by name.
      versions: What compiled them, by name.
      calls: Digests of what was called, by name; `Recordings.of_call` finds by them.
    """
    manifest = {
        "sha256": {name: hashlib.sha256(contents[name]).hexdigest() for name in sorted(contents)},
        "versions": {name: versions[name] for name in sorted(contents)},
        "calls": {name: calls[name] for name in sorted(contents)},
    }
    entries: Iterable[tuple[str, bytes]] = [
        (MANIFEST, json.dumps(manifest, indent=1).encode()),
        *((name, contents[name]) for name in sorted(contents)),
    ]
    partial = path.with_suffix(".partial")
    with zipfile.ZipFile(partial, "w", zipfile.ZIP_STORED) as archive:
        for name, content in entries:
            archive.writestr(zipfile.ZipInfo(name), content)
    partial.rename(path)
