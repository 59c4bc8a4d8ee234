"""`rpa-tune compile`: a server's kernels, compiled on a machine without a TPU."""

import contextlib
import functools
import logging
import os
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import click

from rpa_tune.artifact.build import Built, Kept, build_plans, write_built
from rpa_tune.artifact.file import Manifest
from rpa_tune.cli.layers_text import print_layers
from rpa_tune.cli.numbers import number
from rpa_tune.cli.options import Q_DTYPE, NameChoice, cache_option, libtpu_args_option
from rpa_tune.cli.output import counted, print_json
from rpa_tune.cli.problem_text import problem_text, problem_to_dict
from rpa_tune.cli.server import make_server, server_options
from rpa_tune.compile.pool import WorkerPool
from rpa_tune.compile.target import build_environment
from rpa_tune.dispatch.dispatcher import load_dispatcher
from rpa_tune.dispatch.plan import LaunchPlan
from rpa_tune.errors import RpaTuneError, UsageError
from rpa_tune.hw.chip import load_chip
from rpa_tune.models.padding import padding_note

DEFAULT_DEADLINE_S = 600.0
# Options that are fields of a `Problem`.
_FEATURES = ("num_pages", "q_dtype", "sm_scale", "k_scale", "v_scale")


@click.command(name="compile")
@server_options()
@click.option(
    "--num-pages",
    type=number("num_pages"),
    help="Pages of the KV cache; default: enough for all sequences at maximum length.",
)
@click.option(
    "--q-dtype",
    default="bfloat16",
    show_default=True,
    type=Q_DTYPE,
    help="Dtype of queries.",
)
@click.option(
    "--sm-scale", type=number("sm_scale"), help="Factor on the logits; default: the model's."
)
@click.option(
    "--k-scale", type=number("k_scale"), help="Scale of stored keys, for a quantised cache."
)
@click.option(
    "--v-scale", type=number("v_scale"), help="Scale of stored values, for a quantised cache."
)
@click.option(
    "--tables",
    type=click.Path(path_type=Path),
    help="Tables that take precedence over the shipped ones.",
)
@click.option(
    "--on-miss",
    default="nearest",
    show_default=True,
    type=NameChoice(["nearest", "heuristic", "error"]),
    help="What the server's dispatcher does without an exact row.",
)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    default="kernels.zip",
    show_default=True,
    help="File to write.",
)
@cache_option
@click.option(
    "--deadline",
    default=DEFAULT_DEADLINE_S,
    show_default=True,
    type=number("deadline"),
    help="Time limit per plan, seconds.",
)
@click.option("--workers", type=number("workers"), help="Worker processes; default: one per core.")
@click.option("--dry-run", is_flag=True, help="List the plans; compile nothing.")
@libtpu_args_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON on stdout.")
def compile_command(
    tables: Path | None,
    on_miss: Any,
    output: Path,
    cache: Path,
    deadline: float,
    workers: int | None,
    dry_run: bool,
    libtpu_args: str,
    as_json: bool,
    **options: Any,
) -> None:
    """Compiles every kernel that a server can launch into one file, for its TPU host to load.

    The options are the server's own; sizes and scales must be those of its calls. Kernels for every
    kind of layers of the model are included. The file is valid only for the jax, libtpu, kernels
    and chip that it was built with; otherwise the dispatcher logs the reason and compiles. It
    serves calls outside of `jit`. After an interruption the same command resumes.

    Exit codes: 0 done; 1 some plans were left out, because the compiler refused them or no kernel
    serves such layers; 2 usage; 3 the file cannot be written, or a table does not parse.

    Example: rpa-tune compile --model llama3-8b --chip v6e --max-num-seqs 64 --num-pages 4096
    """
    given = {name: options.pop(name) for name in _FEATURES}
    features = {name: value for name, value in given.items() if value is not None}
    server = make_server(options)
    dispatcher = load_dispatcher(server.chip, tables, on_miss)
    with _silent(logging.getLogger("rpa_tune.dispatch")):  # --dry-run says all it would
        try:
            layers = {
                plan: share.name
                for share in server.layers(**features)
                for plan in dispatcher.plans(share.problem, server)
            }
        except ValueError as error:
            raise UsageError(str(error), where="the server's options") from error
    print_layers(server.loaded, err=True)
    if dry_run:
        _list_plans(layers, as_json)
        return
    cores = len(os.sched_getaffinity(0))
    with WorkerPool(
        num_workers=min(workers or cores, len(layers)),
        deadline_s=deadline,
        environment=functools.partial(build_environment, libtpu_args=libtpu_args),
    ) as pool:
        built = _build(layers, pool, Kept(cache / "executables", libtpu_args))
    if not any(one.content for one in built):
        raise RpaTuneError(
            f"no plan compiled: {built[0].reason}", hint="rpa-tune doctor finds what is wrong"
        )
    manifest, sha256 = write_built(output, load_chip(server.chip), built, libtpu_args)
    _report(output, manifest, sha256, built, as_json)
    if manifest.left_out or server.loaded.unserved:
        raise click.exceptions.Exit(1)


