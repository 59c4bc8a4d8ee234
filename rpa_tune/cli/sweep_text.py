"""What `rpa-tune sweep` prints at its end: a table for people, or one JSON document."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from rpa_kernels.family import config_to_dict
from rpa_tune.candidate import Status
from rpa_tune.cli.output import print_json
from rpa_tune.cli.tables import (
    config_lines,
    regret_text,
    uses_text,
    verdict_text,
    verified_text,
    workload_text,
)
from rpa_tune.evaluate.measured import MeasuringHost
from rpa_tune.models.padding import padding_note
from rpa_tune.sweep.result import NO_COMPARISON, StudyResult
from rpa_tune.sweep.run import Outcome
from rpa_tune.tables.row import TableRow


def print_outcome(outcome: Outcome, *, code: int, table_folder: Path, as_json: bool) -> None:
    """Prints a table for people, or one JSON document.

    Args:
      outcome: How the run ended.
      code: Exit code.
      table_folder: Where rows are written to.
      as_json: Which of the two.
    """
    if as_json:
        print_json(
            {
                "exit_code": code,
                "studies": [_result_to_dict(result) for result in outcome.results],
                "num_studies": len(outcome.job.mine),
                "tables": [str(path) for path in outcome.tables],
                "measuring": asdict(outcome.measuring),
            }
        )
        return
    if outcome.results:
        # The other columns take 109 characters; names are not wrapped, and nothing is cropped.
        needed = 109 + max(len(result.study.name) for result in outcome.results)
        Console(width=max(120, Console().width, needed)).print(_table(outcome.results))
    for result in outcome.results:
        _print_result(result)
    click.echo(_host_text(outcome.measuring))
    if outcome.job.shard is not None:
        click.echo(
            f"Shard {outcome.job.shard} is done. "
            "Without --shard, the same command writes the tables."
        )
        return
    unchanged = "" if outcome.tables else " (unchanged)"
    if rows := [row for result in outcome.results if (row := result.row()) is not None]:
        uses = uses_text(rows, table_folder)
        click.echo(f"Tables are in {table_folder}{unchanged}. {uses}")


def _print_result(result: StudyResult) -> None:
    name = result.study.name
    if note := padding_note(result.study.problem):
        click.echo(f"{name}: {note}")
    if (row := result.row()) is not None:
        click.echo(f"{name}: {workload_text(row)}; {regret_text(row)}; {verified_text(row)}")
        if filled := [str(each.key.max_num_tokens) for each in result.rows()[1:]]:
            click.echo(f"{name}: fills the rows for {', '.join(filled)} tokens as well")
    if result.agreement is not None:
        click.echo(f"{name}: {result.agreement}")
    for stop in result.stops:
        if stop.reason == Status.WRONG_ANSWER:
            click.echo(f"{name}: WRONG: {stop.candidate.config}: {stop.detail}")
    if result.decision is None:
        click.echo(f"{name}: {_why_none(result)}")


def _host_text(host: MeasuringHost) -> str:
    """On what was measured, or why nothing was."""
    if not host.chip:
        return f"Nothing was measured: {host.reason}."
    device = host.device
    flags = ", ".join(f"{name}={value}" for name, value in device["flags"].items()) or "none"
    return (
        f"Measured for {host.chip} on a {device['device_kind']} "
        f"({device['num_devices']} devices, {device['num_hosts']} hosts, at {device['coords']}); "
        f"flags: {flags}."
    )


def _table(results: Sequence[StudyResult]) -> Table:
    """Per study: the chosen config, its time, the heuristic's, the speed-up, what bounds it."""
    rows = [row for result in results if (row := result.row())]
    how = " or ".join(sorted({row.evidence.fidelity for row in rows})) or "simulated"
    title = f"Expected time of one launch over the workload, {how}"
    table = Table(title=title, show_lines=True)
    table.add_column("study", no_wrap=True)
    table.add_column("config", min_width=24)
    for name in ("time us", "heuristic us", "speed-up"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("bound by")
    table.add_column("verdict")
    for result in results:
        row = result.row()
        if row is None:
            table.add_row(result.study.name, "none", "-", "-", "-", "-", result.verdict)
            continue
        table.add_row(
            result.study.name,
            "\n".join(config_lines(row)),
            _time_text(row),
            _number(row.evidence.heuristic_us, 1),
            _number(row.evidence.speedup, 2),
            row.evidence.bound_by or "-",
            verdict_text(row) + (f", {row.evidence.fidelity}" if " or " in how else ""),
        )
    return table


def _time_text(row: TableRow) -> str:
    """The time of a row, and the interval that it is 90 % sure to be in."""
    text = f"{row.evidence.time_us:,.1f}"
    if span := row.evidence.interval_us:
        text += f"\n{span[0]:,.1f}..{span[1]:,.1f}"
    return text


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:,.{digits}f}"


