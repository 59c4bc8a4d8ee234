"""`rpa-tune tpu-check`: the first hour on a TPU."""

from pathlib import Path
from typing import Any

import click

from rpa_tune.check.record import STEPS, CheckReport, Part, PartOutcome
from rpa_tune.check.run import Beginning, CheckWatch, tpu_check
from rpa_tune.cli.options import ChipName, cache_option
from rpa_tune.sweep.nodes import parse_seconds

_DEFAULT_FILE, _REHEARSAL_FILE = Path("tpu-check.json"), Path("tpu-check-rehearsal.json")


@click.command(name="tpu-check")
@click.option("--json", "path", type=click.Path(path_type=Path),
              help=f"File to write; default {_DEFAULT_FILE}, or {_REHEARSAL_FILE}.")  # fmt: skip
@click.option("--chip", type=ChipName(),
              help="Chip to rehearse for, or that a device of unknown kind is.")  # fmt: skip
@click.option("--rehearse", is_flag=True,
              help="Run every step on the CPU instead; nothing is measured.")  # fmt: skip
@click.option("--fresh", is_flag=True, help="Start anew; the old file is kept under another name.")
@click.option("--budget", default="1h", show_default=True,
              help="Time after which nothing more is begun, such as 90s, 30m or 2h.")  # fmt: skip
@cache_option
def tpu_check_command(
    path: Path | None, chip: str | None, rehearse: bool, fresh: bool, budget: str, cache: Path
) -> None:
    """Checks whether the TPU of this host is fit for the kernels, and whether predictions hold.

    Four steps: the environment; each kernel family against the float32 reference on the device;
    ten kernels, measured beside their simulated times; an artefact, built, loaded and run. A part
    that fails does not stop the others. The file is written after each part: after an interruption
    the same command goes on. Send the file, or give it to `rpa-tune calibrate`: it has no names of
    hosts or users, and no paths (docs/tpu-check.md).

    A kernel outside its interval is a finding about the simulator and no failure.

    Exit codes: 0 all is well; 1 a part failed or was not run; 2 usage; 130 interrupted.

    Example: rpa-tune tpu-check
    """
    path = path or (_REHEARSAL_FILE if rehearse else _DEFAULT_FILE)
    try:
        report = tpu_check(
            path,
            chip=chip,
            is_rehearsal=rehearse,
            fresh=fresh,
            cache=cache,
            budget_s=parse_seconds(budget, "--budget"),
            watch=_Lines(path),
        )
    except KeyboardInterrupt:
        click.echo(f"interrupted: {path} has what is done; the same command goes on", err=True)
        raise
    _print_result(report, path)
    if not report.ok:
        raise click.exceptions.Exit(1)


class _Lines(CheckWatch):
    """A line on stderr for each part, and one for each step."""

    def __init__(self, path: Path) -> None:
        """Keeps the name of the file."""
        self._path = path
        self._number = 0

    def begin(self, beginning: Beginning) -> None:
        """What is checked, and how long it takes."""
        identity, said = beginning.identity, []
        if identity.is_rehearsal:
            said.append(f"REHEARSAL for {identity.chip} on a CPU: no time here is a measurement")
        if beginning.old is not None:
            said.append(
                f"{self._path} was of something else ({'; '.join(beginning.changed)}): "
                f"it is {beginning.old} now, and this is a new one"
            )
        if beginning.num_kept:
            said.append(f"{beginning.num_kept} parts are known from {self._path}")
        if beginning.seconds:
            minutes = max(1, round(beginning.seconds / 60))
            said.append(f"this takes about {minutes} minutes (a guess); into {self._path}")
        click.echo("\n".join(said), err=True, nl=bool(said))

    def begin_step(self, step: str) -> None:
        """Its number and name."""
        self._number = STEPS.index(step) + 1
        click.echo(f"[{self._number}/{len(STEPS)}] {step}", err=True)

    def part(self, step: str, part: Part) -> None:
        """Outcome, name, what was found, time."""
        del step
        time = "kept" if part.is_kept else f"{part.seconds:.1f} s"
        health = part.figures.get("health", part.outcome.value)
        shown = health if part.outcome is PartOutcome.OK else part.outcome.value
        click.echo(f"  {shown:8} {part.name:43} {part.detail} [{time}]", err=True)
        if part.hint:
            click.echo(f"  {'':8} {'':43} hint: {part.hint}", err=True)

    def end_step(self, step: str, outcome: PartOutcome, seconds: float) -> None:
        """Outcome and time."""
        click.echo(
            f"[{self._number}/{len(STEPS)}] {step}: {outcome.value} [{seconds:.1f} s]", err=True
        )


def _print_result(report: CheckReport, path: Path) -> None:
    """The table of kernels, then what failed."""
    identity = report.identity
    time_of = "CPU us, not measured" if identity.is_rehearsal else "measured us"
    if report.times:
        click.echo(
            f"{'kernel':38}{time_of:>21}{'simulated us':>14}{'interval us':>20}{'error':>9}  "
        )
    for name, times in report.times:
        click.echo(_row(name, times))
    for step in STEPS:
        parts = report.parts[step]
        counts = {outcome: sum(p.outcome is outcome for p in parts) for outcome in PartOutcome}
        said = ", ".join(f"{count} {outcome}" for outcome, count in counts.items() if count)
        click.echo(f"{step}: {said or 'not run'}")
    if identity.is_rehearsal:
        click.echo(f"{path}: a rehearsal; on a TPU host: rpa-tune tpu-check")
    elif report.times:
        click.echo(f"{path}: send it, or fit the simulator to it: rpa-tune calibrate {path}")


def _row(name: str, times: Any) -> str:
    """One kernel of the table."""
    time_us = times.rehearsed_us if times.measured_us is None else times.measured_us
    row = f"{name:38}{time_us:21.1f}"
    if times.simulated is None:
        return f"{row}  not simulated"
    low, high = times.simulated.interval_us
    row += f"{times.simulated.time_us:14.1f}{f'{low:.1f} to {high:.1f}':>20}"
    if times.error is None:
        return row
    return f"{row}{times.error:+9.1%}  {'inside' if times.is_inside else 'outside'}"
