"""`rpa-tune audit`: whether a server would find tuned rows."""

from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from rpa_tune.cli.layers_text import layers_to_dict, print_layers
from rpa_tune.cli.main import print_json
from rpa_tune.cli.server import Server, server_options
from rpa_tune.dispatch.audit import Coverage, Entry, audit
from rpa_tune.dispatch.dispatcher import load_dispatcher
from rpa_tune.models import Share

EXIT_MISSES = 3
# From which coverage on a bucket counts as missed.
_FAIL_ON = {
    "nearest": {Coverage.NEAREST, Coverage.HEURISTIC, Coverage.INFEASIBLE},
    "heuristic": {Coverage.HEURISTIC, Coverage.INFEASIBLE},
    "infeasible": {Coverage.INFEASIBLE},
}


@click.command(name="audit")
@server_options
@click.option("--tables", type=click.Path(path_type=Path), help="Laid over the shipped tables.")
@click.option("--fail-on", type=click.Choice(sorted(_FAIL_ON)), default="infeasible",
              show_default=True, help="Least coverage that counts as a miss.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print JSON on stdout.")
def audit_command(tables: Path | None, fail_on: str, as_json: bool, **options: Any) -> None:
    """Lists every bucket a server compiles, and where its configs would come from.

    A model with several kinds of layers has every bucket once for each kind.

    The options are the server's own. An expected loss is what tuning gained, on average, where it
    was done on this chip; `-` when no row can tell.

    Exit codes: 0 every bucket is covered; 2 usage; 3 misses, or layers that no kernel serves.

    Example: rpa-tune audit --model llama3-8b --chip v6e --max-num-seqs 64 --fail-on heuristic
    """
    server = Server(**options)
    dispatcher = load_dispatcher(server.chip, tables)
    entries: list[tuple[Share, Entry]] = []
    for share in server.layers():
        buckets = (bucket.problem for bucket in server.engine.buckets(share.problem))
        found = audit(dispatcher, buckets, server.engine.families)
        entries += [(share, entry) for entry in found]
    misses = [entry for _, entry in entries if entry.coverage in _FAIL_ON[fail_on]]
    model = server.loaded
    if as_json:
        listed = [
            {"window": share.problem.sliding_window, "layers": share.name, **asdict(entry)}
            for share, entry in entries
        ]
        counts = Counter(entry.coverage for _, entry in entries)
        print_json({
            "entries": listed, "counts": counts, "misses": len(misses), **layers_to_dict(model),
        })  # fmt: skip
    else:
        print_layers(model)
        _print(entries, misses, fail_on)
    if misses or model.unserved:
        raise click.exceptions.Exit(EXIT_MISSES)


def _print(entries: list[tuple[Share, Entry]], misses: list[Entry], fail_on: str) -> None:
    width = max(len("layers"), *(len(share.name) for share, _ in entries))
    click.echo(
        f"{'tokens':>7}{'seqs':>6}  {'layers':{width}}  {'family':8}{'coverage':11}{'loss %':>7}"
        "  why"
    )
    for share, entry in entries:
        loss = "-" if entry.expected_loss_pct is None else f"{entry.expected_loss_pct:.1f}"
        click.echo(
            f"{entry.num_tokens:>7}{entry.num_seqs:>6}  {share.name:{width}}  {entry.family:8}"
            f"{entry.coverage:11}{loss:>7}  {entry.why}"
        )
    counts = Counter(entry.coverage for _, entry in entries)
    summary = ", ".join(f"{counts[coverage]} {coverage}" for coverage in Coverage)
    click.echo(f"{len(entries)} look-ups: {summary}; {len(misses)} misses (--fail-on {fail_on})")
