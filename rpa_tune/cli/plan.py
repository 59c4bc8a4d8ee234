"""`rpa-tune plan`: from a server's flags to a plan that tunes every call it compiles."""

import shlex
from pathlib import Path
from typing import Any

import click

from rpa_tune.analysis.audit import FAIL_ON, audit_all
from rpa_tune.cli.numbers import number
from rpa_tune.cli.options import NameChoice
from rpa_tune.cli.output import print_json
from rpa_tune.cli.server import make_servers, server_options, servers_option
from rpa_tune.errors import UsageError
from rpa_tune.files import write_whole
from rpa_tune.models.server import Server
from rpa_tune.sweep.plan_for import (
    DEFAULT_WORKLOAD,
    KERNELS,
    ServerPlan,
    families_of_kernel,
    plan_for,
    summary,
)
from rpa_tune.sweep.run import num_cores


@click.command(name="plan")
@server_options(required=False)
@servers_option
@click.option("--kernel", type=NameChoice(("ours", *KERNELS)), default="ours", show_default=True,
              help="Whose kernels to tune: ours, or what the engine itself runs.")  # fmt: skip
@click.option("--workload", default=DEFAULT_WORKLOAD, show_default=True,
              help="What the server serves: a preset or a file.")  # fmt: skip
@click.option("--simulate", type=number("simulate"),
              help="Configs of each study that are simulated; default: 20.")  # fmt: skip
@click.option("--missing", is_flag=True, help="Plan only what the tables lack; see audit.")
@click.option("--tables", type=click.Path(path_type=Path),
              help="With --missing: tables that precede the shipped ones.")  # fmt: skip
@click.option("--fail-on", type=NameChoice(FAIL_ON), default="heuristic", show_default=True,
              help="With --missing: count this coverage, and worse, as missing.")  # fmt: skip
@click.option("--workers", type=number("workers"),
              help="Workers that the sweep will have; default: one per core.")  # fmt: skip
@click.option("-o", "--output", type=click.Path(path_type=Path, dir_okay=False),
              help="File to write; default: standard output.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True,
              help="Print the plan and its numbers as JSON on stdout.")  # fmt: skip
def plan_command(
    fleet: Path | None,
    kernel: str,
    workload: str,
    simulate: int | None,
    missing: bool,
    tables: Path | None,
    fail_on: str,
    workers: int | None,
    output: Path | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Writes a sweep plan for every attention call that a server compiles.

    The options are the server's own. The plan covers all token and sequence buckets by the rules
    of the engine, and every kind of layers of the model; each problem is in it once. It is ready
    for `rpa-tune sweep`. Everything but the plan goes to standard error.

    Exit codes: 0 the plan is written; 2 usage.

    Example: rpa-tune plan --model llama3-8b --chip v6e --max-num-seqs 64 -o chat.yaml
    """
    servers = make_servers(fleet, options)
    families = None
    if kernel != "ours":
        if missing:
            raise UsageError(
                "--missing looks our own kernels up", hint=f"leave it out with --kernel {kernel}"
            )
        families = families_of_kernel(servers, kernel)
    if missing:
        servers, families = _missing(servers, tables, fail_on)
    made = plan_for(
        servers,
        workload=workload,
        families=families,
        search={"simulate": simulate} if simulate else None,
        num_workers=workers or num_cores(),
    )
    for line in summary(made):
        click.echo(line, err=True)
    if as_json:
        print_json(_to_dict(made))
    if output is not None:
        write_whole(output, made.text.encode())
        click.echo(f"wrote {output}; run it: {shlex.join(['rpa-tune', 'sweep', str(output)])}",
                   err=True)  # fmt: skip
    elif not as_json:
        click.echo(made.text, nl=False)


def _missing(
    servers: tuple[Server, ...], tables: Path | None, fail_on: str
) -> tuple[tuple[Server, ...], list[str]]:
    """Of each server the shapes that have misses, and the families that do."""
    found = audit_all(servers, tables=tables, fail_on=fail_on)
    families = {entry.family for each in found for entry in each.tunable}
    if not families:
        raise UsageError("nothing is missing: no plan is written")
    return tuple(each.missing for each in found if each.tunable), sorted(families)


def _to_dict(made: ServerPlan) -> dict[str, Any]:
    return {
        "plan": made.text,
        "servers": [server.flags for server in made.servers],
        "studies": [
            {
                "study": study.name,
                "family": study.family.name,
                "rows": 1 + len(study.fills),
                "compiles_at_most": made.most_compiles(study),
            }
            for study in made.studies
        ],
        "rows": made.num_rows,
        "compiles_at_most": made.num_compiles,
        "seconds": made.seconds,
        "left_out": dict(made.left_out),
    }
