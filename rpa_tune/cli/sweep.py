"""`rpa-tune sweep`: a plan in, tables out."""

import os
import shlex
import signal
import tempfile
import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console

from rpa_tune.candidate import Fidelity
from rpa_tune.cli.forecast import forecast, print_forecast
from rpa_tune.cli.numbers import number
from rpa_tune.cli.options import ChipName, Choice, RenamedOption, cache_option
from rpa_tune.cli.progress import CountingWatch, JsonWatch, PlainWatch, RichWatch
from rpa_tune.cli.sweep_job import Job, open_job
from rpa_tune.cli.sweep_text import Outcome, print_outcome
from rpa_tune.cli.workload_words import say_sources
from rpa_tune.compile.pool import TaskPool, WorkerPool
from rpa_tune.compile.ray_pool import RayPool
from rpa_tune.errors import UsageError
from rpa_tune.evaluate.analytical import AnalyticalEvaluator
from rpa_tune.evaluate.evaluator import AbstractEvaluator
from rpa_tune.evaluate.interpreted import InterpretedEvaluator
from rpa_tune.evaluate.measured import (
    MeasuredEvaluator,
    MeasuringHost,
    device_pool,
    find_host,
    has_tpu,
)
from rpa_tune.evaluate.simulated import SimulatedEvaluator
from rpa_tune.families import public_family
from rpa_tune.interop.wheel import use_wheel
from rpa_tune.public_configs import WHEELS
from rpa_tune.store import journal as store
from rpa_tune.sweep.identity import require_same_samplers
from rpa_tune.sweep.lineup import num_side_by_side
from rpa_tune.sweep.nodes import parse_seconds
from rpa_tune.sweep.oracle import BudgetSpentError
from rpa_tune.sweep.plan import SweepPlan, load_plan
from rpa_tune.sweep.result import StudyResult
from rpa_tune.sweep.seeds import Winner, winners_before
from rpa_tune.sweep.sweep import Sweep
from rpa_tune.tables.reader import shipped_folder
from rpa_tune.tables.writer import merge_into, require_writable

if TYPE_CHECKING:
    from rpa_tune.sweep.exchange import Exchange

EXIT_FAILURES = 3
EXIT_BUDGET = 75
EXIT_INTERRUPTED = 130
# A check of blocks of 2048 tokens takes 20 s on a busy core, and a timeout is not promoted.
_LEAST_CHECK_DEADLINE_S = 300.0


@click.command()
@click.argument("plan_file", metavar="PLAN", type=click.Path(path_type=Path))
@click.option("--chip", type=ChipName(), help="Tune for this chip instead of the plan's.")
@click.option("--dry-run", is_flag=True, help="Print the estimated work and stop.")
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
@click.option("--executor", cls=RenamedOption, old="--engine", type=Choice(("local", "ray")),
              default="local", show_default=True,
              help="Where tasks run: processes on this machine, or a Ray cluster.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print JSON on stdout.")
