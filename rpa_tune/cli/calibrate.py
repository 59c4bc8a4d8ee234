"""`rpa-tune calibrate`: fits a chip's machine parameters to measured times."""

from pathlib import Path
from typing import Any

import click
import yaml

from rpa_tune.cli.main import print_json
from rpa_tune.cli.paths import default_cache_dir
from rpa_tune.errors import UsageError
from rpa_tune.interop.records import load_records, schedules
from rpa_tune.llo.calibrate import Fit, Observation, fit
from rpa_tune.llo.machine import Machine, load_machine
from rpa_tune.llo.simulate import simulate

DEFAULT_PARAMETERS = (
    "read_bytes_per_s",
    "read_copy_bytes_per_s",
    "read_fixed_cycles",
    "read_latency_cycles",
    "matmul_latency_bf16_cycles",
    "matmul_latency_f32_cycles",
    "launch_us",
)


@click.command()
@click.argument("records", type=click.Path(path_type=Path))
@click.option("--chip", required=True, help="Chip to fit: v5e, v6e, v7x, ...")
@click.option(
    "--parameter",
    "parameters",
    multiple=True,
    help=f"Parameter to fit; repeat. Default: {', '.join(DEFAULT_PARAMETERS)}.",
)
@click.option("--output", type=click.Path(path_type=Path), help="Write the fitted rows as YAML.")
@click.option("--workers", default=1, show_default=True, help="Compiler processes.")
@click.option(
    "--cache",
    type=click.Path(path_type=Path),
    default=default_cache_dir() / "fidelity",
    help="Keeps the public wheel and the schedules.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON on stdout.")
def calibrate(
    records: Path,
    chip: str,
    parameters: tuple[str, ...],
    output: Path | None,
    workers: int,
    cache: Path,
    as_json: bool,
) -> None:
    """Fits machine parameters to the measured times in RECORDS.

    RECORDS has the form of benchmarks/data/measured_rpa.json: times of the public v3 kernel on
    your TPU. Only device times are used. The fitted rows belong into rpa_tune/llo/machines.yaml;
    parameters that the records do not determine stay near where they were.

    Example: rpa-tune calibrate benchmarks/data/measured_rpa.json --chip v7x --parameter clock_hz
    """
    machine = load_machine(chip)
    chosen = [r for r in load_records(records) if r.chip == chip and r.is_device_time]
    if not chosen:
        raise UsageError(f"no device times of {chip}", where=str(records))
    observations, skipped = [], []
    for record, program in schedules(chosen, cache_dir=cache, num_workers=workers):
        if isinstance(program, str):
            skipped.append(f"record {record.index}: {program}")
            continue
        bundles = simulate(program, machine, record.operands()).num_bundles
        if bundles / machine.value("clock_hz") * 1e6 > 1.1 * record.measured_us:
            skipped.append(f"record {record.index}: its bundles alone take longer than measured")
            continue
        observations.append(
            Observation(
                label=f"record {record.index}",
                program=program,
                operands=record.operands(),
                measured_us=record.measured_us,
            )
        )
    result = fit(machine, observations, parameters or DEFAULT_PARAMETERS)
    rows = _rows(chip, result)
    if output is not None:
        output.write_text(yaml.safe_dump(rows, sort_keys=False))
    if as_json:
        print_json({"rows": rows, "fit": _errors(observations, result), "skipped": skipped})
    else:
        _print_fit(machine, observations, result, skipped)


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
