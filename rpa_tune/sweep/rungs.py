"""The ladder: which candidates climb to the next fidelity, and why the others stop."""

from collections.abc import Sequence
from dataclasses import dataclass

from rpa_tune.candidate import Candidate, Evaluation, Fidelity, Status
from rpa_tune.promote import ERROR_PCT
from rpa_tune.space.axis import Axis
from rpa_tune.space.space import is_larger_everywhere


@dataclass(frozen=True, kw_only=True, slots=True)
class Stop:
    """A candidate that climbs no further.

    Attributes:
      candidate: Which.
      reason: Short name, for counting: a status, `slower`, `dominated` or `not chosen`.
      detail: One line.
    """

    candidate: Candidate
    reason: str
    detail: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdicts:
    """The outcome of a rung: who climbs, best first, and who stops."""

    climb: tuple[Candidate, ...]
    stop: tuple[Stop, ...]


def sift(evaluations: Sequence[Evaluation]) -> Verdicts:
    """Lets climb what is not slower than the best by more than this fidelity's own error.

    Args:
      evaluations: Answers of one fidelity.
    """
    timed = sorted(
        (e for e in evaluations if e.time_us is not None), key=lambda e: e.time_us or 0.0
    )
    stop = [
        Stop(candidate=e.candidate, reason=e.status.value, detail=e.detail)
        for e in evaluations
        if e.time_us is None
    ]
    climb = []
    for evaluation in timed:
        best_us, time_us = timed[0].time_us or 0.0, evaluation.time_us or 0.0
        error_pct = ERROR_PCT[evaluation.fidelity]
        if time_us <= best_us * (1 + error_pct / 100):
            climb.append(evaluation.candidate)
            continue
        detail = (
            f"{evaluation.fidelity.name.lower()} {time_us:.1f} us is more than {error_pct:g} % "
            f"above the best, {best_us:.1f} us"
        )
        stop.append(Stop(candidate=evaluation.candidate, reason="slower", detail=detail))
    return Verdicts(climb=tuple(climb), stop=tuple(stop))


def not_chosen(
    pool: Sequence[Candidate], asked: Sequence[Candidate], fidelity: Fidelity
) -> list[Stop]:
    """Stops for the candidates of a pool that the sampler never asked for."""
    seen = {candidate.digest for candidate in asked}
    detail = f"the search spent its {len(asked)} {fidelity.name.lower()} evaluations elsewhere"
    return [
        Stop(candidate=candidate, reason="not chosen", detail=detail)
        for candidate in pool
        if candidate.digest not in seen
    ]


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
