"""The ladder: which candidates climb to the next fidelity, and why the others stop."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rpa_tune.candidate import Candidate, Evaluation, Status
from rpa_tune.space.axis import Axis
from rpa_tune.space.space import is_larger_everywhere


@dataclass(frozen=True, kw_only=True, slots=True)
class Stop:
    """A candidate that climbs no further.

    Attributes:
      candidate: Which.
      reason: Short name, for counting: a status, `bounded`, `dominated` or `not chosen`.
      detail: One line.
    """

    candidate: Candidate
    reason: str
    detail: str


def timeless(evaluations: Sequence[Evaluation]) -> list[Stop]:
    """Stops for the candidates that got no time, with the evaluator's reason."""
    return [
        Stop(candidate=e.candidate, reason=e.status.value, detail=e.detail)
        for e in evaluations
        if not e.ok
    ]


def not_asked(
    pool: Sequence[Candidate],
    answers: Sequence[Evaluation],
    skipped: Sequence[Stop],
    bounds: Mapping[Any, float],
) -> list[Stop]:
    """Stops for the candidates of a pool that the search passed over.

    Args:
      pool: What could have been asked for.
      answers: What was.
      skipped: What was about to be, and has its stop already.
      bounds: Config -> lower bound of its time from the rung below.
    """
    seen = {answer.candidate.config for answer in answers}
    seen |= {stop.candidate.config for stop in skipped}
    best_us = min((a.time_us for a in answers if a.time_us is not None), default=math.inf)
    stops = []
    for candidate in pool:
        bound_us = bounds.get(candidate.config, 0.0)
        if candidate.config in seen:
            continue
        if bound_us >= best_us:
            detail = f"takes at least {bound_us:.1f} us, and {best_us:.1f} us was found"
            stops.append(Stop(candidate=candidate, reason="bounded", detail=detail))
        else:
            detail = f"the search spent its {len(answers)} evaluations elsewhere"
            stops.append(Stop(candidate=candidate, reason="not chosen", detail=detail))
    return stops


def dominated(
    candidate: Candidate, answers: Sequence[Evaluation], axes: Sequence[Axis]
) -> Stop | None:
    """A stop for a candidate that is larger on every axis than one that ran out of memory.

    Args:
      candidate: Not evaluated yet.
      answers: Known so far, of the same study.
      axes: The study's axes.
    """
    for answer in answers:
        if answer.status is not Status.OUT_OF_MEMORY:
            continue
        if is_larger_everywhere(candidate.config, answer.candidate.config, axes):
            detail = f"larger on every axis than {answer.candidate.config}: {answer.detail}"
            return Stop(candidate=candidate, reason="dominated", detail=detail)
    return None
