"""`rpa-tune audit`: whether a server would find tuned rows, and how to tune what it would not."""

import itertools
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from rpa_tune.analysis.audit import FAIL_ON, Audit, audit, audit_all, traffic
from rpa_tune.analysis.coverage import MOST_LOSS_PCT, Coverage, coverage
from rpa_tune.analysis.held_out import HeldOut, held_out_text, hold_out, worst
from rpa_tune.cli.layers_text import layers_to_dict, print_layers
from rpa_tune.cli.options import NameChoice, libtpu_args_option
from rpa_tune.cli.output import counted, print_json
from rpa_tune.cli.problem_text import problem_text, problem_to_dict
from rpa_tune.cli.server import make_servers, server_options, servers_option, to_words
from rpa_tune.dispatch.audit import Entry
from rpa_tune.dispatch.select import Source
from rpa_tune.errors import UsageError
from rpa_tune.files import write_whole
from rpa_tune.models.padding import padding_note
from rpa_tune.models.server import Server
from rpa_tune.store.journal import read as read_store
from rpa_tune.sweep.plan import load_plan, shipped_plans
from rpa_tune.sweep.plan_for import DEFAULT_WORKLOAD

EXIT_MISSES = 3


@click.command(name="audit")
@server_options(required=False)
@servers_option
@click.option(
    "--tables",
    type=click.Path(path_type=Path),
    help="Tables that take precedence over the shipped ones.",
)
@click.option("--fail-on", type=NameChoice(FAIL_ON), default="heuristic",
              show_default=True, help="Count this coverage, and worse, as misses.")  # fmt: skip
@click.option("--write-plan", type=click.Path(path_type=Path, dir_okay=False),
              help="Write a sweep plan that tunes the misses.")  # fmt: skip
@click.option("--workload", default=DEFAULT_WORKLOAD, show_default=True,
              help="Workload of that plan: a preset or a file.")  # fmt: skip
@click.option("--by-traffic", metavar="WORKLOAD|PLAN",
              help="Also say which share of launches is covered how: under a preset, a file, or "
              "the workload of a sweep plan, such as fleet.")  # fmt: skip
@click.option("--held-out", is_flag=True,
              help="Also hide each third of the chip's shapes in turn, and say what the answers "
              "from the other rows lose.")  # fmt: skip
@click.option("--store", "stores", multiple=True, type=click.Path(path_type=Path, exists=True),
              help="With --held-out: store of a sweep, whose times the rows do not name; "
              "repeatable.")  # fmt: skip
@libtpu_args_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON on stdout.")
def audit_command(
    fleet: Path | None,
    tables: Path | None,
    fail_on: str,
    libtpu_args: str,
    write_plan: Path | None,
    workload: str,
    by_traffic: str | None,
    held_out: bool,
    stores: tuple[Path, ...],
    as_json: bool,
    **options: Any,
) -> None:
    """Lists every table look-up of a server, and where its config comes from.

    A model with several kinds of layers has every look-up once per kind. The options are the
    server's own. Of a file of servers only numbers are printed, by chip and engine, with the models
    that are not covered: those with a look-up that is neither exact nor nearest with an expected
    loss of less than 2 %.

    A heuristic config counts as a miss, because it was never compared with other configs. The loss
    is relative to tuned configs. For a nearest row it is what rows of neighbours so far away lost.
    For a heuristic config it is taken from a row that differs only in its maxima (tokens,
    sequences, context), by a factor of two at most. Without such a row it is unknown.

    Exit codes: 0 every look-up is covered, or the plan was written; 2 usage; 3 there are misses, or
    layers that no kernel serves.

    Example: rpa-tune audit --model llama3-8b --chip v6e --max-num-seqs 64
    """
    if stores and not held_out:
        raise UsageError("--store is for --held-out", hint="add --held-out")
    servers = make_servers(fleet, options)
    if fleet is not None:
        asked = {"--write-plan": write_plan, "--by-traffic": by_traffic, "--held-out": held_out}
        _one_server_only(name for name, value in asked.items() if value)
        audits = audit_all(servers, tables=tables, fail_on=fail_on, libtpu_args=libtpu_args)
        _print_fleet(audits, as_json=as_json)
        return
    found = audit(servers[0], tables=tables, fail_on=fail_on, libtpu_args=libtpu_args)
    command = None
    if found.tunable:
        command = tune_command(found.server, tables, fail_on, workload, libtpu_args)
    more = _Further(
        shares=traffic(found, _workload_of(by_traffic)) if by_traffic else None,
        hidden=_held_out(found, stores) if held_out else None,
    )
    if as_json:
        print_json({**_to_dict(found, command), **more.to_dict()})
    else:
        _print(found, fail_on)
        for line in more.lines():
            click.echo(line)
        if command and write_plan is None:
            click.echo(f"To tune them: {command}")
    if write_plan is not None:
        _write_plan(write_plan, found, workload)
    else:
        _exit(found.ok)


