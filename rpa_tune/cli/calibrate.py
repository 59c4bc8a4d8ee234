"""`rpa-tune calibrate`: fits a chip's machine parameters to measured times."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
import yaml

from rpa_tune.candidate import Evaluation
from rpa_tune.check import evidence
from rpa_tune.check.record import CheckReport, is_report, read_report
from rpa_tune.cli.numbers import number
from rpa_tune.cli.options import ChipName
from rpa_tune.cli.output import print_json
from rpa_tune.cli.workload_words import say_sources
from rpa_tune.compile.paths import default_cache_dir
from rpa_tune.compile.pool import WorkerPool
from rpa_tune.errors import UsageError
from rpa_tune.evaluate.observations import measured_answers, observe
from rpa_tune.interop.measured_rows import Recordings, call_digest, is_lines, load_lines
from rpa_tune.interop.records import load_records, schedules
from rpa_tune.llo.calibrate import Fit, Observation, fit
from rpa_tune.llo.machine import Machine, load_machine
from rpa_tune.llo.simulate import record as llo_record
from rpa_tune.store import journal as store
from rpa_tune.store.shards import find_shards
from rpa_tune.sweep.plan import load_plan
from rpa_tune.sweep.study import build_studies
from rpa_tune.workload.workload import Workload

DEFAULT_PARAMETERS = (
    "read_linear_bytes_per_s",
    "read_strided_bytes_per_s",
    "read_fixed_cycles",
    "read_latency_cycles",
    "matmul_latency_bf16_cycles",
    "matmul_latency_f32_cycles",
    "launch_us",
)


@click.command()
@click.argument("records", type=click.Path(path_type=Path))
@click.option("--chip", type=ChipName(),
              help="Chip to fit: v5e, v6e, v7x, ...; a check's file names its own.")  # fmt: skip
@click.option("--plan", type=click.Path(path_type=Path),
              help="Plan of the sweep; required with a store.")  # fmt: skip
@click.option("--recordings", type=click.Path(path_type=Path),
              help="Archive of what the calls do; required with measured rows.")  # fmt: skip
@click.option("--batches", default=3, show_default=True, type=number("batches"),
              help="Launches per measured candidate of a store.")  # fmt: skip
@click.option(
    "--parameter",
    "parameters",
    multiple=True,
    help=f"Parameter to fit; may repeat. Default: {', '.join(DEFAULT_PARAMETERS)}.",
)
@click.option("--output", type=click.Path(path_type=Path), help="Write the fitted rows as YAML.")
@click.option(
    "--workers", default=1, show_default=True, type=number("workers"), help="Worker processes."
)
@click.option(
    "--cache",
    type=click.Path(path_type=Path),
    default=default_cache_dir() / "fidelity",
    help="Folder for the public wheel and the schedules.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON on stdout.")
def calibrate(
    records: Path,
    chip: str | None,
    plan: Path | None,
    recordings: Path | None,
    batches: int,
    parameters: tuple[str, ...],
    output: Path | None,
    workers: int,
    cache: Path,
    as_json: bool,
) -> None:
    """Fits machine parameters to the measured times in RECORDS.

    RECORDS is one of four things: what `rpa-tune tpu-check` wrote on a TPU host; the store of a
    sweep that measured, with the sweep's --plan; a file in the form of
    benchmarks/data/measured_rpa.json, with times of the public v3 kernel on your TPU, of which only
    device times are used; or one in the form of measured_rpa_2.jsonl beside it, of kernels that no
    package has, with --recordings of these calls (recordings.zip beside it).

    Kernels are compiled again here. What comes out as another schedule than the one that was
    measured, because sources or versions are others, is left out.

    The fitted rows belong in rpa_tune/llo/machines.yaml. Parameters that the records do not
    determine stay near their old values.

    Example: rpa-tune calibrate tpu-check.json

    Example: rpa-tune calibrate .rpa-tune/quickstart.jsonl --plan quickstart --chip v6e
    """
    report = read_report(records) if is_report(records) else None
    machine = load_machine(_chip_of(records, report, chip))
    if report is not None:
        answers, workloads = evidence.measured_answers(report, records)
        observations, skipped = _observed(answers, workloads, machine, cache, workers, batches=1)
    elif store.is_store(records):
        observations, skipped = _from_store(records, plan, machine, cache, workers, batches)
    elif is_lines(records):
        observations, skipped = _from_lines(records, recordings, machine)
    else:
        observations, skipped = _from_records(records, machine, cache, workers)
    if not observations:
        raise UsageError(
            f"nothing to fit, {len(skipped)} left out: {'; '.join(skipped[:2])}",
            where=str(records),
            hint="what was measured is compiled again here: use the versions that it names",
        )
    result = fit(machine, observations, parameters or DEFAULT_PARAMETERS)
    rows = _rows(machine.chip, result)
    if output is not None:
        output.write_text(yaml.safe_dump(rows, sort_keys=False))
    if as_json:
        print_json({"rows": rows, "fit": _errors(observations, result), "skipped": skipped})
    else:
        _print_fit(machine, observations, result, skipped)


def _from_store(
    path: Path, plan: Path | None, machine: Machine, cache: Path, workers: int, batches: int
) -> tuple[list[Observation], list[str]]:
    """Launches that a sweep measured, and what was left out."""
    if plan is None:
        raise UsageError(
            "a store does not say which batches it measured",
            where=str(path),
            hint="add --plan with the plan of the sweep",
        )
    files = [path, *find_shards(path).values()]
    found = [e for file in files for e in store.read(file).evaluations]
    answers = measured_answers(found, machine.chip)
    if not answers:
        raise UsageError(f"no measured answers for {machine.chip}", where=str(path))
    workloads = {s.workload.digest: s.workload for s in build_studies(load_plan(plan))}
    say_sources(workloads.values())
    return _observed(answers, workloads, machine, cache, workers, batches=batches)


def _chip_of(path: Path, report: CheckReport | None, named: str | None) -> str:
    """The chip of a check's file, or the one that was named.

    Raises:
      UsageError: Neither, or one that contradicts the other.
    """
    own = None if report is None else report.identity.chip or None
    if named is None and own is None:
        raise UsageError(
            "these records need the name of a chip", where=str(path), hint="--chip v6e"
        )
    if named is not None and own is not None and named != own:
        raise UsageError(
            f"the file is of a {own}, not of a {named}", where=str(path), hint="leave --chip out"
        )
    return own or named or ""


def _observed(
    answers: list[Evaluation],
    workloads: Mapping[str, Workload],
    machine: Machine,
    cache: Path,
    workers: int,
    *,
    batches: int,
) -> tuple[list[Observation], list[str]]:
    """Measured answers as launches, and what was left out."""
    observations, skipped = [], []
    with WorkerPool(num_workers=workers) as pool:
        for seen in observe(answers, workloads, pool, cache_dir=cache, num_batches=batches):
            if isinstance(seen, str):
                skipped.append(seen)
            elif is_impossible(seen, machine):
                skipped.append(f"{seen.label}: its bundles alone take longer than measured")
            else:
                observations.append(seen)
    return observations, skipped


def _from_lines(
    path: Path, recordings: Path | None, machine: Machine
) -> tuple[list[Observation], list[str]]:
    """Launches of measured rows, and what was left out."""
    if recordings is None:
        raise UsageError(
            "measured rows do not say what their kernels do",
            where=str(path),
            hint="add --recordings, as benchmarks/data/recordings.zip of the repository",
        )
    chosen = [line for line in load_lines(path) if line.chip == machine.chip]
    if not chosen:
        raise UsageError(f"no measured rows of {machine.chip}", where=str(path))
    archive = Recordings(recordings)
    observations, skipped = [], []
    for line in chosen:
        label = f"line {line.place + 1}"
        launches = archive.of_call(call_digest(line.contents))
        if launches is None:
            skipped.append(f"{label}: its call is not in {recordings}")
            continue
        seen = Observation(label=label, launches=launches, measured_us=line.measured_us)
        if is_impossible(seen, machine):
            skipped.append(f"{label}: its bundles alone take longer than measured")
        else:
            observations.append(seen)
    return observations, skipped


def is_impossible(seen: Observation, machine: Machine) -> bool:
    """Whether the bundles alone take longer than measured: another kernel was timed."""
    return seen.num_bundles / machine.value("clock_hz") * 1e6 > 1.1 * seen.measured_us


def _from_records(
    path: Path, machine: Machine, cache: Path, workers: int
) -> tuple[list[Observation], list[str]]:
    """Public launches, and what was left out."""
    chip = machine.chip
    chosen = [r for r in load_records(path) if r.chip == chip and r.is_device_time]
    if not chosen:
        raise UsageError(f"no device times of {chip}", where=str(path))
    observations, skipped = [], []
    for record, program in schedules(chosen, cache_dir=cache, num_workers=workers):
        if isinstance(program, str):
            skipped.append(f"record {record.index}: {program}")
            continue
        seen = Observation(
            label=f"record {record.index}",
            launches=(llo_record(program, machine, record.operands()),),
            measured_us=record.measured_us,
        )
        if is_impossible(seen, machine):
            skipped.append(f"{seen.label}: its bundles alone take longer than measured")
        else:
            observations.append(seen)
    return observations, skipped


def _rows(chip: str, result: Fit) -> dict[str, Any]:
    """The fitted parameters as rows of the machine table."""
    numbers = result.machine.numbers
    return {
        chip: {
            name: {
                "value": float(f"{value:.4g}"),
                "source": numbers[name].source,
                "confidence": numbers[name].confidence,
            }
            for name, value in result.values.items()
        }
    }


def _errors(observations: list[Observation], result: Fit) -> list[dict[str, Any]]:
    """Per observation: measured, fitted, and predicted without it."""
    return [
        {
            "label": seen.label,
            "measured_us": seen.measured_us,
            "fitted_us": fitted,
            "held_out_us": held_out,
            "error": fitted / seen.measured_us - 1,
            "held_out_error": held_out / seen.measured_us - 1,
        }
        for seen, fitted, held_out in zip(
            observations, result.predicted_us, result.held_out_us, strict=True
        )
    ]


def _print_fit(
    machine: Machine, observations: list[Observation], result: Fit, skipped: list[str]
) -> None:
    """Prints parameters before and after, and the error of every record."""
    click.echo(f"{'parameter':32}{'before':>12}{'after':>12}")
    for name, value in result.values.items():
        click.echo(f"{name:32}{machine.value(name):12.4g}{value:12.4g}")
    click.echo(f"\n{'':14}{'measured us':>12}{'fitted':>9}{'held out':>10}")
    for row in _errors(observations, result):
        click.echo(
            f"{row['label']:14}{row['measured_us']:12.1f}{row['error']:+9.1%}"
            f"{row['held_out_error']:+10.1%}"
        )
    for line in skipped:
        click.echo(f"left out: {line}")
