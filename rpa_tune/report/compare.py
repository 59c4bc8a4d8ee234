"""Two stores side by side: what got faster or slower, which winners changed, and by what cause.

Studies of two stores are one pair when they ask the same: family, problem and chip, or where the
chips of the stores differ, family and problem. What else differs (workload, versions) is said.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rpa_tune.report import rows
from rpa_tune.report.html import pack
from rpa_tune.report.story import cause_us, causes_text, fields_text
from rpa_tune.report.study import StudyView
from rpa_tune.report.words import CAUSES

Row = dict[str, Any]
_VERSIONS = ("jax", "libtpu", "kernel", "simulator")
_SAME = 0.005  # times that differ by a smaller part are called the same
QUESTION = "Which studies got faster or slower, and which winners changed?"
NOTE = (
    "Above a ratio of 1 the second store is slower. The largest changes come first; a click on a "
    "row shows where its cycles went. A winner is another one when its configs differ."
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Pair:
    """One question in two stores; a side that has no such study is None."""

    before: StudyView | None
    after: StudyView | None

    @property
    def study(self) -> str:
        """What both are about."""
        sides = [view for view in (self.before, self.after) if view is not None]
        names = dict.fromkeys(view.name for view in sides)
        return " / ".join(names)

    @property
    def ratio(self) -> float | None:
        """The second's time over the first's; None unless both have one."""
        if self.before is None or self.after is None:
            return None
        first, second = self.before.time_us, self.after.time_us
        return second / first if first and second else None

    @property
    def is_flipped(self) -> bool:
        """Whether both have a winner, and not the same."""
        first, second = (_configs(view) for view in (self.before, self.after))
        return bool(first and second) and first != second


def pair_up(before: Sequence[StudyView], after: Sequence[StudyView]) -> list[Pair]:
    """Pairs of the studies of two stores, the largest change first, then those of one side only."""
    chips = [{v.candidate.chip.name for v in views if v.candidate} for views in (before, after)]
    with_chip = bool(chips[0] & chips[1])
    exact = {view.digest: view for view in after}
    waiting: dict[Any, list[StudyView]] = {}
    known = {view.digest for view in before}
    for view in after:
        if view.digest not in known:
            waiting.setdefault(_question(view, with_chip=with_chip), []).append(view)
    pairs = []
    for view in before:
        other = exact.get(view.digest)
        if other is None and (alike := waiting.get(_question(view, with_chip=with_chip))):
            other = alike.pop(0)
        pairs.append(Pair(before=view, after=other))
    pairs += [Pair(before=None, after=view) for views in waiting.values() for view in views]
    return sorted(pairs, key=lambda pair: -_change(pair))


def _question(view: StudyView, *, with_chip: bool) -> Any:
    candidate = view.candidate
    if candidate is None:
        return view.name
    chip = candidate.chip.name if with_chip else ""
    return candidate.family.name, chip, str(candidate.problem.to_dict())


def _change(pair: Pair) -> float:
    return -1.0 if pair.ratio is None else max(pair.ratio, 1 / pair.ratio)


def _configs(view: StudyView | None) -> tuple[Mapping[str, int], ...]:
    return tuple(asdict(e.candidate.config) for e in view.winners) if view else ()


def compare(before: Sequence[StudyView], after: Sequence[StudyView]) -> Row:
    """What the page shows of two stores.

    Args:
      before: Studies of the first store.
      after: Studies of the second.
    """
    first, second = (views[0].store if views else "an empty store" for views in (before, after))
    pairs = pair_up(before, after)
    return {
        "title": f"{first} and {second} side by side",
        "summary": _summary(pairs, first, second),
        "question": QUESTION,
        "note": NOTE,
        "rows": pack([_row(pair, i) for i, pair in enumerate(pairs)]),
        "causes": pack([row for i, pair in enumerate(pairs) for row in _cause_rows(pair, i)]),
    }


def _row(pair: Pair, number: int) -> Row:
    before, after = pair.before, pair.after
    changed = fields_text(_first(before), _first(after)) if pair.is_flipped else ""
    return {
        "study": pair.study,
        "ratio": None if pair.ratio is None else round(pair.ratio, 4),
        "first, us": rows.rounded(before.time_us) if before else None,
        "second, us": rows.rounded(after.time_us) if after else None,
        "first": before.verdict if before else "not there",
        "second": after.verdict if after else "not there",
        "winner": "another"
        if pair.is_flipped
        else "the same"
        if _configs(before) and after
        else "",
        "what changed": changed,
        "_pair": number,
        "_why": _why(pair),
    }


def _first(view: StudyView | None) -> Mapping[str, int]:
    configs = _configs(view)
    return configs[0] if configs else {}


def _why(pair: Pair) -> str:
    """What made the difference; empty unless both have a time."""
    before, after = pair.before, pair.after
    if before is None or after is None or pair.ratio is None:
        return ""
    text = (
        f"{after.time_us:,.1f} us instead of {before.time_us:,.1f}: {pair.ratio:.3f} of the time."
    )
    sides = [_simulated_winner(view) for view in (before, after)]
    if (spent := causes_text(*sides)) and None not in sides:
        text += f" The second spends {spent}."
    if pair.is_flipped:
        text += f" Its winner is another one: {fields_text(_first(before), _first(after))}."
    if others := _differences(before, after):
        text += f" Beside that, {others}."
    return text


def _simulated_winner(view: StudyView) -> Any:
    winner = view.winners[0]
    return view.simulated.get(winner.candidate.config, winner)


def _differences(before: StudyView, after: StudyView) -> str:
    """`libtpu 0.0.42.1 became 0.0.50.1, the workloads differ`."""
    first, second = (view.answers[-1].provenance for view in (before, after))
    found = [
        f"{name} {first.get(name)} became {second.get(name)}"
        for name in _VERSIONS
        if first.get(name) != second.get(name)
    ]
    chips = [view.candidate.chip.name if view.candidate else "" for view in (before, after)]
    found += [f"chip {chips[0]} became {chips[1]}"] if chips[0] != chips[1] else []
    workloads = [view.candidate.workload if view.candidate else "" for view in (before, after)]
    found += ["the workloads differ"] if workloads[0] != workloads[1] else []
    return ", ".join(found)


def _cause_rows(pair: Pair, number: int) -> Iterable[Row]:
    """A row for each cause of both winners; none unless both have one."""
    if pair.before is None or pair.after is None:
        return
    for side, view in (("first", pair.before), ("second", pair.after)):
        for winner in view.winners[:1]:
            spent = cause_us(view.simulated.get(winner.candidate.config, winner))
            for place, cause in enumerate(CAUSES):
                if spent.get(cause):
                    yield {
                        "pair": number,
                        "side": f"{side}: {view.store}",
                        "config": rows.config_text(winner.candidate.config),
                        "cause": cause,
                        "us": rows.rounded(spent[cause]),
                        "at": place,
                    }


def _summary(pairs: Sequence[Pair], first: str, second: str) -> str:
    """One sentence of what changed."""
    ratios = [pair.ratio for pair in pairs if pair.ratio is not None]
    if not ratios:
        return f"No study of {first} has a time in {second}."
    slower, faster = sum(r > 1 + _SAME for r in ratios), sum(r < 1 - _SAME for r in ratios)
    flipped = sum(pair.is_flipped for pair in pairs)
    missing = len(pairs) - len(ratios)
    text = (
        f"Of {len(ratios)} studies with a time in both, {faster} are faster and {slower} slower by "
        f"more than {_SAME:.1%} in {second} (its times over those of {first}: {min(ratios):.3f} to "
        f"{max(ratios):.3f}); "
        f"{flipped} have another winner."
    )
    return text + (f" {missing:,} have no time in one of them." if missing else "")