def _exit(is_covered: bool) -> None:
    if not is_covered:
        raise click.exceptions.Exit(EXIT_MISSES)


def _one_server_only(options: Iterable[str]) -> None:
    for name in options:
        raise UsageError(f"{name} is for one server", hint="leave --servers out")


def _print_fleet(audits: Sequence[Audit], *, as_json: bool) -> None:
    """What the look-ups of several servers come to; exits with 3 if there are misses."""
    found = coverage(audits)
    if as_json:
        print_json({"coverage": [one.to_dict() for one in found]})
    else:
        _print_coverage(found)
    _exit(all(one.ok for one in audits))


def _print_coverage(found: Sequence[Coverage]) -> None:
    limit = f"{MOST_LOSS_PCT:g} %"
    click.echo(
        f"{'chip':6}{'engine':15}{'servers':>7}{'models':>8}{'covered':>9}{'exact':>8}"
        f"{'nearest < ' + limit:>15}{'above, unknown':>16}{'heuristic':>11}{'infeasible':>12}"
    )
    for one in found:
        click.echo(
            f"{one.chip:6}{one.engine:15}{one.num_servers:>7}{len(one.models):>8}"
            f"{len(one.covered):>9}{one.exact:>8}{one.near:>15}{one.far:>16}{one.heuristic:>11}"
            f"{one.infeasible:>12}"
        )
    for one in found:
        left = [name for name in one.models if name not in one.covered]
        if left:
            click.echo(f"not covered on {one.chip} in {one.engine}: {', '.join(left)}")


@dataclass(frozen=True, kw_only=True, slots=True)
class _Further:
    """What is said on demand."""

    shares: Mapping[Source, float] | None
    hidden: HeldOut | None

    def to_dict(self) -> dict[str, Any]:
        """Fields of the JSON document, those that were asked for."""
        said: dict[str, Any] = {}
        if self.shares is not None:
            said["by_traffic"] = dict(self.shares)
        if self.hidden is not None:
            said["held_out"] = self.hidden.to_dict()
        return said

    def lines(self) -> list[str]:
        """For people."""
        lines = []
        if self.shares is not None:
            parts = [f"{100 * self.shares.get(source, 0.0):.1f} % {source}" for source in Source]
            lines.append(f"by traffic: {', '.join(parts)}")
        if self.hidden is not None:
            lines += held_out_text(self.hidden)
            for one in worst(self.hidden):
                lines.append(f"  {one.row.where}: {one.loss_pct:.1f} %: {one.why}")
        return lines


def _workload_of(workload: str) -> str | Mapping[str, Any]:
    """A workload, or that of a sweep plan."""
    is_plan = workload in shipped_plans() or Path(workload).suffix in (".yaml", ".yml")
    return load_plan(workload).workload if is_plan else workload


def _held_out(found: Audit, stores: Sequence[Path]) -> HeldOut:
    answers = [answer for store in stores for answer in read_store(store).evaluations]
    return hold_out(found.tables, found.server.chip, answers)


