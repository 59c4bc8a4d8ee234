"""What `rpa-tune explain --compare` prints for people."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from types import MappingProxyType

import click

from rpa_kernels.family import config_to_dict
from rpa_tune.analysis.compare import Change, Comparison
from rpa_tune.candidate import Fidelity
from rpa_tune.cli.explain_text import head_text
from rpa_tune.decide.promote import ERROR_PCT
from rpa_tune.llo.ensemble import share_of_wins
from rpa_tune.llo.timeline import Timeline
from rpa_tune.report.nest import places
from rpa_tune.report.story import fields_text
from rpa_tune.report.words import CAUSES

_MOST = 8  # lines of a table


def print_comparison(found: Comparison) -> None:
    """Prints two configs side by side, the largest change of each kind first."""
    sides = (found.before, found.after)
    click.echo(head_text(found.before.question))
    for name, side in zip(("A", "B"), sides, strict=True):
        config = config_to_dict(side.question.candidate.config)
        fields = " ".join(f"{field}={value}" for field, value in config.items())
        bound = side.evaluation.metrics["bound_by"]
        click.echo(f"{name}  {fields}")
        click.echo(
            f"   {side.time_us:,.1f} us a launch, simulated; lower bound "
            f"{side.lower_bound_us:,.1f}; bound by {bound}"
        )
    configs = [asdict(side.question.candidate.config) for side in sides]
    click.echo(f"B has {fields_text(*configs) or 'the same config'}")
    print_ratio(
        (found.before.time_us or 0.0, found.after.time_us or 0.0),
        [side.evaluation.metrics.get("set_us", ()) for side in sides],
    )
    print_changes("cycles by cause, mean over the workload", found.causes, CAUSES, adds_up=True)
    click.echo("\nin the batch that takes most of A's time:")
    print_timelines(found.loops, found.units, found.figures, found.timelines)


def print_ratio(times_us: tuple[float, float], sets_us: Sequence[Sequence[float]]) -> None:
    """Says how the times compare, and whether the simulator can tell them apart.

    Args:
      times_us: Of A and B.
      sets_us: Their times under each set of the simulator's parameters; empty if not known.
    """
    before, after = times_us
    error_pct = ERROR_PCT[Fidelity.SIMULATED]
    click.echo(f"B takes {after / before:.3f} of A's time")
    change_pct = 100 * (after / before - 1)
    # As in a sweep: what is promoted gains more than the error.
    is_clear = max(before, after) / min(before, after) > 1 + error_pct / 100
    how = "more than" if is_clear else "within"
    text = f"   {change_pct:+.1f} %, {how} the simulator's error of {error_pct:g} %"
    first, second = sets_us
    if len(first) and len(second):
        text += f"; B is the faster under {share_of_wins(second, first):.0%} of its parameter sets"
    click.echo(text)


def print_timelines(
    loops: Sequence[Change],
    units: Sequence[Change],
    figures: Sequence[Change],
    timelines: tuple[Timeline, Timeline],
) -> None:
    """Loops, units and figures of two launches."""
    print_changes("cycles by loop, with those inside it (2.1: the first in the second)", loops,
                  _addresses(timelines))  # fmt: skip
    print_changes("instructions by unit", units)
    print_changes("figures", figures)


def _addresses(timelines: tuple[Timeline, Timeline]) -> dict[str, str]:
    """Where each loop is in either schedule, by its place."""
    found: dict[str, list[str]] = {}
    for side, timeline in zip("AB", timelines, strict=True):
        for (first, last), place in places((lp.first, lp.last) for lp in timeline.loops).items():
            found.setdefault(place, []).append(f"{side} {first:#x}..{last:#x}")
    return {place: ", ".join(where) for place, where in found.items()}


def print_changes(
    title: str,
    changes: Sequence[Change],
    words: Mapping[str, str] = MappingProxyType({}),
    *,
    adds_up: bool = False,
) -> None:
    """One kind of changes as a table, with what their names mean.

    Args:
      title: Above it.
      changes: In the order of the lines; no more than `_MOST` are shown.
      words: What names mean.
      adds_up: Whether a sum says something.
    """
    names = [f"{c.name} ({words[c.name]})" if c.name in words else c.name for c in changes[:_MOST]]
    width = max([42, len(title) - 2, *map(len, names)])
    click.echo(f"\n{title:{width + 2}}{'A':>14}{'B':>14}{'B - A':>14}")
    for name, change in zip(names, changes, strict=False):
        click.echo(_line(name, change, width))
    if len(changes) > _MOST:
        click.echo(f"  and {len(changes) - _MOST} with smaller changes")
    if adds_up:
        before, after = (
            sum(getattr(change, side) or 0 for change in changes) for side in ("before", "after")
        )
        click.echo(_line("all", Change(name="all", before=before, after=after), width))


def _line(name: str, change: Change, width: int) -> str:
    before, after = (
        "none" if value is None else f"{value:,.0f}" for value in (change.before, change.after)
    )
    more = f"{change.change:+,.0f}" if round(change.change) else "0"
    return f"  {name:{width}}{before:>14}{after:>14}{more:>14}"
