"""What is planned for a study and what it came to, as lines of the store beside its answers.

Answers say what was asked. A plan says how much will be; a note says what followed: the verdict,
why each candidate stopped, and how far the simulator agreed with what was measured. Nothing is
decided from either, so a store without them is whole; `rpa-tune status` shows them.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

# The one key of such a line.
PLAN_KEY = "study_plan"
NOTE_KEY = "study_note"


@dataclass(frozen=True, kw_only=True, slots=True)
class StudyPlan:
    """The beginning of one study; whatever was noted about it before belongs to the past.

    Attributes:
      name: In the plan.
      study: `Candidate.study` of its candidates.
      num_evaluations: Candidates that will be simulated, at most.
      heuristic: Fields of the config that is to be beaten; None when there is none.
      stamp: Versions that its answers depend on; see `codec.stamp_of`.
      sampler: Who chooses what is asked; see `sampler_choice.sampler_identity`. Empty in stores
        of older versions, like what follows.
      axes: Config field -> the values that are searched, in rising order.
      workload: `name`, `source` and `batches`: for each the `weight` and the lengths that a rule
        may ask for, in the order of `Evaluation.batch_us`.
      objective: What is to be least.
    """

    name: str
    study: str
    num_evaluations: int
    heuristic: Mapping[str, Any] | None
    stamp: tuple[str, ...]
    sampler: Mapping[str, str] = field(default_factory=dict)
    axes: Mapping[str, list[int]] = field(default_factory=dict)
    workload: Mapping[str, Any] = field(default_factory=dict)
    objective: str = ""


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
      row: `TableRow.to_dict()` of its table row; None without one, and in stores of older versions.
      bounds_us: Candidate's digest -> its lower bound, microseconds, of those that were answered;
        under `least` the least bound of the whole space. Empty in stores of older versions.
    """

    name: str
    study: str
    verdict: str
    stopped: tuple[Stopped, ...] = ()
    agreement: Mapping[str, Any] | None = None
    row: Mapping[str, Any] | None = None
    bounds_us: Mapping[str, float] = field(default_factory=dict)


def encode(note: StudyPlan | StudyNote) -> bytes:
    """One line, newline included.

    Raises:
      ValueError: A number is not finite.
    """
    key = PLAN_KEY if isinstance(note, StudyPlan) else NOTE_KEY
    text = json.dumps({key: asdict(note)}, separators=(",", ":"), allow_nan=False)
    return text.encode() + b"\n"


def is_note(line: bytes) -> bool:
    """Whether a line claims to be a plan or a note."""
    return line.startswith((b'{"' + PLAN_KEY.encode() + b'":', b'{"' + NOTE_KEY.encode() + b'":'))


def decode(line: bytes) -> StudyPlan | StudyNote:
    """Reads one line.

    Raises:
      ValueError: The line is damaged, or is neither.
    """
    try:
        ((key, entries),) = json.loads(line).items()
        if key == PLAN_KEY:
            note: StudyPlan | StudyNote = StudyPlan(**{**entries, "stamp": tuple(entries["stamp"])})
        else:
            stopped = tuple(Stopped(**stop) for stop in entries["stopped"])
            note = StudyNote(**{**entries, "stopped": stopped})
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError("not a note: a field is missing or of the wrong type") from error
    _check(note)
    return note


_TEXTS = ("name", "study", "verdict", "reason", "detail", "objective")
# Whether it may be None.
_MAPPINGS = {
    "heuristic": True, "agreement": True, "config": False, "workload": False, "row": True,
}  # fmt: skip


def _check(note: StudyPlan | StudyNote | Stopped) -> None:
    """Refuses fields of the wrong type: the file may come from anywhere.

    Raises:
      ValueError: There is one.
    """
    for part in fields(note):
        value = getattr(note, part.name)
        is_good = True
        if part.name in _TEXTS:
            is_good = isinstance(value, str)
        elif part.name in _MAPPINGS:
            is_good = isinstance(value, dict) or (value is None and _MAPPINGS[part.name])
        elif part.name == "sampler":
            is_good = isinstance(value, dict) and all(isinstance(v, str) for v in value.values())
        elif part.name == "axes":
            is_good = isinstance(value, dict) and all(_is_axis(values) for values in value.values())
        elif part.name == "bounds_us":
            is_good = isinstance(value, dict) and all(
                type(us) in (int, float) for us in value.values()
            )
        elif part.name == "num_evaluations":
            is_good = type(value) is int and value >= 0
        elif part.name == "stamp":
            is_good = all(isinstance(part, str) for part in value)
        else:
            for stop in value:
                _check(stop)
        if not is_good:
            raise ValueError(f"not a note: {part.name}={value!r:.40}")


def _is_axis(values: object) -> bool:
    return isinstance(values, list) and all(type(value) is int for value in values)
