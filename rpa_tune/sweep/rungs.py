"""The ladder: which candidates climb to the next fidelity, and why the others stop.

Every config gets a lower bound, which closes what cannot win. The search chooses `Search.simulate`
of the rest to be simulated, and where there is a TPU the best of those are measured, until
`Search.measure` have a measured time. Each dropped candidate records why in a `Stop`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rpa_tune.candidate import Candidate, Evaluation, Status
from rpa_tune.decide.objective import yardstick
from rpa_tune.space.axis import Axis
from rpa_tune.space.space import is_larger_everywhere
from rpa_tune.sweep.sampler import AbstractSampler, Search

# Reasons beside the statuses of evaluations that gave no time.
BOUNDED = "bounded"  # its lower bound is above the best time found
DOMINATED = "dominated"  # larger on every axis than one that ran out of memory
HALVED = "halved"  # has a time, and others have better ones
GAVE_UP = "gave up"  # the first ones all failed for one reason
NOT_CHOSEN = "not chosen"  # the search spent its evaluations elsewhere


@dataclass(frozen=True, kw_only=True, slots=True)
class Stop:
    """A candidate that climbs no further.

    Attributes:
      candidate: Which.
      reason: Short name, for counting: a status, or one of the reasons of this module.
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
    below: Mapping[Any, Evaluation],
    *,
    objective: str,
    gave_up: str = "",
) -> list[Stop]:
    """Stops for the candidates of a pool that the search passed over.

    Args:
      pool: What could have been asked for.
      answers: What was.
      skipped: What was about to be, and has its stop already.
      below: Config -> its answer on the rung below, a lower bound.
      objective: What the losses are.
      gave_up: Why the search ended early; empty if it did not.
    """
    seen = {answer.candidate.config for answer in answers}
    seen |= {stop.candidate.config for stop in skipped}
    measure = yardstick(answers, objective)
    best = min((measure.loss(answer) for answer in answers if answer.ok), default=None)
    stops = []
    for candidate in pool:
        if candidate.config in seen:
            continue
        if gave_up:
            stops.append(Stop(candidate=candidate, reason=GAVE_UP, detail=gave_up))
            continue
        bound = below.get(candidate.config)
        least = measure.loss(bound) if bound is not None and best is not None else None
        if best is not None and least is not None and least >= best:
            detail = f"lower bound {measure.show(least)}, best so far {measure.show(best)}"
            stops.append(Stop(candidate=candidate, reason=BOUNDED, detail=detail))
        else:
            detail = f"not among the {len(answers)} candidates that the search evaluated"
            stops.append(Stop(candidate=candidate, reason=NOT_CHOSEN, detail=detail))
    return stops


class Finalists(AbstractSampler):
    """Who is measured: the best of the simulated, and for each that fails the next best.

    What the simulator likes may not compile, fit or be right on the device. As long as fewer than
    `Search.measure` have a measured time, the next best is measured.
    """

    def __init__(
        self, simulated: Sequence[Evaluation], search: Search, *, always: Sequence[Any]
    ) -> None:
        """Ranks them.

        Args:
          simulated: Answers of the rung; those without a time have their stops elsewhere.
          search: How many climb, and by which objective.
          always: Configs that climb whatever their loss, beside the others: the heuristic must be
            compared at every fidelity with what is to replace it.
        """
        self._yardstick = yardstick(simulated, search.objective)
        self._ranked = sorted((a for a in simulated if a.ok), key=self._yardstick.loss)
        self._wanted = self._missing = search.measure
        self._always = always
        self._asked: list[Any] = []
        self._beside: list[Any] = []

    @property
    def best(self) -> Evaluation | None:
        """What the simulator thinks best."""
        return self._ranked[0] if self._ranked else None

    def ask(self) -> list[Any]:
        """As many as are missing, from the least loss upwards."""
        waiting = [
            a.candidate.config for a in self._ranked if a.candidate.config not in self._asked
        ]
        wave, rest = waiting[: self._missing], waiting[self._missing :]
        if not self._asked:
            self._beside = [config for config in rest if config in self._always]
            wave += self._beside
        self._asked += wave
        return wave

    def tell(self, evaluations: Sequence[Evaluation]) -> None:
        """Counts those that have a time; who was asked beside the others is none of them."""
        timed = [e.candidate.config for e in evaluations if e.ok]
        self._missing -= sum(config not in self._beside for config in timed)

    def left_behind(self) -> list[Stop]:
        """Stops for those that have a simulated time and were not asked for."""
        stops = []
        for rank, answer in enumerate(self._ranked, start=1):
            if answer.candidate.config not in self._asked:
                loss = self._yardstick.show(self._yardstick.loss(answer))
                detail = f"{loss} is rank {rank} of {len(self._ranked)}"
                detail += f"; {self._wanted} with a measured time are enough"
                stops.append(Stop(candidate=answer.candidate, reason=HALVED, detail=detail))
        return stops


def dominated(
    candidate: Candidate, answers: Sequence[Evaluation], axes: Sequence[Axis]
) -> Stop | None:
    """A stop for a candidate that needs no less memory than one that ran out of it.

    Larger on every axis is not enough by itself: a kernel may split what grows. Its own account
    must agree that it needs as much scratch.

    Args:
      candidate: Not evaluated yet.
      answers: Known so far, of the same study.
      axes: The study's axes.
    """
    scratch_bytes = candidate.family.scratch_bytes
    target = candidate.chip.target
    for answer in answers:
        other = answer.candidate
        if answer.status is not Status.OUT_OF_MEMORY:
            continue
        if not is_larger_everywhere(candidate.config, other.config, axes):
            continue
        need = scratch_bytes(candidate.problem, candidate.config, target)
        have = scratch_bytes(other.problem, other.config, target)
        if need >= have:
            detail = f"larger on every axis than {other.config}: {answer.detail}"
            return Stop(candidate=candidate, reason=DOMINATED, detail=detail)
    return None
