"""`rpa-tune workloads`: what batches configs are judged on, and where they come from."""

import json
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import click
import yaml

from rpa_tune.capture.reader import write_steps
from rpa_tune.cli.numbers import number, number_or_none
from rpa_tune.cli.options import RenamedOption
from rpa_tune.cli.output import print_json
from rpa_tune.cli.workload_words import OPTION_OF_SECTION, hints_name_options
from rpa_tune.cli.workloads_text import print_list, print_summary
from rpa_tune.errors import TraceError, UsageError
from rpa_tune.sweep.nodes import Loader
from rpa_tune.workload.build import build_workload, serve
from rpa_tune.workload.spec import load_presets, overlay, preset_mapping, read_spec
from rpa_tune.workload.summary import (
    distributions,
    steps_of,
    summarise_build,
    summarise_served,
    summarise_workload,
    weights_of,
)
from rpa_tune.workload.trace import TRACES
from rpa_tune.workload.trace_times import UNITS_PER_S
from rpa_tune.workload.turns import TURNS
from rpa_tune.workload.workload import load_stored, mapping_of

Command = TypeVar("Command", bound=Callable[..., None])
JSON_OPTION = click.option("--json", "as_json", is_flag=True, help="Print JSON on stdout.")


def _spec_options(command: Command) -> Command:
    """Options of every command that makes a workload."""
    for option in reversed(
        [
            click.option(
                "--page-size",
                default=128,
                show_default=True,
                type=number("page_size"),
                help="Tokens in a page.",
            ),
            click.option(
                "--knob",
                "knobs",
                cls=RenamedOption,
                old="--engine",
                multiple=True,
                metavar="KEY=VALUE",
                help="Knob of the serving engine; may repeat.",
            ),
            click.option(
                "--arrivals",
                multiple=True,
                metavar="KEY=VALUE",
                help="How requests arrive; may repeat.",
            ),
            click.option("--requests", type=number("requests"), help="Requests to serve."),
            click.option("--seed", type=number("seed"), help="Random seed."),
            click.option("--drop-bad", is_flag=True, help="Skip bad rows and count them."),
            click.option(
                "--time-unit",
                type=click.Choice([*UNITS_PER_S]),
                help="Unit of the trace's times, if the file does not state it.",
            ),
            click.option(
                "--block-tokens",
                type=number("block_tokens"),
                help="Tokens per hash_ids block of the trace.",
            ),
            click.option(
                "--turns",
                type=click.Choice(TURNS),
                help="What the prompt of a later turn contains: all turns before it, too (full), "
                "or only what it adds (new); apart ignores conversation ids.",
            ),
        ]
    ):
        command = option(command)
    return command


@click.group()
def workloads() -> None:
    """Shows, simulates and imports workloads.

    Example: rpa-tune workloads show azure-conv
    """


@workloads.command("list")
@JSON_OPTION
def list_command(as_json: bool) -> None:
    """Lists the presets and the shipped traces.

    Example: rpa-tune workloads list
    """
    presets = {name: preset_mapping(name) for name in load_presets()}
    if as_json:
        print_json({"presets": presets, "traces": sorted(TRACES)})
    else:
        print_list(presets, sorted(TRACES))


@workloads.command()
@click.argument("workload")
@click.option("--batches", type=number("batches"), help="Batches to keep.")
@_spec_options
@JSON_OPTION
@hints_name_options()
def show(workload: str, batches: int | None, as_json: bool, **options: Any) -> None:
    """Shows WORKLOAD: a preset, a trace, a recording, or a stored workload.

    The error of the batches that represent all steps is that of a heuristic kernel time.

    Example: rpa-tune workloads show chat-high --page-size 64
    """
    stored = load_stored(workload)
    if stored:
        summary = {
            **summarise_workload(stored),
            "distributions": distributions(steps_of(stored), weights_of(stored)),
        }
    else:
        changes = _changes(mapping_of(workload), **options)
        if batches:
            changes["compress"] = {"batches": batches}
        spec = _read(workload, changes, options["page_size"])
        summary = summarise_build(build_workload(spec))
    _print(summary, as_json)


