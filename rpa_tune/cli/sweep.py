"""`rpa-tune sweep`: a plan in, tables out."""

import os
import shlex
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from rpa_tune.cli.forecast import print_forecast, print_groups
from rpa_tune.cli.layers_text import print_layers
from rpa_tune.cli.numbers import number
from rpa_tune.cli.options import ChipName, LibtpuArgs, NameChoice, RenamedOption, cache_option
from rpa_tune.cli.progress import CountingWatch, JsonWatch, PlainWatch, RichWatch
from rpa_tune.cli.sweep_text import print_outcome
from rpa_tune.cli.workload_words import say_sources
from rpa_tune.compile.pool import WorkerPool
from rpa_tune.compile.ray_pool import RayPool
from rpa_tune.errors import UsageError
from rpa_tune.known_versions import faults
from rpa_tune.models.catalog import load_model
from rpa_tune.provenance import versions
from rpa_tune.sweep.forecast import forecast, forecast_groups
from rpa_tune.sweep.identity import require_same_samplers
from rpa_tune.sweep.job import Job, open_job
from rpa_tune.sweep.nodes import parse_seconds
from rpa_tune.sweep.plan import SweepPlan, load_plan
from rpa_tune.sweep.run import (
    BUDGET_SPENT,
    INTERRUPTED,
    Outcome,
    fetch_families,
    make_pool,
    tune,
)

EXIT_FAILURES = 3
EXIT_BUDGET = 75
EXIT_INTERRUPTED = 130


@click.command()
@click.argument("plan_file", metavar="PLAN", type=click.Path(path_type=Path))
@click.option("--chip", type=ChipName(), help="Tune for this chip instead of the plan's.")
@click.option("--dry-run", is_flag=True, help="Print the estimated work and stop.")
@click.option("--brief", is_flag=True,
              help="With --dry-run: a line for each chip and family.")  # fmt: skip
@click.option("--fresh", is_flag=True, help="Ignore stored results and cached compiles.")
@click.option("--workers", type=number("workers"), help="Worker processes; default: one per core.")
@click.option("--budget", help="Time limit, such as 90s, 30m or 2h; resumable.")
@click.option("--store", "store_file", type=click.Path(path_type=Path),
              help="File for results; default .rpa-tune/PLAN.jsonl.")  # fmt: skip
@click.option("--tables", "table_folder", type=click.Path(path_type=Path), show_default=True,
              default=Path("tuned_tables"), help="Folder for table rows.")  # fmt: skip
@cache_option
@click.option("--verify/--no-verify", default=True, show_default=True,
              help="Verify winners against the reference before promotion.")  # fmt: skip
@click.option("--shard", "shard_text", metavar="I/N",
              help="Run part I of N; its results have a file of their own.")  # fmt: skip
@click.option("--storage", metavar="FILE|URL",
              help="Share the work with other runs, each with a --store of its own, through a "
              "journal file or postgresql://USER@HOST/DATABASE.")  # fmt: skip
@click.option("--executor", cls=RenamedOption, old="--engine", type=NameChoice(("local", "ray")),
              default="local", show_default=True,
              help="Where tasks run: processes on this machine, or a Ray cluster.")  # fmt: skip
@click.option("--libtpu-args", type=LibtpuArgs(), metavar="FLAGS",
              help="Flags that libtpu of the server is given, instead of the plan's.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print JSON on stdout.")
