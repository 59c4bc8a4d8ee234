"""`tables check --recompile --python ...`: the same rows under several pairs of jax and libtpu.

Each environment runs the very command by itself, with a store of its own; what they answer as JSON
is laid side by side.
"""

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from rpa_tune.cli.output import counted, print_json
from rpa_tune.cli.recheck_write import is_flipped, is_unfit, num_beside, write_found
from rpa_tune.errors import UsageError

_EXIT_FINDINGS = 3
_NOT_PASSED_ON = ("pythons", "as_json", "store_file", "recompile", "does_write")


def passed_on(context: click.Context) -> list[str]:
    """The words of the command that every environment gets: options that were given, and folder."""
    words: list[str] = []
    for param in context.command.params:
        value = context.params.get(param.name or "")
        if param.name in _NOT_PASSED_ON or value in (None, (), ""):
            continue
        name = [] if isinstance(param, click.Argument) else [param.opts[0]]
        for one in value if isinstance(value, tuple) else (value,):
            words += [*name, str(Path(one).resolve() if isinstance(one, Path) else one)]
    return words


def across(
    words: Sequence[str],
    pythons: Sequence[Path],
    store: Path,
    as_json: bool,
    write_to: Path | None = None,
) -> int:
    """Asks in this environment and in each of the others, one after the other, and prints.

    Args:
      words: Of `passed_on`.
      pythons: Interpreters with rpa-tune in their environments.
      store: Each has a file of its own beside it.
      as_json: Print a document, not a table.
      write_to: Table folder whose rows are to carry what was found.

    Returns:
      The command's exit code.

    Raises:
      UsageError: An environment does not answer.
    """
    told = []
    for number, python in enumerate([Path(sys.executable), *pythons]):
        own = store.with_name(f"{store.stem}-{number}{store.suffix}").resolve()
        told.append(_ask(python, [*words, "--store", str(own)]))
        if number == 0:
            continue
        if [row["where"] for row in told[-1]["rows"]] != [row["where"] for row in told[0]["rows"]]:
            raise UsageError("another rpa-tune reads other rows there", where=str(python))
    written = None if write_to is None else write_found(write_to, told)
    if as_json:
        print_json({"pairs": told})
    else:
        _print(told)
        if written is not None:
            click.echo(f"{counted(written, 'row')} changed in {write_to}")
    is_stale = any(row["findings"] for answer in told for row in answer["rows"])
    return _EXIT_FINDINGS if is_stale else 0


def _ask(python: Path, words: Sequence[str]) -> dict[str, Any]:
    """What `tables check --recompile --json` says in an environment; progress is on stderr."""
    command = [str(python), "-P", "-m", "rpa_tune", "tables", "check", "--recompile", "--json"]
    try:
        run = subprocess.run([*command, *words], stdout=subprocess.PIPE, text=True, check=False)
    except OSError as error:
        raise UsageError(f"cannot be run: {error.strerror}", where=f"--python {python}") from error
    if run.returncode not in (0, _EXIT_FINDINGS) or not run.stdout:
        raise UsageError(
            f"the check ended with exit code {run.returncode} there",
            where=f"--python {python}",
            hint="the interpreter of an environment with rpa-tune[tune] of this version; its own "
            "error stands above",
        )
    answer: dict[str, Any] = json.loads(run.stdout)
    return answer


def _print(told: Sequence[Mapping[str, Any]]) -> None:
    """A row of the tables on a line of its own, the pairs below it."""
    for number, row in enumerate(told[0]["rows"]):
        then = row["time_us_then"]
        click.echo(f"{row['where']}: {then:,.1f} us when it was made")
        for answer in told:
            one, installed = answer["rows"][number], answer["versions"]
            pair = f"jax {installed['jax']}, libtpu {installed['libtpu']}"
            click.echo(f"  {pair:34} {_cell(one, then)}")
    rows, pairs = len(told[0]["rows"]), len(told)
    flipped = sum(is_flipped(row) for answer in told for row in answer["rows"])
    unfit = sum(is_unfit(row) for answer in told for row in answer["rows"])
    click.echo(
        f"{counted(rows, 'row')} under {counted(pairs, 'pair')}, simulated: "
        f"{flipped} with another config ahead, {unfit} that do not fit"
    )


def _cell(row: Mapping[str, Any], then_us: float) -> str:
    """Time, change, and whether the row's config is still ahead of those it is asked beside."""
    if row["time_us"] is None:
        return "; ".join(found["message"] for found in row["findings"]) or "not evaluated"
    change = 100 * (row["time_us"] / then_us - 1) + 0.0
    rank = "still best" if num_beside(row) else "nothing to compare with"
    if is_flipped(row):
        rank = "another config is ahead"
    said = [found["message"] for found in row["findings"] if found["rule"] == "rank"]
    detail = f": {'; '.join(said)}" if said else ""
    return f"{row['time_us']:10,.1f} us {change:+6.1f} %  fits, {rank}{detail}"
