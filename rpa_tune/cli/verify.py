"""`rpa-tune verify`: is a config correct? No TPU needed; libtpu only for its linter."""

from dataclasses import asdict
from typing import Any

import click

from rpa_kernels.family import config_to_dict
from rpa_tune.analysis.verify import (
    DEFAULT_DEADLINE_S,
    Verification,
    check_tasks,
    make_tasks,
    wants_lint,
    with_lint,
)
from rpa_tune.cli.layers_text import print_layers
from rpa_tune.cli.numbers import number
from rpa_tune.cli.options import batch_option, candidate_options, parse_config, read_batch
from rpa_tune.cli.output import print_json
from rpa_tune.compile.lint import TARGETS, Lint
from rpa_tune.evaluate.correctness import Verdict
from rpa_tune.models.catalog import load_model


@click.command()
@candidate_options
@batch_option
@click.option(
    "--seed",
    default=0,
    show_default=True,
    type=number("seed"),
    help="Random seed of queries, keys, values and cache.",
)
@click.option(
    "--deadline",
    default=DEFAULT_DEADLINE_S,
    show_default=True,
    type=number("deadline"),
    help="Time limit per check, seconds.",
)
@click.option("--workers", type=number("workers"), help="Worker processes; default: one per core.")
@click.option("--lint/--no-lint", default=None,
              help="Also have the compiler's own linter look at the kernel; default: where libtpu "
              "has it (0.0.52).")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print JSON on stdout.")
def verify(
    deadline: float, workers: int | None, lint: bool | None, as_json: bool, **options: Any
) -> None:
    """Runs a config under the interpreter and compares it with the float32 reference.

    Compares output and KV cache, and looks for data races. The batches have lengths of 1 and
    lengths at and next to page and block boundaries. Each runs twice: with DMA copies that complete
    as late as possible, and as early as possible. Unused page-table entries are out of bounds.

    Reported errors come from the kernel's rounding, with an exponential that is exact to one
    rounding. Errors of the chip's own exponential are not included.

    Where libtpu has a linter for kernels (0.0.52), the kernel is compiled with it, too: copies that
    write or read what another one is still writing, and copies that nobody waits for.

    Large models are slow; --tp divides the heads. Exit code 1 when a check fails.

    Example: rpa-tune verify --chip v6e --family decode --model llama3-8b --tp 4 --config bq_sz=16
    """
    batch_file, config_text = options.pop("batch_file"), options.pop("config_text")
    wanted = wants_lint(lint)
    tasks = make_tasks(
        config=parse_config(config_text),
        batches=None if batch_file is None else read_batch(batch_file),
        **options,
    )
    if not as_json:
        print_layers(load_model(options["model"]))
    verdicts: list[Verdict] = []
    for verdict in check_tasks(tasks, workers=workers, deadline_s=deadline):
        verdicts.append(verdict)
        if not as_json:
            _print_verdict(verdict)
    found = with_lint(Verification(verdicts=tuple(verdicts)), wanted, deadline_s=deadline)
    if as_json:
        checks = [_to_dict(verdict) for verdict in verdicts]
        lint_found = None if found.lint is None else asdict(found.lint)
        print_json({"ok": found.ok, "checks": checks, "lint": lint_found})
    else:
        if found.lint is not None:
            _print_lint(found.lint)
        cannot_exist = bool(verdicts) and not found.can_exist
        click.echo("correct" if found.ok else "infeasible" if cannot_exist else "WRONG")
    if not found.ok:
        raise click.exceptions.Exit(1)


def _print_verdict(verdict: Verdict) -> None:
    task, figures = verdict.task, verdict.figures or {}
    error = f", error {figures['max_error']:.2g} of {figures['tolerance']:.2g}" if figures else ""
    if "rms_ratio" in figures:
        error += f", mean {figures['rms_ratio']:.2f} of plain bfloat16's"
    click.echo(
        f"{verdict.status.value:14} {task.batch.num_seqs} sequences, {task.batch.num_tokens} "
        f"tokens, contexts to {max(task.batch.kv_lens)}, copies {task.dma_mode}{error}"
    )
    if verdict.detail:
        click.echo(f"{'':14} {verdict.detail}")


def _print_lint(lint: Lint) -> None:
    kind = f": {lint.kind}" if lint.kind else ""
    click.echo(f"{lint.status.value:14} the compiler's linter ({', '.join(TARGETS)}){kind}")
    if lint.detail:
        click.echo(f"{'':14} {lint.detail}")


def _to_dict(verdict: Verdict) -> dict[str, Any]:
    task = verdict.task
    return {
        "status": verdict.status.value,
        "detail": verdict.detail,
        "family": task.family.name,
        "chip": task.chip.name,
        "config": config_to_dict(task.config),
        "problem": asdict(task.problem),
        "q_lens": list(task.batch.q_lens),
        "kv_lens": list(task.batch.kv_lens),
        "num_decode": task.batch.num_decode,
        "num_prefill": task.batch.num_prefill,
        "dma_mode": task.dma_mode,
        "seed": task.seed,
        **(verdict.figures or {}),
    }
