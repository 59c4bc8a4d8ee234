"""What a check found, in memory and as the one JSON file that it leaves. No jax.

docs/tpu-check.md describes every field. A file may come from somebody else, so `read_report` checks
what it reads.
"""

import enum
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rpa_tune.check.privacy import without_places
from rpa_tune.check.times import KernelTimes
from rpa_tune.errors import UsageError
from rpa_tune.files import write_whole
from rpa_tune.hw.chip import load_chips

SCHEMA = "rpa-tpu-check/1"
ENVIRONMENT, CORRECTNESS, KERNELS, ARTIFACT = "environment", "correctness", "kernels", "artifact"
STEPS = (ENVIRONMENT, CORRECTNESS, KERNELS, ARTIFACT)
_KIND = "rpa-tpu-check/"
_MAX_FILE_BYTES = 64 << 20  # one that was seen has 40 kB


class PartOutcome(enum.StrEnum):
    """How a part of a check ended."""

    OK = "ok"
    FAILED = "failed"
    NOT_RUN = "not run"


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """One thing that a step looked at.

    Attributes:
      name: Unique in its step.
      outcome: How it ended.
      detail: What was found, or what went wrong and where, in one line.
      hint: What to do about it; empty when nothing.
      seconds: Wall time.
      figures: Plain JSON values; which ones depends on the step.
      is_kept: Whether an earlier run of the command found it. Not in the file.
    """

    name: str
    outcome: PartOutcome
    detail: str = ""
    hint: str = ""
    seconds: float = 0.0
    figures: Mapping[str, Any] = field(default_factory=dict)
    is_kept: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Identity:
    """What a check is a check of; a file goes on only under the same.

    Attributes:
      is_rehearsal: Whether a CPU stood in for the chip.
      chip: Name in the chip table.
      device: `device_kind`, `platform`, numbers of devices and hosts, HBM; empty when there was
        none to ask.
      versions: Of Python and packages.
      sources: Digests of kernels, launching code, verifier and simulator.
    """

    is_rehearsal: bool
    chip: str
    device: Mapping[str, Any]
    versions: Mapping[str, str | None]
    sources: Mapping[str, str]

    def differences(self, other: "Identity") -> list[str]:
        """What differs, `name: theirs, now ours`; empty when nothing."""
        pairs = [
            ("rehearsal", other.is_rehearsal, self.is_rehearsal),
            ("chip", other.chip, self.chip),
        ]
        for theirs, ours in (
            (other.device, self.device), (other.versions, self.versions),
            (other.sources, self.sources),
        ):  # fmt: skip
            pairs += [(name, theirs.get(name), ours.get(name)) for name in {**theirs, **ours}]
        return [f"{name} {there}, now {here}" for name, there, here in pairs if there != here]


@dataclass(kw_only=True, slots=True)
class CheckReport:
    """A whole check, as far as it got.

    Attributes:
      identity: What was checked.
      settings: Variables of the user's shell that decide programs; see `privacy.public_settings`.
      date: UTC day on which it was begun, ISO form.
      parts: By step, in the order of `STEPS`, then in the order in which they ended.
    """

    identity: Identity
    settings: Mapping[str, str]
    date: str
    parts: dict[str, list[Part]] = field(default_factory=lambda: {step: [] for step in STEPS})

    def outcome(self, step: str) -> PartOutcome:
        """FAILED when a part failed, NOT_RUN when one was not run or there is none, else OK."""
        outcomes = {part.outcome for part in self.parts[step]}
        if PartOutcome.FAILED in outcomes:
            return PartOutcome.FAILED
        return PartOutcome.OK if outcomes == {PartOutcome.OK} else PartOutcome.NOT_RUN

    @property
    def ok(self) -> bool:
        """Whether every part of every step was run and is well."""
        return all(self.outcome(step) is PartOutcome.OK for step in STEPS)

    @property
    def times(self) -> list[tuple[str, KernelTimes]]:
        """Name and times of every kernel that has them."""
        return [
            (part.name, KernelTimes.from_dict(part.figures))
            for part in self.parts[KERNELS]
            if part.figures
        ]

    def to_dict(self) -> dict[str, Any]:
        """The JSON form; details and hints, which quote errors, do not say whose machine it was."""
        identity = self.identity
        return {
            "schema": SCHEMA,
            "is_rehearsal": identity.is_rehearsal,
            "date": self.date,
            "chip": identity.chip,
            "device": dict(identity.device),
            "versions": dict(identity.versions),
            "sources": dict(identity.sources),
            "settings": dict(self.settings),
            "ok": self.ok,
            "steps": [
                {
                    "name": step,
                    "outcome": self.outcome(step).value,
                    "parts": [_part_to_dict(part) for part in self.parts[step]],
                }
                for step in STEPS
            ],
        }

    def save(self, path: Path) -> None:
        """Writes the file whole.

        Raises:
          UsageError: It cannot be written.
        """
        text = json.dumps(self.to_dict(), indent=1, allow_nan=False)
        try:
            write_whole(path, f"{text}\n".encode())
        except OSError as error:
            raise UsageError(
                f"cannot write: {error.strerror}", where=str(path), hint="name another with --json"
            ) from error


