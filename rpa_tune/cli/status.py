"""`rpa-tune status`: what a store holds, while a sweep writes to it or long after."""

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import click

from rpa_tune.candidate import Evaluation, Fidelity
from rpa_tune.cli.main import print_json
from rpa_tune.errors import StoreError
from rpa_tune.store import journal


@click.command()
@click.argument("store_file", metavar="STORE", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print JSON on stdout.")
def status(store_file: Path, as_json: bool) -> None:
    """Summarises STORE by study: answers, failures, best time. Never blocks a running sweep.

    Exit codes: 0 done; 1 no such store, or not a store.

    Example: rpa-tune status .rpa-tune/quickstart.jsonl
    """
    if not store_file.is_file():
        raise StoreError("no such store", where=str(store_file))
    contents = journal.read(store_file)
    checks = [e for e in contents.evaluations if e.fidelity is Fidelity.INTERPRETED]
    others = [e for e in contents.evaluations if e.fidelity is not Fidelity.INTERPRETED]
    studies = [_summarize(name, group) for name, group in _by_study(others)]
    verified = dict(Counter(check.status.value for check in checks))
    running = journal.has_writer(store_file)
    if as_json:
        print_json(
            {
                "running": running,
                "answers": len(contents.evaluations),
                "damaged_lines": list(contents.damaged_lines),
                "studies": studies,
                "verified": verified,
            }
        )
        return
    for study in studies:
        statuses = ", ".join(f"{count} {name}" for name, count in study["statuses"].items())
        best = "no time yet" if study["best_us"] is None else f"best {study['best_us']:,.1f} us"
        click.echo(
            f"{study['study']}: {study['analytical']:,} bounds, {study['evaluated']:,} evaluated "
            f"({statuses or 'none'}), {best}, last answer {study['last']}"
        )
    if verified:
        counts = ", ".join(f"{count} {name}" for name, count in verified.items())
        click.echo(f"configs verified under the interpreter: {counts}")
    damaged = f", {len(contents.damaged_lines)} lines unreadable" if contents.damaged_lines else ""
    state = "a sweep is writing" if running else "no sweep is writing"
    click.echo(f"{len(contents.evaluations):,} answers{damaged}; {state}")


def _by_study(evaluations: Iterable[Evaluation]) -> list[tuple[str, list[Evaluation]]]:
    """Answers about one family, problem, chip and workload, in order of appearance."""
    groups: dict[Any, list[Evaluation]] = {}
    for evaluation in evaluations:
        candidate = evaluation.candidate
        key = (candidate.chip, candidate.family, candidate.problem, candidate.workload)
        groups.setdefault(key, []).append(evaluation)
    named = []
    for (chip, family, problem, workload), group in groups.items():
        shape = f"{problem.num_q_heads}/{problem.num_kv_heads} heads of {problem.head_dim}"
        name = f"{chip}/{family}, {shape}, {problem.kv_dtype}, page {problem.page_size}, {workload}"
        named.append((name, group))
    return named


def _summarize(name: str, group: list[Evaluation]) -> dict[str, Any]:
    dear = [e for e in group if e.fidelity is not Fidelity.ANALYTICAL]
    times = [e.time_us for e in dear if e.time_us is not None]
    return {
        "study": name,
        "analytical": len(group) - len(dear),
        "evaluated": len(dear),
        "statuses": dict(Counter(e.status.value for e in dear)),
        "best_us": min(times, default=None),
        "last": max((str(e.provenance.get("time", "")) for e in group), default=""),
    }
