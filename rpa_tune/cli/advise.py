"""`rpa-tune advise`: what page size, KV dtype and number of devices are worth for a server."""

from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from rpa_tune.analysis.advise import (
    CACHE_DTYPES,
    DEFAULT_COMPILES,
    DEFAULT_WORKLOAD,
    PAGE_SIZES,
    TPS,
    advise,
)
from rpa_tune.analysis.advise_record import Advice, Phase, Row
from rpa_tune.analysis.advise_times import DEFAULT_DEADLINE_S
from rpa_tune.cli.layers_text import layers_to_dict, print_layers
from rpa_tune.cli.numbers import NumbersParam, number, number_or_none
from rpa_tune.cli.options import SOME_KV_DTYPES, NameChoice, cache_option
from rpa_tune.cli.output import counted, print_json
from rpa_tune.cli.server import make_server, server_options
from rpa_tune.models.roofline import HBM_SHARE, WEIGHT_BYTES, hbm_bytes

_MARK = "≥"
# What the columns take with the widest times; nothing is cropped.
_WIDTH = 146


def _said(numbers: tuple[int, ...]) -> str:
    return ",".join(map(str, numbers))


@click.command(name="advise")
@server_options()
@click.option("--workload", default=DEFAULT_WORKLOAD, show_default=True,
              help="Whose steps are timed: a preset, trace or workload file.")  # fmt: skip
@click.option("--page-sizes", default=PAGE_SIZES, type=NumbersParam("page_size"), metavar="N,...",
              help=f"Page sizes to compare; default: {_said(PAGE_SIZES)}.")  # fmt: skip
@click.option("--kv-dtypes", default=CACHE_DTYPES, type=SOME_KV_DTYPES, metavar="NAME,...",
              help=f"KV dtypes to compare; default: {','.join(CACHE_DTYPES)}.")  # fmt: skip
@click.option("--tps", default=(), type=NumbersParam("tp"), metavar="N,...",
              help="Numbers of devices to compare; "
              f"default: those of {_said(TPS)} that divide the heads.")  # fmt: skip
@click.option("--weight-dtype", default="bfloat16", show_default=True,
              type=NameChoice(tuple(WEIGHT_BYTES)),
              help="How the server keeps its weights.")  # fmt: skip
@click.option("--compiles", default=DEFAULT_COMPILES, show_default=True,
              type=number_or_none("compiles"),
              help="Most kernels to compile and simulate; the rest get a bound.")  # fmt: skip
@click.option("--bounds", is_flag=True, help="Compile nothing: bounds alone, in seconds.")
@click.option("--tables", type=click.Path(path_type=Path),
              help="Tables that take precedence over the shipped ones.")  # fmt: skip
@cache_option
@click.option("--workers", type=number("workers"), help="Worker processes; default: one per core.")
@click.option("--deadline", "deadline_s", default=DEFAULT_DEADLINE_S, show_default=True,
              type=number("deadline"),
              help="Time limit, seconds, for compiling and for simulating.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print JSON on stdout.")
def advise_command(
    workload: str, compiles: int, bounds: bool, as_json: bool, **options: Any
) -> None:
    """Compares settings of a server: page size, KV dtype, devices that share the heads.

    One row a setting, nearest to the server's own first: attention of a decode step and of a step
    with prompts (all layers of one device, the mean over the workload's steps), its share of the
    step, bytes of a token in the KV cache, and how many tokens fit. Attention is simulated for as
    many settings as --compiles is enough for, with the simulator's interval; marked times are lower
    bounds. The rest of a step is a roofline. Nothing is measured.

    After an interruption the same command resumes; a larger --compiles goes further.

    Exit codes: 0 done; 2 usage; 3 layers that no kernel serves are left out, or a kernel was not
    simulated that should have been.

    Example: rpa-tune advise --model llama3-8b --chip v6e --max-num-seqs 64
    """
    names = ("page_sizes", "kv_dtypes", "tps", "weight_dtype", "tables", "cache", "workers",
             "deadline_s")  # fmt: skip
    own = {name: options.pop(name) for name in names}
    server = make_server(options)
    found = advise(
        server,
        workload=workload,
        compiles=0 if bounds else compiles,
        said=lambda text: click.echo(text, err=True),
        **own,
    )
    if as_json:
        print_json(_to_dict(found))
    else:
        _print(found)
    failed = any(one.detail for row in found.rows for one in row.attention)
    if failed or server.loaded.unserved:
        raise click.exceptions.Exit(3)


def _print(found: Advice) -> None:
    server = found.server
    print_layers(server.loaded)
    click.echo(
        f"{server.model} on {server.chip}: steps of at most {server.max_num_seqs} sequences and "
        f"{server.max_num_batched_tokens:,} tokens, contexts to {server.max_model_len:,}; workload "
        f"{found.workload.name} ({found.workload.source})"
    )
    Console(width=max(_WIDTH, Console().width)).print(_table(found))
    click.echo(
        f"Attention of all layers on one device, simulated; {_MARK} a lower bound, not simulated. "
        f"share: of the step, the rest by roofline with {found.weight_dtype} weights. room: tokens "
        f"that fit into {HBM_SHARE:.0%} of {hbm_bytes(server.loaded_chip) / 1e9:.1f} GB of HBM "
        f"beside the weights; the workload's fullest step has {found.most_context_tokens:,}."
    )
    click.echo(_startup(found))
    for line in found.differences:
        click.echo(f"- {line}")
    for note in found.notes:
        click.echo(f"note: {note}")
    refused: dict[str, list[Row]] = {}
    for row in found.rows:
        if row.refusal:
            refused.setdefault(row.refusal, []).append(row)
    for reason, rows in refused.items():
        others = f" and {counted(len(rows) - 1, 'other setting')}" if rows[1:] else ""
        click.echo(f"not possible: {rows[0].setting}{others}: {reason}")


