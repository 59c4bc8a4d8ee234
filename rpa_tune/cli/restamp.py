"""`rpa-tune tables restamp`: rows that went stale with no change of schedule. No TPU needed."""

import functools
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from rpa_tune.candidate import Correctness, Fidelity, Method
from rpa_tune.cli.output import counted, print_json
from rpa_tune.cli.recheck import (
    EXIT_FINDINGS,
    Lines,
    ask_each,
    choose_rows,
    fetch,
    make_evaluator,
    recompile_options,
)
from rpa_tune.evaluate.evaluator import AbstractEvaluator
from rpa_tune.evaluate.interpreted import InterpretedEvaluator
from rpa_tune.store.journal import Journal
from rpa_tune.sweep import restamp as proof
from rpa_tune.sweep.oracle import Oracle
from rpa_tune.sweep.plan import SweepPlan, load_plan
from rpa_tune.sweep.restamp import Restamp
from rpa_tune.tables.reader import read_table
from rpa_tune.tables.row import TableRow
from rpa_tune.tables.writer import merge_into, require_writable

_CHECK_DEADLINE_S = 600.0  # of one launch under the interpreter, as in `rpa-tune verify`


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--check", "is_dry", is_flag=True, help="Prove, and write nothing.")
@click.option("--no-verify", is_flag=True,
              help="Do not run verified configs under the interpreter again.")  # fmt: skip
@recompile_options
@click.option("--json", "as_json", is_flag=True, help="Print JSON on stdout.")
def restamp(
    folder: Path,
    is_dry: bool,
    no_verify: bool,
    chip: str | None,
    family: str | None,
    plan_files: tuple[Path, ...],
    store_file: Path,
    cache: Path,
    workers: int,
    libtpu_args: str,
    as_json: bool,
) -> None:
    """Gives rows of FOLDER today's kernel digest where the schedules are proven equal.

    For rows that a rename or a comment in a kernel's sources made stale. The configs of a row are
    compiled with the jax and libtpu that the row names, which must be installed; if the schedules
    have the digest that the row keeps, the configs are verified again and the row is written.
    Times and verdicts stay. Any other row is left as it is, with the reason. What was answered is
    in the store: the same command goes on after an interruption.

    Exit codes: 0 no row is stale any more (with --check: would be); 2 usage; 3 rows were left, or
    a table does not parse or cannot be written.

    Example: rpa-tune tables restamp tuned_tables --chip v6e
    """
    plans = [load_plan(file) for file in plan_files]
    rows = choose_rows(folder, chip, family)
    if not is_dry:
        require_writable(folder)
    found: dict[str, Restamp] = {}
    prove = functools.partial(
        _prove_all, plans=plans, workers=workers, verify=not no_verify, libtpu_args=libtpu_args
    )
    for result in prove(rows, store_file=store_file, cache=cache):
        found[result.row.where] = result if is_dry else _write(folder, result)
    results = [found[row.where] for row in rows]
    if as_json:
        print_json({"check": is_dry, "rows": [_to_dict(result) for result in results]})
    else:
        for result in results:
            click.echo(_text(result, is_dry))
        click.echo(_summary(results, is_dry))
    if any(result.findings for result in results):
        raise click.exceptions.Exit(EXIT_FINDINGS)


def make_evaluators(
    workers: int, cache: Path, verify: bool, libtpu_args: str = ""
) -> dict[Method, AbstractEvaluator]:
    """Who compiles and simulates, and who interprets."""
    made: dict[Method, AbstractEvaluator] = {
        Fidelity.SIMULATED: make_evaluator(workers, cache, libtpu_args)
    }
    if verify:
        made[Correctness.INTERPRETED] = InterpretedEvaluator(
            num_workers=workers, deadline_s=_CHECK_DEADLINE_S
        )
    return made


def _prove_all(
    rows: Sequence[TableRow],
    *,
    plans: Sequence[SweepPlan],
    store_file: Path,
    cache: Path,
    workers: int,
    verify: bool,
    libtpu_args: str,
) -> Iterator[Restamp]:
    """What becomes of each row: first of those that need no compiling."""
    todo = []
    for row in rows:
        known = proof.find_obstacle(row)
        if known is None:
            todo.append(row)
        else:
            yield known
    if not todo:
        return
    fetch(todo, cache)
    evaluators = make_evaluators(workers, cache, verify, libtpu_args)
    with Journal(store_file) as journal:
        oracle = Oracle(evaluators=evaluators, journal=journal, watch=Lines(len(todo)))
        prove = functools.partial(
            proof.restamp, oracle=oracle, plans=plans, verify=verify, libtpu_args=libtpu_args
        )
        yield from ask_each(todo, prove, oracle, workers)


def _write(folder: Path, result: Restamp) -> Restamp:
    """Writes a proven row, unless its place was written to since it was read."""
    if result.new is None:
        return result
    path = folder / result.row.key.chip / f"{result.row.key.family}.jsonl"
    now = next((row for row in read_table(path) if row.key == result.row.key), None)
    if now is None or now.to_dict() != result.row.to_dict():
        return proof.left(result.row, "changed", "the table was changed while this ran")
    merge_into(folder, [result.new])
    return result


def _text(result: Restamp, is_dry: bool) -> str:
    """A row on one line, its findings below."""
    if result.new is not None:
        then, now = result.row.evidence, result.new.evidence
        what = f"{_outcome(result, is_dry)}: {then.kernel_digest or '?'} -> {now.kernel_digest}"
        what += f", {counted(len(result.row.configs), 'config')} with the same schedule"
        what += f", {now.verified}" if now.verified else ", not verified"
    else:
        what = _outcome(result, is_dry)
    lines = [f"{finding.rule}: {finding.message}" for finding in result.findings]
    return "\n  ".join([f"{result.row.where}: {what}", *lines])


def _outcome(result: Restamp, is_dry: bool) -> str:
    if result.new is not None:
        return "can be restamped" if is_dry else "restamped"
    return "left" if result.findings else "current"


def _summary(results: Sequence[Restamp], is_dry: bool) -> str:
    outcomes = Counter(_outcome(result, is_dry) for result in results)
    if not results:
        return "no rows: nothing was checked"
    text = ", ".join(f"{count} {outcome}" for outcome, count in sorted(outcomes.items()))
    return f"{counted(len(results), 'row')}: {text}"


def _to_dict(result: Restamp) -> dict[str, Any]:
    row, new = result.row, result.new
    return {
        "where": row.where,
        "chip": row.key.chip,
        "family": row.key.family,
        "key": row.key.to_dict(),
        "outcome": "restamped" if new else "left" if result.findings else "current",
        "kernel_digest_then": row.evidence.kernel_digest,
        "kernel_digest": (new or row).evidence.kernel_digest,
        "schedule_digest": row.evidence.schedule_digest,
        "verified": (new or row).evidence.verified,
        "findings": [asdict(finding) for finding in result.findings],
    }