def tune_command(
    server: Server, tables: Path | None, fail_on: str, workload: str, libtpu_args: str = ""
) -> str:
    """The command line that writes a plan for the misses and sweeps it."""
    words: list[object] = ["rpa-tune", "plan", *to_words(server), "--missing"]
    words += ["--tables", tables] if tables else []
    words += ["--fail-on", fail_on] if fail_on != "heuristic" else []
    words += ["--workload", workload] if workload != DEFAULT_WORKLOAD else []
    model = Path(server.model)
    name = (model.parent if model.suffix == ".json" else model).name
    plan = f"{name or 'server'}-{server.chip}.yaml"
    sweep: list[object] = ["rpa-tune", "sweep", plan]
    sweep += ["--tables", tables] if tables else []
    sweep += ["--libtpu-args", libtpu_args] if libtpu_args else []
    first = shlex.join(map(str, [*words, "-o", plan]))
    return f"{first} && {shlex.join(map(str, sweep))}"


def _write_plan(path: Path, found: Audit, workload: str) -> None:
    try:
        text = found.plan_text(workload)
    except UsageError as error:
        error.where = error.where or (str(path) if not found.tunable else "")
        raise
    write_whole(path, text.encode())
    for family, why in found.left_out_of_plan(workload).items():
        click.echo(f"{family} is left out of the plan: {why}", err=True)
    click.echo(f"wrote {path}", err=True)


def _to_dict(found: Audit, command: str | None) -> Mapping[str, Any]:
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
            "loss_worst_pct": entry.loss.worst_pct if entry.loss else None,
            "loss_from": entry.loss.where if entry.loss else None,
        }
        for share, entry in found.found
    ]
    return {
        "entries": listed,
        "counts": found.counts,
        "misses": len(found.misses),
        "other_libtpu_args": dict(found.other_flags),
        "tune_command": command,
        **layers_to_dict(found.server.loaded),
    }


def _print(found: Audit, fail_on: str) -> None:
    """A table for each kind of layers, then what it comes to."""
    server, entries = found.server, found.entries
    print_layers(server.loaded)
    for share, group in itertools.groupby(found.found, lambda pair: pair[0]):
        listed = [entry for _, entry in group]
        problem = listed[0].problem
        click.echo(
            f"{server.model} on {server.chip}, tp {server.tp}, layers {share.name}: "
            f"{problem_text(problem)}, contexts to "
            f"{problem.max_context_tokens:,} tokens"
        )
        if note := padding_note(problem):
            click.echo(f"  {note}")
        width = max(8, 2 + max(len(entry.family) for entry in listed))
        click.echo(f"{'tokens':>7}{'seqs':>6}  {'family':{width}}{'coverage':11}{'loss %':>9}  why")
        for entry in listed:
            click.echo(
                f"{entry.problem.max_num_tokens:>7}{entry.problem.max_num_seqs:>6}  "
                f"{entry.family:{width}}{entry.coverage:11}{_loss_text(entry):>9}  "
                f"{_why_text(entry)}"
            )
    summary = ", ".join(f"{found.counts[coverage]} {coverage}" for coverage in Source)
    click.echo(
        f"{len(entries)} look-ups: {summary}; {len(found.misses)} misses (--fail-on {fail_on})"
    )
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
    for other, count in found.other_flags.items():
        click.echo(f"{counted(count, 'look-up')} would use a row that was {other}.")


def _loss_text(entry: Entry) -> str:
    if entry.coverage is Source.INFEASIBLE:
        return "-"
    if entry.expected_loss_pct is None:
        return "unknown"
    error = f"±{entry.loss.error_pct:g}" if entry.loss else ""
    return f"{entry.expected_loss_pct:.1f}{error}"


def _why_text(entry: Entry) -> str:
    # Of a nearest row `why` says it already.
    is_said = entry.loss is None or entry.coverage is Source.NEAREST
    loss = "" if is_said or entry.loss is None else f"; loss as in {entry.loss.where}"
    stale = "; made with other kernels" if entry.is_stale else ""
    untested = "; no other config had a time" if entry.is_untested else ""
    return f"{entry.why}{stale}{untested}{loss}"
