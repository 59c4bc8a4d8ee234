"""How `rpa-tune sweep --dry-run` says what a sweep would cost."""

from collections.abc import Sequence
from dataclasses import asdict

import click
from rich.console import Console
from rich.table import Table

from rpa_tune.cli.output import print_json
from rpa_tune.sweep.forecast import StudyForecast


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
