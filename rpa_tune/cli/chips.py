"""`rpa-tune chips`: the chip table with its evidence."""

import click

from rpa_tune.cli.output import print_json
from rpa_tune.hw.chip import Chip, load_chip, load_chips


@click.command()
@click.argument("name", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print JSON on stdout.")
def chips(name: str | None, as_json: bool) -> None:
    """Lists the chips, or every parameter of the chip NAME with its source.

    Example: rpa-tune chips v6e
    """
    chosen = [load_chip(name)] if name else list(load_chips().values())
    if as_json:
        print_json({chip.name: _to_dict(chip) for chip in chosen})
    elif name:
        _print_numbers(chosen[0])
    else:
        _print_overview(chosen)


def _to_dict(chip: Chip) -> dict[str, object]:
    numbers = {
        key: {"value": n.value, "source": n.source, "confidence": n.confidence}
        for key, n in chip.numbers.items()
    }
    return {"device_kinds": list(chip.device_kinds), "topology": chip.topology, **numbers}


def _print_overview(chosen: list[Chip]) -> None:
    click.echo(
        f"{'chip':6}{'device kind':14}{'cores':>6}{'HBM GB/s':>10}{'bf16 TFLOP/s':>14}"
        f"{'VMEM MiB':>10}{'MXU':>10}"
    )
    for chip in chosen:
        mxu = f"{chip.value('num_mxus'):.0f} x {chip.value('mxu_size'):.0f}"
        click.echo(
            f"{chip.name:6}{chip.device_kinds[0]:14}{chip.num_cores_per_device:>6}"
            f"{chip.hbm_bytes_per_s / 1e9:>10.0f}{chip.bf16_flops_per_s / 1e12:>14.1f}"
            f"{chip.vmem_bytes / 2**20:>10.0f}{mxu:>10}"
        )
    click.echo("Per TensorCore; `rpa-tune chips NAME` shows every number with its source.")


def _print_numbers(chip: Chip) -> None:
    click.echo(f"{chip.name}: {', '.join(chip.device_kinds)}; topology {chip.topology}")
    for key, number in chip.numbers.items():
        value = "unknown" if number.value is None else f"{number.value:,.6g}"
        click.echo(f"  {key:24}{value:>14}  {number.confidence:9} {number.source}")
