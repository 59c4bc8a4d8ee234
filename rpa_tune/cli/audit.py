"""`rpa-tune audit`: whether a server would find tuned rows, and how to tune what it would not."""

import itertools
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from rpa_tune.cli.audit_plan import left_out_of_plan, plan_text
from rpa_tune.cli.layers_text import layers_to_dict, print_layers
from rpa_tune.cli.options import Choice
from rpa_tune.cli.output import counted, print_json
from rpa_tune.cli.problem_text import problem_text, problem_to_dict
from rpa_tune.cli.server import Server, server_options
from rpa_tune.dispatch.audit import Coverage, Entry, audit
from rpa_tune.dispatch.dispatcher import load_dispatcher
from rpa_tune.errors import UsageError
from rpa_tune.files import write_whole
from rpa_tune.models import Share
from rpa_tune.padding import padding_note

EXIT_MISSES = 3
DEFAULT_WORKLOAD = "azure-conv"
# From which coverage on a look-up is not covered.
_FAIL_ON = {
    "nearest": {Coverage.NEAREST, Coverage.HEURISTIC, Coverage.INFEASIBLE},
    "heuristic": {Coverage.HEURISTIC, Coverage.INFEASIBLE},
    "infeasible": {Coverage.INFEASIBLE},
}


@click.command(name="audit")
@server_options
@click.option(
    "--tables",
    type=click.Path(path_type=Path),
    help="Tables that take precedence over the shipped ones.",
)
@click.option("--fail-on", type=Choice(_FAIL_ON), default="heuristic",
              show_default=True, help="Count this coverage, and worse, as misses.")  # fmt: skip
@click.option("--write-plan", type=click.Path(path_type=Path, dir_okay=False),
              help="Write a sweep plan that tunes the misses.")  # fmt: skip
@click.option("--workload", default=DEFAULT_WORKLOAD, show_default=True,
              help="Workload of that plan: a preset or a file.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print JSON on stdout.")
def audit_command(
    tables: Path | None,
    fail_on: str,
    write_plan: Path | None,
    workload: str,
    as_json: bool,
    **options: Any,
) -> None:
    """Lists every table look-up of a server, and where its config comes from.

    A model with several kinds of layers has every look-up once per kind. The options are the
    server's own.

    A heuristic config counts as a miss, because it was never compared with other configs. The loss
    is relative to tuned configs. For a heuristic config it is taken from a row that differs only in
    its maxima (tokens, sequences, context), by a factor of two at most. Without such a row it is
    unknown.

    Exit codes: 0 every look-up is covered, or the plan was written; 2 usage; 3 there are misses, or
    layers that no kernel serves.

    Example: rpa-tune audit --model llama3-8b --chip v6e --max-num-seqs 64
    """
    server = Server(**options)
    dispatcher = load_dispatcher(server.chip, tables)
    found: list[tuple[Share, Entry]] = []
    for share in server.layers():
        buckets = (bucket.problem for bucket in server.engine.buckets(share.problem))
        entries = audit(dispatcher, buckets, server.engine.families)
        found += [(share, entry) for entry in entries]
    misses = [entry for _, entry in found if entry.coverage in _FAIL_ON[fail_on]]
    command = tune_command(server, tables, fail_on, workload) if _tunable(misses) else None
    if as_json:
        print_json(_to_dict(server, found, misses, command))
    else:
        _print(server, found, misses, fail_on)
        if command and write_plan is None:
            click.echo(f"To tune them: {command}")
    if write_plan is not None:
        _write_plan(write_plan, server, _tunable(misses), workload)
    elif misses or server.loaded.unserved:
        raise click.exceptions.Exit(EXIT_MISSES)


def _tunable(misses: Sequence[Entry]) -> list[Entry]:
    """Those that a sweep can do something about."""
    return [entry for entry in misses if entry.coverage is not Coverage.INFEASIBLE]


def tune_command(server: Server, tables: Path | None, fail_on: str, workload: str) -> str:
    """The command line that writes a plan for the misses and sweeps it."""
    words: list[object] = ["rpa-tune", "audit", *server.to_words()]
    words += ["--tables", tables] if tables else []
    words += ["--fail-on", fail_on] if fail_on != "heuristic" else []
    words += ["--workload", workload] if workload != DEFAULT_WORKLOAD else []
    model = Path(server.model)
    name = (model.parent if model.suffix == ".json" else model).name
    plan = f"{name or 'server'}-{server.chip}.yaml"
    sweep: list[object] = ["rpa-tune", "sweep", plan]
    sweep += ["--tables", tables] if tables else []
    first = shlex.join(map(str, [*words, "--write-plan", plan]))
    return f"{first} && {shlex.join(map(str, sweep))}"


