"""`rpa-tune doctor`: can this machine tune, and if not, how to fix it."""

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import click

from rpa_tune.check.host import Check, Health, check_schedules, run_checks
from rpa_tune.cli.options import ChipName
from rpa_tune.cli.output import print_json
from rpa_tune.compile.paths import default_cache_dir
from rpa_tune.hw.chip import load_chips

_FIRST = "v6e"


@click.command()
@click.option("--chip", type=ChipName(), help="Chip for the trial compiles; default: all.")
@click.option(
    "--cache",
    type=click.Path(path_type=Path),
    default=default_cache_dir,
    help="Folder of compiles to check; default: the user's cache folder.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON on stdout.")
def doctor(chip: str | None, cache: Path, as_json: bool) -> None:
    """Checks versions, disk, memory, and compiles for chips that are not attached.

    A small kernel is compiled for every chip, and its schedule read. For the first chip the compile
    runs twice: in the environment of a sweep's workers, and in that of your shell.

    Exit code 1 when there is a problem; each problem comes with a hint.

    Example: rpa-tune doctor
    """
    checks: list[Check] = []
    for check in _checks(chip, cache):
        checks.append(check)
        if not as_json:
            _print_check(check)
    problems = [check.name for check in checks if check.health is Health.PROBLEM]
    if as_json:
        print_json({"ok": not problems, "checks": [asdict(check) for check in checks]})
    else:
        click.echo(f"problems: {', '.join(problems)}" if problems else "no problems found")
    if problems:
        raise click.exceptions.Exit(1)


def _checks(chip: str | None, cache: Path) -> Iterator[Check]:
    """All checks; the other chips are left out where the first compile fails."""
    works = True
    for check in run_checks(chip or _FIRST, cache, only=chip is not None):
        works &= check.name != "compile" or check.health is not Health.PROBLEM
        yield check
    if chip is None and works:
        yield from check_schedules([name for name in load_chips() if name != _FIRST], cache)


def _print_check(check: Check) -> None:
    click.echo(f"{check.health.value:8} {check.name:24} {check.found}")
    if check.advice:
        click.echo(f"{'':8} {'':24} hint: {check.advice}")