def is_report(path: Path) -> bool:
    """Whether a file says that it is a check's, of whatever version."""
    try:
        data = _load(path)
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(data, dict) and str(data.get("schema", "")).startswith(_KIND)


def read_report(path: Path) -> CheckReport:
    """Reads a check's file.

    Raises:
      UsageError: It cannot be read, is none, is of another version, or contradicts itself.
    """
    try:
        data = _load(path)
        return _report(data)
    except OSError as error:
        raise UsageError(f"cannot read: {error.strerror}", where=str(path)) from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        said = f"{error.args[0]!r} is missing" if isinstance(error, KeyError) else str(error)
        raise UsageError(
            f"not a file of `rpa-tune tpu-check`: {said:.200}",
            where=str(path),
            hint="docs/tpu-check.md shows every field",
        ) from error


def _load(path: Path) -> Any:
    if path.stat().st_size > _MAX_FILE_BYTES:
        raise ValueError(f"larger than {_MAX_FILE_BYTES:,} bytes")
    return json.loads(path.read_text(encoding="utf-8"))


def _report(data: Any) -> CheckReport:
    if not isinstance(data, dict):
        raise ValueError(f"an object is needed, got {data!r:.40}")
    if data.get("schema") != SCHEMA:
        raise ValueError(f"schema {data.get('schema')!r:.40}, this version reads {SCHEMA}")
    if type(data["is_rehearsal"]) is not bool:
        raise ValueError(f"is_rehearsal={data['is_rehearsal']!r:.40} must be true or false")
    if data["chip"] not in ("", *load_chips()):
        raise ValueError(f"chip={data['chip']!r:.40} is not one of {', '.join(load_chips())}")
    for name in ("device", "versions", "sources", "settings"):
        if not isinstance(data[name], dict):
            raise ValueError(f"{name} must be an object, got {data[name]!r:.40}")
    report = CheckReport(
        identity=Identity(
            is_rehearsal=data["is_rehearsal"],
            chip=data["chip"],
            device=data["device"],
            versions=data["versions"],
            sources=data["sources"],
        ),
        settings=data["settings"],
        date=str(data["date"]),
    )
    for step in data["steps"]:
        if step["name"] not in STEPS:
            raise ValueError(f"step {step['name']!r:.40} is not one of {', '.join(STEPS)}")
        report.parts[step["name"]] = [_part(part) for part in step["parts"]]
    for name, times in report.times:
        _check_times(name, times, report.identity)
    return report


def _check_times(name: str, times: KernelTimes, identity: Identity) -> None:
    """Refuses times that are not what the head of the file says.

    Raises:
      ValueError: They are not.
    """
    if (times.measured_us is None) is not identity.is_rehearsal:
        raise ValueError(f"kernel {name!r:.60}: is_rehearsal says otherwise than its times")
    if (times.rehearsed_us is None) is identity.is_rehearsal:
        raise ValueError(f"kernel {name!r:.60}: needs either measured_us or rehearsed_us")
    problem, chip = times.candidate.problem, times.candidate.chip
    if chip.name != identity.chip:
        raise ValueError(f"kernel {name!r:.60} is for {chip.name}, not {identity.chip}")
    have = chip.value("hbm_bytes") * chip.num_cores_per_device
    if problem.num_pages * problem.page_bytes > have:  # whoever reads it would draw them all
        raise ValueError(f"kernel {name!r:.60}: {problem.num_pages:,} pages do not fit the HBM")


def _part_to_dict(part: Part) -> dict[str, Any]:
    return {
        "name": part.name,
        "outcome": part.outcome.value,
        "detail": without_places(part.detail),
        "hint": without_places(part.hint),
        "seconds": round(part.seconds, 3),
        **({"figures": dict(part.figures)} if part.figures else {}),
    }


def _part(data: Mapping[str, Any]) -> Part:
    return Part(
        name=str(data["name"]),
        outcome=PartOutcome(data["outcome"]),
        detail=str(data["detail"]),
        hint=str(data["hint"]),
        seconds=float(data["seconds"]),
        figures=dict(data.get("figures", {})),
    )