@contextlib.contextmanager
def _silent(logger: logging.Logger) -> Iterator[None]:
    before, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = before


def _build(layers: Mapping[LaunchPlan, str], pool: WorkerPool, kept: Kept) -> list[Built]:
    """Compiles, with a line on stderr for each plan."""
    built, started = [], time.monotonic()
    for one in build_plans(layers, pool, kept):
        built.append(one)
        size = f"{len(one.content) / 1e6:.1f} MB" if one.content else f"left out: {one.reason}"
        how = "kept" if one.was_kept else f"{one.seconds:.1f} s"
        click.echo(
            f"[{time.monotonic() - started:6.1f} s] {len(built)}/{len(layers)} "
            f"{_name(one.plan, layers[one.plan])}: {size} ({how})",
            err=True,
        )
    return built


def _name(plan: LaunchPlan, layers: str) -> str:
    p = plan.problem
    kind = f", {layers}" if layers != "full" else ""
    return f"{p.max_num_tokens} tokens, {p.max_num_seqs} seqs{kind}: {'+'.join(plan.families)}"


def _list_plans(layers: Mapping[LaunchPlan, str], as_json: bool) -> None:
    if as_json:
        listed = [
            {
                "tokens": plan.problem.max_num_tokens,
                "seqs": plan.problem.max_num_seqs,
                "layers": name,
                **problem_to_dict(plan.problem),
                "families": plan.families,
                "why": [launch.why for launch in plan.launches],
            }
            for plan, name in layers.items()
        ]
        print_json({"plans": listed})
        return
    for text in dict.fromkeys(problem_text(plan.problem) for plan in layers):
        click.echo(text)
    for note in dict.fromkeys(padding_note(plan.problem) for plan in layers):
        click.echo(note, nl=bool(note))
    for plan, name in layers.items():
        click.echo(_name(plan, name))
        for launch in plan.launches:
            click.echo(f"  {launch.family}: {launch.why}")
    click.echo(counted(len(layers), "plan"))


def _report(path: Path, manifest: Manifest, sha256: str, built: list[Built], as_json: bool) -> None:
    num_bytes, versions = path.stat().st_size, manifest.versions
    counts = Counter(
        "left out" if not one.content else "kept" if one.was_kept else "compiled" for one in built
    )
    if as_json:
        print_json({
            "artifact": str(path), "sha256": sha256, "bytes": num_bytes, "chip": manifest.chip,
            "versions": dict(versions), "num_executables": len(manifest.executables),
            "num_kept": counts["kept"], "left_out": list(manifest.left_out),
        })  # fmt: skip
        return
    found = ", ".join(f"{count} {how}" for how, count in sorted(counts.items()))
    made_with = ", ".join(f"{name} {version}" for name, version in sorted(versions.items()))
    made = counted(len(manifest.executables), "executable")
    click.echo(f"{path}: {made} ({found}), {num_bytes / 1e6:.1f} MB")
    click.echo(f"for {manifest.chip} ({manifest.device_kind}) with {made_with}")
    click.echo(f"sha256 {sha256}")
    click.echo(
        "On the TPU host (not yet run on one): rpa_tune.load_dispatcher("
        f'artifact=rpa_tune.Artifact("{path}", sha256="{sha256}"))'
    )
