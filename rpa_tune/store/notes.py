"""What a study came to, as one line of the store beside its answers.

Answers say what was asked; a note says what followed: the verdict, why each candidate stopped, and
how far the simulator agreed with what was measured. Nothing is decided from notes, so a store
without them is whole.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

KEY = "study_note"  # the one key of such a line


@dataclass(frozen=True, kw_only=True, slots=True)
class Stopped:
    """A candidate that was left behind.

    Attributes:
      reason: Short name; see `sweep.rungs`.
      detail: One line.
      config: Its fields.
    """

    reason: str
    detail: str
    config: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class StudyNote:
    """The end of one study.

    Attributes:
      name: In the plan.
      study: `Candidate.study` of its candidates.
      verdict: `tuned` or `heuristic`; empty when no config works.
      stopped: Every candidate that was left behind.
      agreement: Fields of `sweep.agreement.Agreement`; None when nothing was measured.
    """

    name: str
    study: str
    verdict: str
    stopped: tuple[Stopped, ...] = ()
    agreement: Mapping[str, Any] | None = None


def encode(note: StudyNote) -> bytes:
    """One line, newline included.

    Raises:
      ValueError: A number is not finite.
    """
    text = json.dumps({KEY: asdict(note)}, separators=(",", ":"), allow_nan=False)
    return text.encode() + b"\n"


def is_note(line: bytes) -> bool:
    """Whether a line claims to be a note."""
    return line.startswith(b'{"' + KEY.encode() + b'":')


def decode(line: bytes) -> StudyNote:
    """Reads one line.

    Raises:
      ValueError, KeyError, TypeError: The line is damaged, or is not a note.
    """
    fields = json.loads(line)[KEY]
    stopped = tuple(Stopped(**stop) for stop in fields["stopped"])
    return StudyNote(**{**fields, "stopped": stopped})