@workloads.command()
@click.argument("workload", required=False)
@click.option("--trace", help="Shipped trace or file, served by an engine with default knobs.")
@click.option(
    "--steps", type=click.Path(path_type=Path), help="Write every step to this file, JSON Lines."
)
@click.option("--page-tables", is_flag=True, help="With --steps: also write page tables.")
@_spec_options
@JSON_OPTION
@hints_name_options()
def simulate(
    workload: str | None,
    trace: str | None,
    steps: Path | None,
    page_tables: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Simulates a serving engine on a preset WORKLOAD or a --trace, and reports its launches.

    All steps are counted, including those while the engine fills up and drains.

    Example: rpa-tune workloads simulate --trace azure-conv --requests 10000 --json
    """
    if (workload is None) == (trace is None):
        raise UsageError("give either a WORKLOAD or a --trace")
    base = mapping_of(workload) if workload else {"name": trace, "requests": {"trace": trace}}
    changes = {**_changes(base, **options), "compress": {"steady_state": False}}
    spec = read_spec(
        overlay(base, changes), page_size=options["page_size"], where=workload or f"--trace {trace}"
    )
    started_s = time.monotonic()
    served = serve(spec)
    taken_s = time.monotonic() - started_s
    if steps:
        write_steps(steps, served.steps, block_size=options["page_size"], page_tables=page_tables)
    _print(summarise_served(served), as_json)
    print(f"simulated {served.num_all_steps:,} steps in {taken_s:.1f} s", file=sys.stderr)


@workloads.command("import")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), required=True, help="Workload, JSON."
)
@click.option("--name", help="Name of the workload; the file's by default.")
@click.option(
    "--batches",
    default=16,
    show_default=True,
    type=number_or_none("batches"),
    help="Batches to keep; 0 for all.",
)
@_spec_options
@JSON_OPTION
@hints_name_options()
def import_command(
    file: Path, output: Path, name: str | None, batches: int, as_json: bool, **options: Any
) -> None:
    """Turns a recording of a live engine, or a request trace, into a workload.

    Example: rpa-tune workloads import steps.jsonl -o mine.json
    """
    base = mapping_of(str(file))
    changes = _changes(base, **options)
    changes["compress"] = {"batches": batches}
    changes["name"] = name or file.name
    build = build_workload(_read(str(file), changes, options["page_size"]))
    try:
        output.write_text(json.dumps(build.workload.to_dict()) + "\n", encoding="utf-8")
    except OSError as error:
        raise TraceError(f"workload cannot be written: {error}", where=str(output)) from error
    _print(summarise_build(build), as_json)
    print(f"wrote {output}: use it as `workload: {output}`", file=sys.stderr)


def _read(workload: str, changes: Mapping[str, Any], page_size: int) -> Any:
    mapping = overlay(mapping_of(workload), changes)
    return read_spec(mapping, page_size=page_size, where=f"workload {workload}")


def _changes(
    base: Mapping[str, Any],
    *,
    page_size: int,
    knobs: tuple[str, ...],
    arrivals: tuple[str, ...],
    requests: int | None,
    seed: int | None,
    drop_bad: bool,
    **told: Any,
) -> dict[str, Any]:
    """What the options change in a mapping; `page_size` is no part of it.

    Args:
      base: The mapping.
      page_size: Tokens in a page.
      knobs: `KEY=VALUE`s of the serving engine.
      arrivals: `KEY=VALUE`s.
      requests: Requests to serve.
      seed: Of all that is drawn.
      drop_bad: Whether bad rows are left out.
      **told: What a trace does not say: `time_unit`, `block_tokens`, `turns`.
    """
    source = base["requests"]
    changes: dict[str, Any] = {"requests": {}}
    if requests:
        if "capture" in source:
            raise UsageError("--requests: a recording has steps, not requests")
        changes["requests"]["limit" if "trace" in source else "count"] = requests
    if drop_bad and ("trace" in source or "capture" in source):
        changes["requests"]["drop_bad"] = True
    for key, value in told.items():
        if value is not None and "trace" not in source:
            raise UsageError(f"--{key.replace('_', '-')}: this workload has no trace")
        if value is not None:
            changes["requests"][key] = value
    for section, pairs in (("engine", knobs), ("arrivals", arrivals)):
        if pairs:
            changes[section] = dict(_pair(section, pair) for pair in pairs)
    if seed is not None:
        changes["seed"] = seed
    return changes


def _pair(section: str, text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    option = OPTION_OF_SECTION[section]
    if not equals:
        raise UsageError(f"{option} needs KEY=VALUE, got {text!r}")
    try:
        return key, yaml.load(value, Loader=Loader)
    except (yaml.YAMLError, RecursionError) as error:
        raise UsageError(f"{option} {key} has no value: {value!r}") from error


def _print(summary: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(summary)
    else:
        print_summary(summary)