def _write_plan(path: Path, server: Server, misses: list[Entry], workload: str) -> None:
    if not misses:
        raise UsageError("nothing to tune: no plan is written", where=str(path))
    text, left_out = plan_text(server, misses, workload), left_out_of_plan(server, misses, workload)
    write_whole(path, text.encode())
    for family, why in left_out.items():
        click.echo(f"{family} is left out of the plan: {why}", err=True)
    click.echo(f"wrote {path}", err=True)


def _to_dict(
    server: Server,
    found: Sequence[tuple[Share, Entry]],
    misses: Sequence[Entry],
    command: str | None,
) -> Mapping[str, Any]:
    listed = [
        {
            "family": entry.family,
            "num_tokens": entry.problem.max_num_tokens,
            "num_seqs": entry.problem.max_num_seqs,
            "layers": share.name,
            **problem_to_dict(entry.problem),
            "coverage": entry.coverage,
            "why": entry.why,
            "distance": entry.distance,
            "is_stale": entry.is_stale,
            "is_untested": entry.is_untested,
            "expected_loss_pct": entry.expected_loss_pct,
            "loss_error_pct": entry.loss.error_pct if entry.loss else None,
            "loss_from": entry.loss.where if entry.loss else None,
        }
        for share, entry in found
    ]
    return {
        "entries": listed,
        "counts": Counter(entry.coverage for _, entry in found),
        "misses": len(misses),
        "tune_command": command,
        **layers_to_dict(server.loaded),
    }


def _print(
    server: Server,
    found: Sequence[tuple[Share, Entry]],
    misses: Sequence[Entry],
    fail_on: str,
) -> None:
    """A table for each kind of layers, then what it comes to."""
    print_layers(server.loaded)
    entries = [entry for _, entry in found]
    for share, group in itertools.groupby(found, lambda pair: pair[0]):
        listed = [entry for _, entry in group]
        problem = listed[0].problem
        click.echo(
            f"{server.model} on {server.chip}, tp {server.tp}, layers {share.name}: "
            f"{problem_text(problem)}, contexts to "
            f"{problem.max_context_tokens:,} tokens"
        )
        if note := padding_note(problem):
            click.echo(f"  {note}")
        click.echo(f"{'tokens':>7}{'seqs':>6}  {'family':8}{'coverage':11}{'loss %':>9}  why")
        for entry in listed:
            click.echo(
                f"{entry.problem.max_num_tokens:>7}{entry.problem.max_num_seqs:>6}  "
                f"{entry.family:8}{entry.coverage:11}{_loss_text(entry):>9}  {_why_text(entry)}"
            )
    counts = Counter(entry.coverage for entry in entries)
    summary = ", ".join(f"{counts[coverage]} {coverage}" for coverage in Coverage)
    click.echo(f"{len(entries)} look-ups: {summary}; {len(misses)} misses (--fail-on {fail_on})")
    if unknown := sum(entry.expected_loss_pct is None for entry in entries):
        click.echo(
            f"The loss of {counted(unknown, 'look-up')} is not known: "
            "no comparable row of today's kernels."
        )
    if stale := sum(entry.is_stale for entry in entries):
        click.echo(
            f"{counted(stale, 'look-up')} would use a row that was made with other kernels: "
            "rpa-tune tables check --recompile"
        )


def _loss_text(entry: Entry) -> str:
    if entry.coverage is Coverage.INFEASIBLE:
        return "-"
    if entry.expected_loss_pct is None:
        return "unknown"
    error = f"±{entry.loss.error_pct:g}" if entry.loss else ""
    return f"{entry.expected_loss_pct:.1f}{error}"


def _why_text(entry: Entry) -> str:
    loss = f"; loss as in {entry.loss.where}" if entry.loss else ""
    stale = "; made with other kernels" if entry.is_stale else ""
    untested = "; no other config had a time" if entry.is_untested else ""
    return f"{entry.why}{stale}{untested}{loss}"
