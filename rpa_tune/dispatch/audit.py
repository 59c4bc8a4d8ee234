"""Which rows a serving engine would meet: every bucket it compiles, looked up in advance."""

import enum
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rpa_kernels import FAMILIES
from rpa_kernels.infeasible import Infeasible
from rpa_kernels.problem import Problem
from rpa_tune.dispatch.dispatcher import Dispatcher
from rpa_tune.dispatch.select import Source, select


class Coverage(enum.StrEnum):
    """How well a bucket is served, best first."""

    EXACT = "exact"
    NEAREST = "nearest"
    HEURISTIC = "heuristic"
    INFEASIBLE = "infeasible"


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """One family in one bucket.

    Attributes:
      family: Kernel family.
      num_tokens: The bucket's tokens.
      num_seqs: The bucket's sequences.
      coverage: How its configs are found.
      why: The choice's reason, or the limit that is broken.
      distance: How far the row's key is, or None without a row.
      expected_loss_pct: Against a tuned config. 0 for an exact row; otherwise the mean gain over
        the heuristic that the chip's tuned rows of the family show, or None when there are none.
    """

    family: str
    num_tokens: int
    num_seqs: int
    coverage: Coverage
    why: str
    distance: float | None = None
    expected_loss_pct: float | None = None


def audit(
    dispatcher: Dispatcher, problems: Iterable[Problem], families: Sequence[str] = FAMILIES
) -> list[Entry]:
    """Looks every bucket up, for every family.

    Args:
      dispatcher: Its tables and its way with misses are what is audited.
      problems: Shapes, for example of `Engine.buckets`.
      families: Those whose sequences occur, for example `Engine.families`.
    """
    return [_look_up(dispatcher, problem, family) for problem in problems for family in families]


def _look_up(dispatcher: Dispatcher, problem: Problem, family: str) -> Entry:
    # A miss is what an audit is for: never an exception, whatever the dispatcher does.
    on_miss = "heuristic" if dispatcher.on_miss == "error" else dispatcher.on_miss
    choice = select(problem, dispatcher.chip.target, family, dispatcher.tables, on_miss=on_miss)
    if isinstance(choice, Infeasible):
        return Entry(
            family=family,
            num_tokens=problem.max_num_tokens,
            num_seqs=problem.max_num_seqs,
            coverage=Coverage.INFEASIBLE,
            why=str(choice),
        )
    is_exact = choice.source is Source.EXACT
    return Entry(
        family=family,
        num_tokens=problem.max_num_tokens,
        num_seqs=problem.max_num_seqs,
        coverage=Coverage(choice.source.value),
        why=choice.why,
        distance=choice.distance,
        expected_loss_pct=0.0 if is_exact else _mean_gain_pct(dispatcher, family),
    )


def _mean_gain_pct(dispatcher: Dispatcher, family: str) -> float | None:
    """What tuning gained where it was done: percent of the tuned time, mean over rows."""
    gains = [
        100 * (row.evidence.speedup - 1)
        for row in dispatcher.tables
        if row.key.family == family
        and row.key.chip == dispatcher.chip.name
        and row.evidence.speedup is not None
    ]
    return statistics.mean(gains) if gains else None
