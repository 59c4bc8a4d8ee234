"""How `rpa-tune sweep --dry-run` says what a sweep would cost."""

from collections.abc import Sequence
from dataclasses import asdict

import click
from rich.console import Console
from rich.table import Table

from rpa_tune.cli.output import counted, print_json
from rpa_tune.sweep.forecast import GroupForecast, StudyForecast


def print_forecast(rows: Sequence[StudyForecast], as_json: bool) -> None:
    if as_json:
        print_json({"studies": [asdict(row) for row in rows]})
        return
    table = Table("study", "grid", "feasible", "simulate at most", "known", "seconds")
    for row in rows:
        table.add_row(
            row.study, f"{row.grid:,}", f"{row.feasible:,}",
            str(row.simulate_at_most), str(row.known), f"{row.seconds:g}",
        )  # fmt: skip
    Console().print(table)
    for row in rows:
        if row.padding:
            click.echo(f"{row.study}: {row.padding}")
        for limit, count in sorted(row.rejected.items(), key=lambda item: -item[1]):
            click.echo(f"{row.study}: {count:,} configs are infeasible: {limit}")
    total = sum(row.seconds for row in rows)
    click.echo(f"about {total:g} s in total ({rows[0].seconds_are}); nothing was run")


def print_groups(rows: Sequence[GroupForecast], as_json: bool) -> None:
    """What a sweep costs by chip and family."""
    if as_json:
        print_json({"groups": [asdict(row) for row in rows]})
        return
    click.echo(f"{'chip':5}{'family':12}{'studies':>8}{'rows':>7}{'evaluations':>13}{'known':>7}"
               f"{'core hours':>12}")  # fmt: skip
    for row in rows:
        click.echo(f"{row.chip:5}{row.family:12}{row.studies:>8,}{row.rows:>7,}"
                   f"{row.evaluations:>13,}{row.known:>7,}{row.core_hours:>12.1f}")  # fmt: skip
    studies, made = (sum(getattr(row, name) for row in rows) for name in ("studies", "rows"))
    hours = sum(row.core_hours for row in rows)
    click.echo(
        f"{studies:,} {'study' if studies == 1 else 'studies'} for {counted(made, 'row')}: "
        f"at most {hours:.1f} core hours "
        f"({rows[0].seconds_are}); nothing was run"
    )
