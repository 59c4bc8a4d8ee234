"""Why one config is faster than another, and why a winner wins: sentences for people."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from rpa_tune.candidate import Evaluation
from rpa_tune.report.study import StudyView
from rpa_tune.report.words import BOUNDS, CAUSES

# A cause is worth a word from this share of the slower time on.
_LEAST_SHARE = 0.005
_MOST_CAUSES = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class CauseChange:
    """What one cause takes in two answers, microseconds of one launch.

    Attributes:
      cause: One of `words.CAUSES`.
      before_us: In the first.
      after_us: In the second.
    """

    cause: str
    before_us: float
    after_us: float

    @property
    def change_us(self) -> float:
        """More (above zero) or less in the second."""
        return self.after_us - self.before_us


def cause_us(answer: Evaluation) -> dict[str, float]:
    """Cause -> microseconds of one launch, the mean over the workload; adds up to the time."""
    cycles = answer.metrics.get("cycles_by_owner") or {}
    total = sum(cycles.values())
    return {cause: (answer.time_us or 0.0) * n / total for cause, n in cycles.items() if total}


def cause_changes(before: Evaluation, after: Evaluation) -> list[CauseChange]:
    """All causes, the largest change first."""
    first, second = cause_us(before), cause_us(after)
    changes = [
        CauseChange(cause=c, before_us=first.get(c, 0.0), after_us=second.get(c, 0.0))
        for c in CAUSES
        if c in first or c in second
    ]
    return sorted(changes, key=lambda change: -abs(change.change_us))


def causes_text(before: Evaluation, after: Evaluation) -> str:
    """`10.2 us less of waits for copies from HBM (dma_wait_read), ...`; empty without cycles."""
    least = _LEAST_SHARE * max(before.time_us or 0.0, after.time_us or 0.0)
    parts = [
        f"{abs(change.change_us):,.1f} us {'more' if change.change_us > 0 else 'less'} of "
        f"{CAUSES[change.cause]} ({change.cause})"
        for change in cause_changes(before, after)[:_MOST_CAUSES]
        if abs(change.change_us) >= least
    ]
    return ", ".join(parts)


def fields_text(before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
    """`bkv_sz=1024 instead of 512, bq_sz=8 instead of 16`."""
    return ", ".join(
        f"{name}={value} instead of {before.get(name, 'none')}"
        for name, value in after.items()
        if before.get(name) != value
    )


def why(view: StudyView) -> str:
    """Why the winner of a study wins, or why there is none."""
    decision, heuristic = view.decision, view.heuristic
    if not view.answers:
        return "Nothing has been evaluated yet."
    if decision is None or heuristic is None:
        return "There is no winner: the heuristic has no time, so nothing says what is better."
    winner = view.winners[0] if view.winners else decision.chosen
    how = decision.best.fidelity.name.lower()
    if winner is heuristic and len(view.winners) < 2:
        return f"{_why_heuristic(view)} {_bound_text(view, heuristic)}"
    took, instead = view.time_us or 0.0, heuristic.time_us or 0.0
    speed = (
        f"{took:,.1f} us instead of the heuristic's {instead:,.1f} ({how}), {instead / took:.2f}x"
    )
    if len(view.winners) > 1:
        return (
            f"{len(view.winners)} configs with a rule win: {speed}. None of them is best for all "
            f"batches. {_bound_text(view, winner)}"
        )
    changed = fields_text(asdict(heuristic.candidate.config), asdict(winner.candidate.config))
    first, second = (view.simulated.get(e.candidate.config, e) for e in (heuristic, winner))
    causes = causes_text(first, second)
    spent = f" It spends {causes}." if causes else ""
    return f"{changed} wins: {speed}.{spent} {_bound_text(view, winner)}"


def _why_heuristic(view: StudyView) -> str:
    """Why nothing replaces the heuristic's config."""
    assert view.heuristic is not None
    known_us, heuristic = view.heuristic.time_us or 0.0, view.heuristic.candidate.config
    others = sorted(
        (e for c, e in view.judged.items() if c != heuristic), key=lambda e: e.time_us or 0.0
    )
    tried = f"none of the {len(others)} others that were tried"
    text = (
        f"The heuristic's config stays ({known_us:,.1f} us): {tried} is faster by more than the "
        f"error of {view.error_pct:g} %."
    )
    if not others:
        return f"The heuristic's config stays ({known_us:,.1f} us): no other has a time."
    next_best = others[0]
    changed = fields_text(asdict(heuristic), asdict(next_best.candidate.config))
    first, second = (view.simulated.get(e.candidate.config, e) for e in (view.heuristic, next_best))
    causes = causes_text(first, second)
    spent = f", with {causes}" if causes else ""
    return f"{text} The best of them, {changed}, takes {next_best.time_us:,.1f} us{spent}."


def _bound_text(view: StudyView, winner: Evaluation) -> str:
    """What bounds the winner, and how far the bound of the space is."""
    bound_by = str(view.simulated.get(winner.candidate.config, winner).metrics.get("bound_by", ""))
    text = f"It is bound by {bound_by}. {BOUNDS.get(bound_by, '')}".strip() if bound_by else ""
    least = view.note.bounds_us.get("least") if view.note else None
    if least and view.time_us and least <= view.time_us:
        text += f" No config of the space can take less than {least:,.1f} us."
    return text
