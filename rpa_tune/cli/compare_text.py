"""What `rpa-tune explain --compare` prints for people."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType

import click

from rpa_kernels.family import config_to_dict
from rpa_tune.analysis.compare import Change, Comparison
from rpa_tune.report.words import CAUSES

_MOST = 8  # lines of a table


def print_comparison(found: Comparison) -> None:
    """Prints two configs side by side, the largest change of each kind first."""
    sides = (found.before, found.after)
    for name, side in zip(("A", "B"), sides, strict=True):
        config = config_to_dict(side.question.candidate.config)
        fields = " ".join(f"{field}={value}" for field, value in config.items())
        bound = side.evaluation.metrics["bound_by"]
        click.echo(f"{name}  {fields}")
        click.echo(
            f"   {side.time_us:,.1f} us a launch, simulated; lower bound "
            f"{side.lower_bound_us:,.1f}; bound by {bound}"
        )
    click.echo(f"B takes {found.ratio:.3f} of A's time")
    print_changes("cycles by cause, mean over the workload", found.causes, CAUSES)
    click.echo("\nin the batch that takes most of A's time:")
    print_changes("cycles by loop (2.1: the first in the second)", found.loops)
    print_changes("instructions by unit", found.units)
    print_changes("figures", found.figures)


def print_changes(
    title: str, changes: Sequence[Change], words: Mapping[str, str] = MappingProxyType({})
) -> None:
    """One kind of changes as a table, with what their names mean."""
    click.echo(f"\n{title:44}{'A':>14}{'B':>14}{'B - A':>14}")
    for change in changes[:_MOST]:
        name = f"{change.name} ({words[change.name]})" if change.name in words else change.name
        before, after = (
            "none" if value is None else f"{value:,.0f}" for value in (change.before, change.after)
        )
        click.echo(f"  {name[:42]:42}{before:>14}{after:>14}{change.change:>+14,.0f}")
    if len(changes) > _MOST:
        click.echo(f"  and {len(changes) - _MOST} with smaller changes")
