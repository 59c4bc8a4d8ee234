"""`rpa-tune status`: what a store holds, while a sweep writes to it or long after."""

import contextlib
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.live import Live
from rich.text import Text

from rpa_tune.cli.numbers import number
from rpa_tune.cli.output import print_json
from rpa_tune.errors import UsageError
from rpa_tune.sweep.agreement import Agreement
from rpa_tune.sweep.result import NO_COMPARISON, NOTHING_WORKS
from rpa_tune.sweep.status import read_status

_NUMBER = re.compile(r"\d[\d,]*(\.\d+)?")


@click.command()
@click.argument("store_file", metavar="STORE", type=click.Path(path_type=Path))
@click.option("--stops", is_flag=True,
              help="Also print why candidates were dropped, grouped by reason.")  # fmt: skip
@click.option(
    "--watch",
    is_flag=True,
    help="Show it again and again until no sweep is writing; Ctrl-C ends it.",
)
@click.option(
    "--interval",
    default=2.0,
    show_default=True,
    type=number("interval"),
    help="Seconds between two looks of --watch.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON on stdout.")  # fmt: skip
def status(store_file: Path, stops: bool, watch: bool, interval: float, as_json: bool) -> None:
    """Summarises STORE and its shards by study. Never blocks a running sweep.

    Shows results and failures, the best time relative to the heuristic's, why candidates were
    dropped, the maximum number of evaluations left, and the time they will take at the current
    rate. With --json every dropped candidate is listed.

    Exit codes: 0 done; 1 no such store, or not a store; 2 usage.

    Example: rpa-tune status .rpa-tune/quickstart.jsonl
    """
    if watch and as_json:
        raise UsageError(
            "--watch is for people, --json for programs",
            hint="rpa-tune sweep --json tells a program of every answer as it comes",
        )
    if watch:
        _watch(store_file, with_stops=stops, interval_s=interval)
        return
    document = read_status(store_file).to_dict(with_stops=stops or as_json)
    if as_json:
        print_json(document)
        return
    for line in _lines(document):
        click.echo(line)


def _watch(store_file: Path, *, with_stops: bool, interval_s: float) -> None:
    """Shows the store until nobody writes to it any more; what was shown last stays."""
    console = Console(highlight=False, soft_wrap=False)
    # Nothing is drawn on what is no terminal: there the last look alone is printed.
    with contextlib.suppress(KeyboardInterrupt), Live(console=console, auto_refresh=False) as live:
        while True:
            document = read_status(store_file).to_dict(with_stops=with_stops)
            live.update(Text("\n".join(_glance(document))), refresh=True)
            if not document["running"]:
                return
            time.sleep(interval_s)


def _glance(document: Mapping[str, Any]) -> Iterator[str]:
    """The same, what changes first: a terminal shows the top of what is too long for it."""
    yield _overall_text(document)
    for study in sorted(document["studies"], key=lambda each: each["verdict"] is not None):
        yield from _study_lines(study)


def _lines(document: Mapping[str, Any]) -> Iterator[str]:
    """What is printed of a store."""
    for study in document["studies"]:
        yield from _study_lines(study)
    if document["verified"]:
        counts = ", ".join(f"{count} {name}" for name, count in document["verified"].items())
        yield f"configs verified under the interpreter: {counts}"
    yield _overall_text(document)


def _study_lines(study: Mapping[str, Any]) -> Iterator[str]:
    statuses = ", ".join(f"{count} {name}" for name, count in study["statuses"].items())
    name = study["study"]
    if study["name"] and study["name"] != name:
        name = f"{study['name']} ({name})"
    parts = [
        f"{study['evaluated']:,} evaluated ({statuses or 'none'})",
        _best_text(study),
    ]
    if study["verdict"] is not None:
        parts.append(study["verdict"] or _why_none(study))
    elif study["evaluations_left"] is not None:
        parts.append(f"at most {study['evaluations_left']} left")
    parts += [f"last answer {study['last']}"] if study["last"] else []
    if study["of_other_versions"]:
        parts.append(f"{study['of_other_versions']:,} of other versions left out")
    yield f"{name}: {', '.join(parts)}"
    if study["padding"]:
        yield f"  {study['padding']}"
    if study["stopped"]:
        counts = ", ".join(f"{count:,} {reason}" for reason, count in study["stopped"].items())
        yield f"  stopped: {counts}"
    if study["agreement"]:
        yield f"  {Agreement(**study['agreement'])}"
    for line in _stop_lines(study.get("stops", ())):
        yield f"  {line}"


def _stop_lines(stops: Sequence[Mapping[str, Any]]) -> list[str]:
    """One line for the stops of one reason whose details differ at most in their numbers."""
    alike: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for stop in stops:
        alike.setdefault((stop["reason"], _NUMBER.sub("#", stop["detail"])), []).append(stop)
    lines = []
    for (reason, _), group in sorted(alike.items(), key=lambda item: -len(item[1])):
        first = group[0]
        config = ", ".join(f"{field}={value}" for field, value in first["config"].items())
        if len(group) == 1:
            lines.append(f"{reason}: {config}: {first['detail']}")
        elif len({stop["detail"] for stop in group}) == 1:
            lines.append(f"{reason}: {len(group):,} configs: {first['detail']}")
        else:
            example = f"for example {config}: {first['detail']}"
            lines.append(f"{reason}: {len(group):,} configs, {example}")
    return lines


def _why_none(study: Mapping[str, Any]) -> str:
    if study["best_us"] is not None and study["heuristic_us"] is None:
        return NO_COMPARISON
    if not study["measured"]:
        return NOTHING_WORKS
    counts = ", ".join(f"{count} {name}" for name, count in study["measured"].items())
    return f"{NOTHING_WORKS} on the device ({counts})"


def _best_text(study: Mapping[str, Any]) -> str:
    if study["best_us"] is None:
        return "no time yet"
    text = f"best {study['best_us']:,.1f} us {study['fidelity']}"
    if study["heuristic_us"]:
        text += f" ({study['heuristic_us'] / study['best_us']:.2f}x the heuristic)"
    return text


def _overall_text(document: Mapping[str, Any]) -> str:
    damaged = document["damaged_lines"]
    parts = [f"{document['answers']:,} results"]
    parts[0] += f", {len(damaged)} lines unreadable" if damaged else ""
    if len(document["files"]) > 1:
        parts[0] += f" in {len(document['files'])} files"
    if any(study["name"] or study["verdict"] is not None for study in document["studies"]):
        parts.append(f"{document['studies_finished']} of {len(document['studies'])} studies ended")
    if document["evaluations_left"]:
        text = f"at most {document['evaluations_left']:,} evaluations left"
        if document["left_s"] is not None:
            minute = 60 * document["rate_per_s"]
            text += f", about {document['left_s']:,} s at {minute:.1f} a minute"
        parts.append(text)
    writers = ", ".join(document["writers"])
    parts.append(f"a sweep is writing {writers}" if writers else "no sweep is writing")
    return "; ".join(parts)