def sweep(**options: Any) -> None:
    """Tunes what PLAN asks for and writes table rows.

    PLAN is a YAML file, or the name of a plan that comes with rpa-tune: public_hd64,
    public_stacked, public_v3, quickstart, steady_decode.

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
    plan = _load(asked)
    pool = _make_pool(asked)
    job = open_job(plan, asked.store_file, asked.shard_text)
    if not asked.as_json:  # stderr has events for machines then, the document has the source
        say_sources(study.workload for study in job.studies)
    if not asked.fresh:
        require_same_samplers(job.mine, job.plans, str(job.store_file))
    if asked.dry_run:
        answers = [] if asked.fresh else job.answers
        rows = forecast(job.mine, answers, pool.num_workers, verify=asked.verify)
        print_forecast(rows, asked.as_json)
        return
    run, outcome = _tune(asked, plan, pool, job)
    print_outcome(outcome, as_json=asked.as_json)
    if what := {EXIT_BUDGET: "budget spent", EXIT_INTERRUPTED: "interrupted"}.get(outcome.code):
        command = asked.resume_command(job.store_file)
        _say(f"{what}: {run.num_asked} new results are in {job.own}; resume with: {command}")
    raise click.exceptions.Exit(outcome.code)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Options:
    """What the command line says; see the options of `sweep`."""

    plan_file: Path
    chip: str | None
    dry_run: bool
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
            "--storage": None if self.storage is None else hide_password(self.storage),
        }
        for name, value in given.items():
            words += [] if value is None else [name, value]
        words += [] if self.verify else ["--no-verify"]
        return shlex.join(map(str, words))


def _tune(
    asked: _Options, plan: SweepPlan, pool: WorkerPool | RayPool, job: Job
) -> tuple[Sweep, Outcome]:
    """Runs the studies."""
    if job.shard is None:
        require_writable(asked.table_folder)
    if any(public_family(name) for name in plan.families):
        use_wheel(asked.cache / WHEELS)
    host, measuring = find_measuring_host(asked.executor, plan)
    with tempfile.TemporaryDirectory() as no_cache, _open_exchange(asked) as exchange:
        cache = Path(no_cache) if asked.fresh else asked.cache
        made = make_evaluators(plan, pool, cache, measuring)
        if not asked.verify:
            made.pop(Fidelity.INTERPRETED)
        with store.Journal(job.own, ignore_known=asked.fresh, also_known=job.known) as journal:
            run = Sweep(
                evaluators=made,
                journal=journal,
                watch=_make_watch(asked.as_json),
                deadline=None if plan.budget_s is None else time.monotonic() + plan.budget_s,
                num_together=num_side_by_side(pool.num_workers),
                num_shards=job.num_shards,
                winners=_winners(asked, job),
                chip_here=host.chip,
                exchange=exchange,
            )
            results, code, files = _run(run, job, asked.table_folder)
    return run, Outcome(
        results=results,
        files=files,
        table_folder=asked.table_folder,
        shard=job.shard,
        num_studies=len(job.mine),
        host=host,
        code=code,
    )


def _winners(asked: _Options, job: Job) -> list[Winner]:
    """What won before this run.

    Runs that share a storage must ask the same questions, whatever lies beside each of them: for
    them only what is installed counts.
    """
    if asked.storage is not None:
        return winners_before(job.studies, [], [shipped_folder()])
    return winners_before(job.studies, job.answers, [shipped_folder(), asked.table_folder])


def _say(text: str) -> None:
    click.echo(text, err=True)


def _load(asked: _Options) -> SweepPlan:
    """The plan, with what the command line puts in the place of its own."""
    plan = load_plan(asked.plan_file)
    if asked.chip is not None:
        plan = replace(plan, chips=(asked.chip,))
    if asked.budget is not None:
        plan = replace(plan, budget_s=parse_seconds(asked.budget, "--budget"))
    return plan


def _make_pool(asked: _Options) -> WorkerPool | RayPool:
    """Where tasks run; nothing starts yet, but a cluster is connected to."""
    if asked.executor == "ray":
        return RayPool(num_workers=asked.workers, address=os.environ.get("RAY_ADDRESS"))
    return WorkerPool(num_workers=asked.workers or _num_cores())


def _open_exchange(asked: _Options) -> "AbstractContextManager[Exchange | None]":
    """What runs share their work through, if they do."""
    if asked.storage is None:
        return nullcontext()
    if asked.fresh:
        raise UsageError(
            "--fresh ignores stored results, but --storage shares those of other runs",
            hint="to start over, give all runs a new --storage",
        )
    from rpa_tune.sweep.exchange import Exchange

    return Exchange(asked.storage)


def find_measuring_host(executor: str, plan: SweepPlan) -> tuple[MeasuringHost, TaskPool | None]:
    """What to measure on, and where; what is there is found out by a worker process.

    Args:
      executor: `local` looks for a TPU of this host, `ray` for TPU hosts of the cluster.
      plan: Says how many to measure, and for which chips.
    """
    if not plan.search.measure:
        return MeasuringHost(reason="the plan asks for no measurements"), None
    pool: TaskPool
    if executor == "ray":
        pool = RayPool(resources={"TPU": 1})
        if not pool.has_room:
            return MeasuringHost(reason="no node of the cluster has a TPU"), None
    elif has_tpu():
        pool = device_pool()
    else:
        return MeasuringHost(reason="this host has no TPU"), None
    host = find_host(pool)
    if host.chip in plan.chips:
        return host, pool
    pool.close()
    reason = host.reason or f"this TPU is a {host.chip}, which the plan does not name"
    return MeasuringHost(reason=reason, device=host.device), None


def _make_watch(as_json: bool) -> CountingWatch:
    """Bars for people, lines for logs, events for machines."""
    if as_json:
        return JsonWatch()
    console = Console(stderr=True)
    return RichWatch(console) if console.is_terminal else PlainWatch(console)


def make_evaluators(
    plan: SweepPlan, pool: TaskPool, cache: Path, measuring: TaskPool | None
) -> dict[Fidelity, AbstractEvaluator]:
    """The rungs, and the interpreter for the winners.

    Args:
      plan: Says how long a candidate may take.
      pool: Where candidates are compiled, simulated and interpreted.
      cache: Folder of compiles.
      measuring: Where they are measured; None where there is no TPU.
    """
    made: dict[Fidelity, AbstractEvaluator] = {
        Fidelity.ANALYTICAL: AnalyticalEvaluator(),
        Fidelity.SIMULATED: SimulatedEvaluator(
            pool=pool, cache_dir=cache, deadline_s=plan.search.deadline_s
        ),
        Fidelity.INTERPRETED: InterpretedEvaluator(
            pool=pool, deadline_s=max(plan.search.deadline_s, _LEAST_CHECK_DEADLINE_S)
        ),
    }
    if measuring is not None:
        made[Fidelity.MEASURED] = MeasuredEvaluator(pool=measuring)
    return made


def _run(run: Sweep, job: Job, table_folder: Path) -> tuple[list[StudyResult], int, list[Path]]:
    """Runs the studies; a run of all of them writes each one's row as soon as it is decided."""
    results: list[StudyResult] = []
    files: list[Path] = []
    code = 0
    # A batch system that wants its host back says so as a person does with Ctrl-C.
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with run.watch:
            for result in run.run(job.studies, shard=job.shard.index if job.shard else 0):
                results.append(result)
                row = result.row()
                if row is None:
                    code = EXIT_FAILURES
                elif job.shard is None:
                    files += merge_into(table_folder, [row])
    except BudgetSpentError:
        code = EXIT_BUDGET
    except KeyboardInterrupt:
        code = EXIT_INTERRUPTED
    finally:
        signal.signal(signal.SIGTERM, before)
        for evaluator in run.evaluators.values():
            evaluator.close()
    results.sort(key=lambda result: job.studies.index(result.study))
    return results, code, sorted(set(files))


def _num_cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 2