def _why_none(result: StudyResult) -> str:
    """Why there is no row: reasons with counts, an example, and what could be done about it."""
    if result.verdict == NO_COMPARISON:
        return _why_no_comparison(result)
    best = result.simulated_best
    if best is not None:
        counts = Counter(answer.status.value for answer in result.answers)
        details = [answer.detail for answer in result.answers if answer.detail]
        where = f"no config works on the device, of {len(result.answers)} tried"
        rest = f". Simulated, the best was {best.candidate.config}, {best.time_us or 0.0:,.1f} us; "
        rest += "for a row from simulated times, set search.measure to 0 in the plan"
    else:
        counts = Counter(stop.reason for stop in result.stops)
        counts.update({f"rejected by {limit}": n for limit, n in result.space.rejected.items()})
        details = [stop.detail for stop in result.stops if stop.detail]
        where, rest = "no config works", ""
    reasons = ", ".join(f"{count} {reason}" for reason, count in counts.most_common())
    example = f"; for example {details[0]}" if details else ""
    gave_up = f" ({result.gave_up})" if result.gave_up else ""
    return f"{where}{gave_up}: {reasons}{example}{rest}"


def _why_no_comparison(result: StudyResult) -> str:
    """What became of the heuristic, without which nothing is promoted."""
    heuristic = result.study.heuristic()
    asked = [answer for answer in result.answers if answer.candidate.config == heuristic]
    what = "; ".join(f"{a.status.value}: {a.detail}" for a in asked) or "it was not evaluated"
    timed = min((a for a in result.answers if a.ok), key=lambda a: a.time_us or 0.0)
    return (
        f"the heuristic has no time ({what}), so nothing is promoted; the fastest other config, "
        f"{timed.candidate.config} takes {timed.time_us or 0.0:,.1f} us"
    )


def _simulated_best(result: StudyResult) -> dict[str, Any] | None:
    best = result.simulated_best
    if best is None:
        return None
    return {"config": config_to_dict(best.candidate.config), "time_us": best.time_us}


def _result_to_dict(result: StudyResult) -> dict[str, Any]:
    decision = result.decision
    row = result.row()
    return {
        "study": result.study.name,
        "padding": padding_note(result.study.problem),
        "chip": result.study.chip.name,
        "family": result.study.family.name,
        "workload": result.study.workload.name,
        "workload_source": result.study.workload.source,
        "workload_digest": result.study.workload.digest,
        "verdict": row.evidence.verdict if row else "none",
        "config": row.configs[0] if row else None,
        "time_us": row.evidence.time_us if row else None,
        "heuristic_us": row.evidence.heuristic_us if row else None,
        "speedup": row.evidence.speedup if row else None,
        "interval_us": row.evidence.interval_us if row else None,
        "share_of_wins": row.evidence.share_of_wins if row else None,
        "bound_by": row.evidence.bound_by if row else None,
        "verified": row.evidence.verified if row else "",
        "regret_by_num_configs_pct": row.evidence.regret_by_num_configs_pct if row else (),
        "best_us": decision.best.time_us if decision else None,
        "simulated_best": _simulated_best(result),
        "fidelity": row.evidence.fidelity if row else None,
        "agreement": asdict(result.agreement) if result.agreement else None,
        "row": row.to_dict() if row else None,
        "gave_up": result.gave_up,
        "num_feasible": len(result.space.configs),
        "rejected": dict(result.space.rejected),
        "num_evaluated": len(result.answers),
        "num_asked": result.num_asked,
        "statuses": dict(Counter(answer.status.value for answer in result.answers)),
        "stopped": [
            {
                "config": config_to_dict(stop.candidate.config),
                "reason": stop.reason,
                "detail": stop.detail,
            }
            for stop in result.stops
        ],
    }
