"""Which rows a serving engine would meet: every bucket it compiles, looked up in advance."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rpa_kernels.infeasible import Infeasible
from rpa_kernels.problem import Problem
from rpa_kernels.slots import SLOTS, family_of
from rpa_tune.dispatch.dispatcher import Dispatcher
from rpa_tune.dispatch.select import Choice, Source, rests_on_default, select
from rpa_tune.provenance import kernel_digest
from rpa_tune.tables.key import TuningKey, differences
from rpa_tune.tables.row import TableRow

# A row whose key differs in nothing else was timed on the same attention, and one doubling away on
# batches that are much alike. How far alike reaches is a guess.
_MAXIMA = {"max_num_tokens", "max_num_seqs", "max_context_tokens"}
_MOST_TIMES = 2


@dataclass(frozen=True, kw_only=True, slots=True)
class Loss:
    """What a choice lost where it was compared, and how far that can be trusted.

    Attributes:
      pct: Against the best configs that were found there, percent of their time.
      error_pct: The evaluator's own error, percent.
      where: The row, or the pairs of recorded spaces.
      worst_pct: The most that one of several lost; None of a row.
    """

    pct: float
    error_pct: float
    where: str
    worst_pct: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """One family in one bucket.

    Attributes:
      family: Kernel family.
      problem: What is looked up: the bucket's sizes, the model's heads, window and dtypes.
      coverage: How its configs are found.
      why: The choice's reason, or the limit that is broken.
      distance: How far the row's key is, or None without a row.
      made_with: Flags of libtpu that the row was made with; None without a row.
      is_stale: Whether the row's times are those of other kernels than today's.
      is_untested: Whether only one config of the row's study had a time, so that nothing was
        compared.
      loss: Of an exact row none, and None here. Of a nearest row of today's kernels, and of one
        that a study of another shape filled, what rows of neighbours so far away lost
        (`tables.loss`). Of the heuristic, what it lost in the nearest row that was compared with
        today's, and whose key differs in the maxima alone, by a doubling at most. None where there
        is nothing to tell it from: then the loss is not known.
    """

    family: str
    problem: Problem
    coverage: Source
    why: str
    distance: float | None = None
    made_with: str | None = None
    is_stale: bool = False
    is_untested: bool = False
    loss: Loss | None = None

    @property
    def expected_loss_pct(self) -> float | None:
        """0 for an exact row of today's kernels with evidence; None when it is not known."""
        if self.loss is None and self.coverage is Source.EXACT:
            return None if self.is_stale or self.is_untested else 0.0
        return self.loss.pct if self.loss else None


def audit(
    dispatcher: Dispatcher, problems: Iterable[Problem], slots: Sequence[str] = SLOTS
) -> list[Entry]:
    """Looks every bucket up, for every family.

    Args:
      dispatcher: Its tables and its way with misses are what is audited.
      problems: Shapes, for example of `Engine.buckets`.
      slots: Those whose sequences occur, for example `Engine.families`.
    """
    return [
        _look_up(dispatcher, problem, family)
        for problem in problems
        for family in look_up_families(problem, slots)
    ]


def look_up_families(problem: Problem, slots: Sequence[str]) -> list[str]:
    """The families that are looked up for a problem whose steps fill these slots."""
    return list(dict.fromkeys(family_of(slot, is_latent=problem.is_latent) for slot in slots))


def _look_up(dispatcher: Dispatcher, problem: Problem, family: str) -> Entry:
    # A miss is what an audit is for: never an exception, whatever the dispatcher does.
    on_miss = "heuristic" if dispatcher.on_miss == "error" else dispatcher.on_miss
    choice = select(problem, dispatcher.chip.target, family, dispatcher.tables, on_miss=on_miss)
    if isinstance(choice, Infeasible):
        return Entry(family=family, problem=problem, coverage=Source.INFEASIBLE, why=str(choice))
    entry = Entry(
        family=family,
        problem=problem,
        coverage=choice.source,
        why=choice.found,
        distance=choice.distance,
        made_with=choice.row.evidence.libtpu_args if choice.row else None,
        is_stale=_is_stale(choice),
        is_untested=choice.row is not None and choice.row.evidence.num_candidates < 2,
    )
    if choice.source is Source.HEURISTIC:
        return replace(entry, loss=_loss_elsewhere(dispatcher, choice.key))
    if entry.is_stale or entry.is_untested:
        return entry
    return replace(entry, why=choice.why, loss=_loss_of_neighbours(choice))


def _is_stale(choice: Choice) -> bool:
    row = choice.row
    return row is not None and row.evidence.kernel_digest != kernel_digest(row.key.family)


def _loss_of_neighbours(choice: Choice) -> Loss | None:
    """What rows lost that stood in for keys as far from what they were timed on as this one."""
    row, known = choice.row, choice.loss
    if row is None or known is None:
        return None
    return Loss(
        pct=known.pct,
        error_pct=row.evidence.error_pct,
        where=known.pairs_text,
        worst_pct=known.worst_pct,
    )


def _loss_elsewhere(dispatcher: Dispatcher, key: TuningKey) -> Loss | None:
    """What the heuristic lost in the nearest comparable row of today's kernels."""
    for near in dispatcher.tables.by_distance(key):
        row = near.row
        is_of_today = row.evidence.kernel_digest == kernel_digest(row.key.family)
        if row.evidence.speedup is None or not is_of_today or not _is_comparable(key, row.key):
            continue
        if rests_on_default(row, dispatcher.chip.target):
            return Loss(
                pct=100 * (row.evidence.speedup - 1),
                error_pct=row.evidence.error_pct,
                where=_place(row),
            )
    return None


def _is_comparable(key: TuningKey, other: TuningKey) -> bool:
    """Whether two keys differ in maxima alone, and in each of those by a doubling at most."""
    changed = differences(key, other)
    return set(changed) <= _MAXIMA and all(
        max(sizes) <= _MOST_TIMES * min(sizes) for sizes in changed.values()
    )


def _place(row: TableRow) -> str:
    """`v6e/decode.jsonl:2`."""
    return "/".join(Path(row.where).parts[-2:])