def sweep(**options: Any) -> None:
    """Tunes what PLAN asks for and writes table rows.

    PLAN is a YAML file, or the name of a plan that comes with rpa-tune: deepseek_v3, fleet,
    public_hd64, public_mla, public_stacked, public_tokamax, public_v3, quickstart,
    steady_decode.

    Each candidate gets an analytical lower bound. The most promising ones are compiled for the chip
    and their schedules simulated. On a host with a TPU of the study's chip the best are measured.
    A winner is promoted if it matches the reference under the interpreter. Every result is stored
    at once: after an interruption, run the same command again to resume.

    On a batch system, run --shard 1/N to N/N with one --store. Then run the same command without
    --shard: it finishes what is missing and writes the tables.

    Exit codes: 0 done; 1 error; 2 usage; 3 a problem has no working config; 75 budget spent;
    130 interrupted. After 75 and 130 the same command resumes.

    Example: rpa-tune sweep quickstart --chip v5e --budget 10m
    """
    asked = _Options(**options)
    if asked.brief and not asked.dry_run:
        raise UsageError("--brief says what --dry-run does, in short", hint="add --dry-run")
    plan = _load(asked)
    pool = _make_pool(asked, plan)
    job = open_job(plan, asked.store_file, asked.shard_text)
    _say_layers(job)
    _say_faults(job)
    if asked.brief:
        print_groups(forecast_groups(job, verify=asked.verify), asked.as_json)
        return
    if not asked.as_json:  # stderr has events for machines then, the document has the source
        say_sources(study.workload for study in job.studies)
    if asked.dry_run:
        fetch_families(job, asked.cache)
        if not asked.fresh:
            require_same_samplers(job.mine, job.plans, str(job.store_file))
        rows = forecast(job, num_workers=pool.num_workers, verify=asked.verify, fresh=asked.fresh)
        print_forecast(rows, asked.as_json)
        return
    with _sigterm_interrupts():
        outcome = tune(
            job,
            tables=asked.table_folder,
            cache=asked.cache,
            verify=asked.verify,
            fresh=asked.fresh,
            storage=asked.storage,
            pool=pool,
            watch=_make_watch(asked.as_json),
            returns_when_interrupted=True,
        )
    code = _exit_code(outcome)
    print_outcome(outcome, code=code, table_folder=asked.table_folder, as_json=asked.as_json)
    if outcome.stopped:
        command = asked.resume_command(job.store_file)
        done = f"{outcome.num_asked} new results are in {job.own}"
        click.echo(f"{outcome.stopped}: {done}; resume with: {command}", err=True)
    raise click.exceptions.Exit(code)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Options:
    """What the command line says; see the options of `sweep`."""

    plan_file: Path
    chip: str | None
    dry_run: bool
    brief: bool
    fresh: bool
    workers: int | None
    budget: str | None
    store_file: Path | None
    table_folder: Path
    cache: Path
    verify: bool
    shard_text: str | None
    storage: str | None
    executor: str
    libtpu_args: str | None
    as_json: bool

    def resume_command(self, store_file: Path) -> str:
        """The command that goes on; without `--fresh`, which would start over.

        Args:
          store_file: What `--store` is, or would be.
        """
        from rpa_tune.sweep.exchange import hide_password

        words: list[object] = ["rpa-tune", "sweep", self.plan_file]
        given = {
            "--chip": self.chip,
            "--workers": self.workers,
            "--store": store_file,
            "--tables": self.table_folder,
            "--cache": self.cache,
            "--executor": None if self.executor == "local" else self.executor,
            "--shard": self.shard_text,
            "--libtpu-args": self.libtpu_args,
            "--storage": None if self.storage is None else hide_password(self.storage),
        }
        for name, value in given.items():
            words += [] if value is None else [name, value]
        words += [] if self.verify else ["--no-verify"]
        return shlex.join(map(str, words))


def _exit_code(outcome: Outcome) -> int:
    """0 when every study has a row."""
    if outcome.stopped:
        return {BUDGET_SPENT: EXIT_BUDGET, INTERRUPTED: EXIT_INTERRUPTED}[outcome.stopped]
    return EXIT_FAILURES if any(result.row() is None for result in outcome) else 0


@contextmanager
def _sigterm_interrupts() -> Iterator[None]:
    """A batch system that wants its host back says so as a person does with Ctrl-C."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _load(asked: _Options) -> SweepPlan:
    """The plan, with what the command line puts in the place of its own."""
    plan = load_plan(asked.plan_file)
    if asked.chip is not None:
        plan = plan.on_chip(asked.chip)
    if asked.budget is not None:
        plan = replace(plan, budget_s=parse_seconds(asked.budget, "--budget"))
    if asked.libtpu_args is not None:
        plan = replace(plan, libtpu_args=asked.libtpu_args)
    return plan


def _make_pool(asked: _Options, plan: SweepPlan) -> WorkerPool | RayPool:
    """Where tasks run; nothing starts yet, but a cluster is connected to."""
    if asked.executor == "ray":
        return RayPool(
            num_workers=asked.workers,
            address=os.environ.get("RAY_ADDRESS"),
            libtpu_args=plan.libtpu_args,
        )
    return make_pool(asked.workers, plan.libtpu_args)


def _make_watch(as_json: bool) -> CountingWatch:
    """Bars for people, lines for logs, events for machines."""
    if as_json:
        return JsonWatch()
    console = Console(stderr=True)
    return RichWatch(console) if console.is_terminal else PlainWatch(console)


def _say_faults(job: Job) -> None:
    """What others have reported of the installed versions on the plan's chips."""
    said = {}
    for chip in sorted({study.chip.name for study in job.studies}):
        for fault in faults(versions(), chip):
            said[fault.text(versions()[fault.package] or "")] = fault.cure
    for text, cure in said.items():
        click.echo(f"known fault: {text}\nhint: {cure}", err=True)


def _say_layers(job: Job) -> None:
    """Which layers the studies are for, where a model has several kinds or some are left out."""
    context = max(study.problem.max_context_tokens for study in job.studies)
    for name in job.plan.models:
        model = load_model(name).within(context)
        if len(model.kinds) > 1 or model.other_layers or model.notes:
            print_layers(model, err=True)
