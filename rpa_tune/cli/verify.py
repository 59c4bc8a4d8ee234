"""`rpa-tune verify`: is a config correct? No TPU needed, and no libtpu."""

import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from rpa_kernels.batch import Batch
from rpa_tune.candidate import Status
from rpa_tune.cli.layers_text import print_layers
from rpa_tune.cli.numbers import number
from rpa_tune.cli.options import (
    batch_option,
    candidate_options,
    make_config,
    parse_config,
    read_batch,
)
from rpa_tune.cli.output import print_json
from rpa_tune.evaluate.correctness import CheckTask, Verdict, check_all, hostile_batches
from rpa_tune.families import load_family
from rpa_tune.hw.chip import load_chip
from rpa_tune.models import load_model, problem_for
from rpa_tune.workload.workload import WeightedBatch, Workload

# The context for which a family makes its own choice when no batch is given.
_NOMINAL_CONTEXT_TOKENS = 4096
_DMA_MODES = ("on_wait", "eager")


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
    default=600.0,
    show_default=True,
    type=number("deadline"),
    help="Time limit per check, seconds.",
)
@click.option("--workers", type=number("workers"), help="Worker processes; default: one per core.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON on stdout.")
def verify(deadline: float, workers: int | None, as_json: bool, **options: Any) -> None:
    """Runs a config under the interpreter and compares it with the float32 reference.

    Compares output and KV cache, and looks for data races. The batches have lengths of 1 and
    lengths at and next to page and block boundaries. Each runs twice: with DMA copies that complete
    as late as possible, and as early as possible. Unused page-table entries are out of bounds.

    Reported errors come from the kernel's rounding, with an exponential that is exact to one
    rounding. Errors of the chip's own exponential are not included.

    Large models are slow; --tp divides the heads. Exit code 1 when a check fails.

    Example: rpa-tune verify --chip v6e --family decode --model llama3-8b --tp 4 --config bq_sz=16
    """
    tasks = make_tasks(**options)
    if not as_json:
        print_layers(load_model(options["model"]))
    first = tasks[0]
    target = load_chip(first.chip).target
    if load_family(first.family).check(first.problem, first.config, target):
        tasks = tasks[:1]  # what cannot exist for one batch cannot for any
    workers = workers or len(os.sched_getaffinity(0))
    verdicts: list[Verdict] = []
    for verdict in check_all(tasks, num_workers=min(workers, len(tasks)), deadline_s=deadline):
        verdicts.append(verdict)
        if not as_json:
            _print_verdict(verdict)
    is_right = bool(verdicts) and all(verdict.status is Status.OK for verdict in verdicts)
    if as_json:
        print_json({"ok": is_right, "checks": [_to_dict(verdict) for verdict in verdicts]})
    else:
        cannot_exist = bool(verdicts) and all(
            verdict.status is Status.INFEASIBLE for verdict in verdicts
        )
        click.echo("correct" if is_right else "infeasible" if cannot_exist else "WRONG")
    if not is_right:
        raise click.exceptions.Exit(1)


def make_tasks(
    *,
    chip: str,
    family: str,
    model: str,
    config_text: str,
    batch_file: Path | None,
    seed: int,
    **shape: Any,
) -> list[CheckTask]:
    """The launches to check: each batch with copies late and early.

    Args:
      chip: Chip name.
      family: Family name.
      model: Model name or path.
      config_text: `k=v,...`.
      batch_file: JSON file with one batch; None for hostile ones.
      seed: Of the operands.
      **shape: `tp`, `page_size`, `q_dtype`, `kv_dtype`, `layers` and `windowed` of `problem_for`.

    Raises:
      UsageError: Whatever is wrong with them.
    """
    record, fields = load_model(model), parse_config(config_text)
    if batch_file is not None:
        workload = read_batch(batch_file)
        config = make_config(family, problem_for(record, workload=workload, **shape), chip, fields)
    else:
        tokens = _NOMINAL_CONTEXT_TOKENS
        nominal = _one_batch(Batch(q_lens=(tokens,), kv_lens=(tokens,), num_decode=0))
        config = make_config(family, problem_for(record, workload=nominal, **shape), chip, fields)
        batches = hostile_batches(family, page_size=shape["page_size"], block_tokens=config.bkv_sz)
        weighted = tuple(WeightedBatch(batch=b, weight=1 / len(batches)) for b in batches)
        workload = Workload(name="hostile", source="lengths at boundaries", batches=weighted)
    problem = problem_for(record, workload=workload, **shape)
    return [
        CheckTask(
            family=family, problem=problem, config=config, chip=chip, batch=weighted.batch,
            seed=seed, dma_mode=mode,
        )
        for weighted in workload.batches
        for mode in _DMA_MODES
    ]  # fmt: skip


def _one_batch(batch: Batch) -> Workload:
    return Workload(name="one", source="", batches=(WeightedBatch(batch=batch, weight=1.0),))


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


def _to_dict(verdict: Verdict) -> dict[str, Any]:
    task = verdict.task
    return {
        "status": verdict.status.value,
        "detail": verdict.detail,
        "family": task.family,
        "chip": task.chip,
        "config": asdict(task.config),
        "problem": asdict(task.problem),
        "q_lens": list(task.batch.q_lens),
        "kv_lens": list(task.batch.kv_lens),
        "num_decode": task.batch.num_decode,
        "num_prefill": task.batch.num_prefill,
        "dma_mode": task.dma_mode,
        "seed": task.seed,
        **(verdict.figures or {}),
    }