def _startup(found: Advice) -> str:
    kernels = counted(found.own.num_kernels, "attention kernel")
    return (
        f"Start-up: {kernels} x {found.compile_s:.1f} s ({found.compile_is}) = "
        f"{found.startup_s:.0f} s of one core; none where they were compiled ahead "
        "(docs/serving.md), and none after the first start with a shared jax cache."
    )


def _table(found: Advice) -> Table:
    table = Table(title=f"Time of a step on {found.server.chip}, in milliseconds")
    for column, justify in (
        ("page", "right"), ("KV dtype", "left"), ("layout", "left"), ("tp", "right"),
        ("decode attention", "right"), ("share", "right"), ("prefill attention", "right"),
        ("share", "right"), ("KV bytes/token", "right"), ("room, tokens", "right"),
    ):  # fmt: skip
        table.add_column(column, justify=justify, no_wrap=True)  # type: ignore[arg-type]
    for row in found.rows:
        if row.refusal:
            continue
        table.add_row(
            str(row.setting.page_size), row.setting.kv_dtype, row.setting.layout,
            str(row.setting.tp), _time(row.decode), _share(row.decode), _time(row.prefill),
            _share(row.prefill), f"{row.kv_token_bytes:,}", _room(row, found),
        )  # fmt: skip
    return table


def _time(phase: Phase | None) -> str:
    if phase is None:
        return "-"
    text = _milliseconds(phase.attention_us)
    if phase.interval_us is None:
        return f"{_MARK} {text}"
    low, high = phase.interval_us
    return f"{text} ({_milliseconds(low)}..{_milliseconds(high)})"


def _milliseconds(us: float) -> str:
    """Two decimals, and of less than a tenth two digits: a few layers of attention take little."""
    return f"{us / 1e3:.2f}" if us >= 100 or not us else f"{us / 1e3:#.2g}"


def _share(phase: Phase | None) -> str:
    if phase is None or phase.attention_share is None:
        return "-"
    mark = "" if phase.set_us else f"{_MARK} "
    share = phase.attention_share
    return f"{mark}{share:.0%}" if share >= 0.01 else f"{mark}{100 * share:.1g}%"


def _room(row: Row, found: Advice) -> str:
    if row.kv_tokens is None:
        return "unknown"
    if not row.kv_tokens:
        return "does not fit"
    short = " (too few)" if row.kv_tokens < found.most_context_tokens else ""
    return f"{row.kv_tokens:,}{short}"


def _to_dict(found: Advice) -> dict[str, Any]:
    return {
        "server": found.server.flags,
        "workload": {
            "name": found.workload.name, "source": found.workload.source,
            "digest": found.workload.digest,
            "most_context_tokens": found.most_context_tokens,
        },
        "weight_dtype": found.weight_dtype,
        "rows": [_row_to_dict(row) for row in found.rows],
        "differences": found.differences,
        "notes": found.notes,
        "startup": {
            "kernels": found.own.num_kernels, "compile_s": found.compile_s,
            "compile_is": found.compile_is, "seconds": found.startup_s,
        },
        **layers_to_dict(found.server.loaded),
    }  # fmt: skip


def _row_to_dict(row: Row) -> dict[str, Any]:
    setting = row.setting
    return {
        "page_size": setting.page_size,
        "kv_dtype": setting.kv_dtype,
        "layout": setting.layout,
        "tp": setting.tp,
        "refusal": row.refusal or None,
        "decode": _phase_to_dict(row.decode),
        "prefill": _phase_to_dict(row.prefill),
        "attention": [
            {
                "layers": one.layers, "num_layers": one.num_layers, "family": one.family,
                "config": dict(one.config), "config_from": one.source, "fidelity": one.fidelity,
                "time_us": one.time_us, "interval_us": one.interval_us,
                "detail": one.detail or None,
            }
            for one in row.attention
        ],
        "kv_token_bytes": row.kv_token_bytes,
        "kv_useful_bytes": row.kv_useful_bytes,
        "kv_heads_repeated": row.kv_heads_repeated,
        "weight_bytes": row.weight_bytes,
        "kv_tokens": row.kv_tokens,
        "num_kernels": row.num_kernels,
    }  # fmt: skip


def _phase_to_dict(phase: Phase | None) -> dict[str, Any] | None:
    if phase is None:
        return None
    return {
        "attention_us": phase.attention_us,
        "attention_is": phase.fidelity,
        "interval_us": phase.interval_us,
        "rest_us": phase.rest_us,
        "rest_is": "roofline",
        "step_us": phase.step_us,
        "attention_share": phase.attention_share,
    }
