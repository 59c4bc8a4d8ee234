"""`rpa-tune opcodes`: what of this compiler's schedules the simulator does not know."""

import os
import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import click

from rpa_kernels import FAMILIES
from rpa_tune.candidate import Status
from rpa_tune.cli.numbers import number
from rpa_tune.cli.options import ChipName, NameChoice
from rpa_tune.cli.output import counted, print_json
from rpa_tune.compile.pool import WorkerPool
from rpa_tune.evaluate.understood import RECIPE, Probed, probe_all, read_schedule
from rpa_tune.hw.chip import load_chip, load_chips
from rpa_tune.llo.unknown import UnknownOpcode, unknown_opcodes
from rpa_tune.provenance import versions

EXIT_UNKNOWN = 3


@click.command()
@click.argument("dumps", nargs=-1, type=click.Path(path_type=Path))
@click.option("--chip", "chip_names", multiple=True, type=ChipName(),
              help="Chip to compile for; may be repeated; default: all.")  # fmt: skip
@click.option("--family", "families", multiple=True, type=NameChoice(FAMILIES),
              help="Kernel family; may be repeated; default: all.")  # fmt: skip
@click.option("--workers", type=number("workers"), help="Worker processes; default: one per core.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON on stdout.")
def opcodes(
    dumps: tuple[Path, ...],
    chip_names: tuple[str, ...],
    families: tuple[str, ...],
    workers: int | None,
    as_json: bool,
) -> None:
    """Prints opcodes that the simulator does not know, with examples.

    Compiles a small kernel of each family for each chip with the libtpu that is installed, or reads
    the schedules DUMPS (*-final_bundles.txt, also .gz). CONTRIBUTING.md says how a new libtpu is
    taken in.

    Exit codes: 0 everything is understood; 2 usage; 3 something is not.

    Example: rpa-tune opcodes --chip v6e
    """
    if dumps:
        found = {str(file): unknown_opcodes(read_schedule(file)) for file in dumps}
        if as_json:
            print_json({"dumps": {name: list(map(asdict, some)) for name, some in found.items()}})
        for name, some in {} if as_json else found.items():
            click.echo(f"{name}: {counted(len(some), 'unknown opcode')}")
            _print(some)
        raise click.exceptions.Exit(EXIT_UNKNOWN if any(found.values()) else 0)
    all_good = True
    records = []
    for probed in _probe(chip_names, families or FAMILIES, workers):
        all_good &= probed.status is Status.OK
        records.append(_to_dict(probed))
        if not as_json:
            text = probed.status.value if probed.unknown or not probed.detail else probed.detail
            click.echo(f"{probed.chip.name} {probed.family}: {text}")
            _print(probed.unknown)
    if as_json:
        print_json({"libtpu": versions()["libtpu"], "kernels": records})
    else:
        good = f"schedules of libtpu {versions()['libtpu']} are understood"
        click.echo(good if all_good else f"how to take in a new libtpu: {RECIPE}")
    raise click.exceptions.Exit(0 if all_good else EXIT_UNKNOWN)


def _probe(
    chip_names: tuple[str, ...], families: tuple[str, ...], workers: int | None
) -> Iterator[Probed]:
    """The small kernels, compiled anew."""
    chips = [load_chip(name) for name in chip_names] or list(load_chips().values())
    num_workers = min(workers or len(os.sched_getaffinity(0)), len(chips) * len(families))
    with tempfile.TemporaryDirectory() as cache, WorkerPool(num_workers=num_workers) as pool:
        yield from probe_all(chips, families, pool, Path(cache))


def _print(unknown: "list[UnknownOpcode] | tuple[UnknownOpcode, ...]") -> None:
    for opcode in unknown:
        click.echo(f"  {opcode.mnemonic}  {counted(opcode.count, 'time')}")
        for line, text in opcode.examples:
            click.echo(f"    line {line}: {text}")


def _to_dict(probed: Probed) -> dict[str, object]:
    return {
        "chip": probed.chip.name,
        "family": probed.family,
        "status": probed.status.value,
        "detail": probed.detail,
        "unknown": [asdict(opcode) for opcode in probed.unknown],
    }
