"""`rpa-tune sweep`: a plan in, tables out."""

import math
import os
import shlex
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from rpa_tune.candidate import Evaluation, Fidelity, Status
from rpa_tune.cli.forecast import forecast, print_forecast
from rpa_tune.cli.main import print_json
from rpa_tune.cli.paths import default_cache_dir
from rpa_tune.cli.progress import CountingWatch, JsonWatch, PlainWatch, RichWatch
from rpa_tune.cli.tables import (
    config_lines,
    regret_text,
    uses_text,
    verdict_text,
    verified_text,
    workload_text,
)
from rpa_tune.compile.pool import TaskPool, WorkerPool
from rpa_tune.compile.ray_pool import RayPool
from rpa_tune.errors import StoreError
from rpa_tune.evaluate.analytical import AnalyticalEvaluator
from rpa_tune.evaluate.evaluator import AbstractEvaluator
from rpa_tune.evaluate.interpreted import InterpretedEvaluator
from rpa_tune.evaluate.simulated import SimulatedEvaluator
from rpa_tune.families import public_family
from rpa_tune.hw.chip import load_chip
from rpa_tune.interop.wheel import use_wheel
from rpa_tune.public_kernels import WHEELS
from rpa_tune.store import journal as store
from rpa_tune.store.shards import Shard, find_shards, parse_shard, read_others, require_idle
from rpa_tune.sweep.lineup import line_up
from rpa_tune.sweep.nodes import parse_seconds
from rpa_tune.sweep.plan import SweepPlan, load_plan
from rpa_tune.sweep.seeds import winners_before
from rpa_tune.sweep.study import Study, build_studies
from rpa_tune.sweep.sweep import BudgetSpentError, StudyResult, Sweep
from rpa_tune.tables.reader import shipped_folder
from rpa_tune.tables.writer import merge_into

EXIT_FAILURES = 3
EXIT_BUDGET = 75
EXIT_INTERRUPTED = 130
# A check of blocks of 2048 tokens takes 20 s on a busy core, and a timeout is not promoted.
_LEAST_CHECK_DEADLINE_S = 300.0


@click.command()
@click.argument("plan_file", metavar="PLAN", type=click.Path(path_type=Path))
@click.option("--chip", help="Tune for this chip instead of the plan's.")
@click.option("--dry-run", is_flag=True, help="Only say how much there is to do.")
@click.option("--fresh", is_flag=True, help="Ask again what the store and the cache know.")
@click.option("--workers", type=click.IntRange(1), help="Compiler processes; default: one a core.")
@click.option("--budget", help="Stop after this long, resumable: 90s, 30m, 2h.")
@click.option("--store", "store_file", type=click.Path(path_type=Path),
              help="Answers are kept here; default .rpa-tune/PLAN.jsonl.")  # fmt: skip
@click.option("--tables", "table_folder", type=click.Path(path_type=Path), show_default=True,
              default=Path("tuned_tables"), help="Rows are written here.")  # fmt: skip
@click.option("--cache", type=click.Path(path_type=Path), default=default_cache_dir,
              help="Folder of compiles; default: the user's cache folder.")  # fmt: skip
@click.option("--verify/--no-verify", default=True, show_default=True,
              help="Compare with the reference what is about to be promoted.")  # fmt: skip
@click.option("--shard", "shard_text", metavar="I/N",
              help="Run the I-th of N parts, with a store file of its own.")  # fmt: skip
@click.option("--engine", type=click.Choice(("local", "ray")), default="local", show_default=True,
              help="Where to compile: processes here, or a Ray cluster.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print JSON on stdout.")
def sweep(
    plan_file: Path,
    chip: str | None,
    dry_run: bool,
    fresh: bool,
    workers: int | None,
    budget: str | None,
    store_file: Path | None,
    table_folder: Path,
    cache: Path,
    verify: bool,
    shard_text: str | None,
    engine: str,
    as_json: bool,
) -> None:
    """Tunes what PLAN asks for and writes table rows.

    Candidates are bounded analytically, the promising ones are compiled for the chip and their
    schedules simulated; winners are promoted if the interpreter finds them right. Everything learnt
    is stored at once: run the same command again to go on after an interruption.

    On a batch system, --shard 1/N to N/N run over one --store; afterwards the same command without
    --shard finishes what is missing and writes the tables.

    Exit codes: 0 done; 1 error; 2 usage; 3 some problem has no config that works; 75 budget
    spent; 130 interrupted. After 75 and 130 the same command resumes.

    Example: rpa-tune sweep sweeps/quickstart.yaml --chip v5e --budget 10m
    """
    plan = _load(plan_file, chip, budget)
    store_file = store_file or Path(".rpa-tune") / f"{plan.name}.jsonl"
    pool = _make_pool(engine, workers)
    shard = parse_shard(shard_text) if shard_text else None
    job = _open_job(build_studies(plan), store_file, shard)
    if dry_run:
        answers = [] if fresh else job.answers
        print_forecast(forecast(job.mine, answers, pool.num_workers, verify=verify), as_json)
        return
    if any(public_family(name) for name in plan.families):
        use_wheel(cache / WHEELS)
    with tempfile.TemporaryDirectory() as no_cache:
        made = make_evaluators(plan, pool, Path(no_cache) if fresh else cache)
        with store.Journal(job.own, ignore_known=fresh, also_known=job.known) as journal:
            run = Sweep(
                evaluators={f: e for f, e in made.items() if verify or f != Fidelity.INTERPRETED},
                journal=journal,
                watch=_make_watch(as_json),
                deadline=None if plan.budget_s is None else time.monotonic() + plan.budget_s,
                num_together=1 + math.ceil(2 * pool.num_workers / plan.search.wave),
                num_shards=job.num_shards,
                winners=winners_before(job.studies, job.answers, [shipped_folder(), table_folder]),
            )
            results, code, files = _run(run, job, table_folder)
    _report(results, files, table_folder, as_json=as_json, job=job, code=code)
    places = {"--store": store_file, "--tables": table_folder, "--cache": cache}
    options = ["--engine", engine] * (engine != "local") + ["--no-verify"] * (not verify)
    command = _resume_command(plan_file, chip, places, options, job.shard)
    if what := {EXIT_BUDGET: "budget spent", EXIT_INTERRUPTED: "interrupted"}.get(code):
        _say(f"{what}: {run.num_asked} new answers are in {job.own}; go on with: {command}")
    raise click.exceptions.Exit(code)


def _say(text: str) -> None:
    click.echo(text, err=True)


def _load(plan_file: Path, chip: str | None, budget: str | None) -> SweepPlan:
    """The plan, with what the command line puts in the place of its own."""
    plan = load_plan(plan_file)
    if chip is not None:
        plan = replace(plan, chips=(load_chip(chip).name,))
    if budget is not None:
        plan = replace(plan, budget_s=parse_seconds(budget, "--budget"))
    return plan


def _make_pool(engine: str, workers: int | None) -> WorkerPool | RayPool:
    """Where tasks run; nothing starts yet, but a cluster is connected to."""
    if engine == "ray":
        return RayPool(num_workers=workers, address=os.environ.get("RAY_ADDRESS"))
    return WorkerPool(num_workers=workers or _num_cores())


def _make_watch(as_json: bool) -> CountingWatch:
    """Bars for people, lines for logs, events for machines."""
    if as_json:
        return JsonWatch()
    console = Console(stderr=True)
    return RichWatch(console) if console.is_terminal else PlainWatch(console)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Job:
    """What this run does of a sweep.

    Attributes:
      studies: All of the plan.
      mine: Those that this run does.
      shard: Which part that is; None for all.
      num_shards: Runs that the studies are dealt out to.
      own: The file to write to.
      known: What the other files know.
      answers: What all files know.
    """

    studies: list[Study]
    mine: list[Study]
    shard: Shard | None
    num_shards: int
    own: Path
    known: list[Evaluation]
    answers: list[Evaluation]


def _open_job(studies: list[Study], store_file: Path, shard: Shard | None) -> _Job:
    """Looks at what lies beside the store.

    Raises:
      StoreError: The shards beside the store are no parts of this sweep, or not yet at their end.
    """
    found = find_shards(store_file)
    own = store_file if shard is None else shard.path(store_file)
    counts = {other.count for other in found} | ({shard.count} if shard else set())
    if shard and len(counts) > 1:
        raise StoreError(
            f"shard {shard} does not belong to the shards beside the store, of which there are "
            f"{min(counts - {shard.count})}",
            where=str(store_file),
            hint="remove those, or use another --store",
        )
    if shard is None:
        require_idle(found, store_file)
    num_shards = max(counts, default=1)
    places = line_up(studies, num_shards)
    mine = [studies[p.index] for p in places if shard is None or p.shard == shard.index]
    known = read_others(store_file, own)
    return _Job(
        studies=studies,
        mine=mine,
        shard=shard,
        num_shards=num_shards,
        own=own,
        known=known,
        answers=[*known, *store.read(own).evaluations],
    )


def make_evaluators(
    plan: SweepPlan, pool: TaskPool, cache: Path
) -> dict[Fidelity, AbstractEvaluator]:
    """The ladder of a machine without a TPU, and the interpreter for its winners."""
    return {
        Fidelity.ANALYTICAL: AnalyticalEvaluator(),
        Fidelity.SIMULATED: SimulatedEvaluator(
            pool=pool, cache_dir=cache, deadline_s=plan.search.deadline_s
        ),
        Fidelity.INTERPRETED: InterpretedEvaluator(
            pool=pool, deadline_s=max(plan.search.deadline_s, _LEAST_CHECK_DEADLINE_S)
        ),
    }


def _run(run: Sweep, job: _Job, table_folder: Path) -> tuple[list[StudyResult], int, list[Path]]:
    """Runs the studies; a run of all of them writes each one's row as soon as it is decided."""
    results: list[StudyResult] = []
    files: list[Path] = []
    code = 0
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
        for evaluator in run.evaluators.values():
            evaluator.close()
    results.sort(key=lambda result: job.studies.index(result.study))
    return results, code, sorted(set(files))


def _num_cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 2


def _resume_command(
    plan: Path,
    chip: str | None,
    places: Mapping[str, Path],
    options: Sequence[str],
    shard: Shard | None,
) -> str:
    """The command that goes on; without `--fresh`, which would start over."""
    chip_option = [] if chip is None else ["--chip", chip]
    words = [word for name, path in places.items() for word in (name, str(path))]
    words += [*options, *([] if shard is None else ["--shard", str(shard)])]
    return shlex.join(["rpa-tune", "sweep", str(plan), *chip_option, *words])


def _report(
    results: Sequence[StudyResult],
    files: Sequence[Path],
    table_folder: Path,
    *,
    as_json: bool,
    job: _Job,
    code: int,
) -> None:
    """Prints the outcome: a table for people, or one JSON document."""
    if as_json:
        document = {
            "exit_code": code,
            "studies": [_result_to_dict(result) for result in results],
            "num_studies": len(job.mine),
            "tables": [str(path) for path in files],
        }
        print_json(document)
        return
    if results:
        Console(width=max(120, Console().width)).print(_outcome(results))
    for result in results:
        if (row := result.row()) is not None:
            click.echo(
                f"{result.study.name}: {workload_text(row)}; {regret_text(row)}; "
                f"{verified_text(row)}"
            )
        for stop in result.stops:
            if stop.reason == Status.WRONG_ANSWER:
                click.echo(f"{result.study.name}: WRONG: {stop.candidate.config}: {stop.detail}")
        if result.decision is None:
            click.echo(f"{result.study.name}: no config works: {_summary(result)}")
    unchanged = "" if files else " (unchanged)"
    if job.shard is not None:
        click.echo(
            f"Shard {job.shard} is done. Without --shard, the same command writes the tables."
        )
        return
    if rows := [row for result in results if (row := result.row()) is not None]:
        click.echo(f"Tables are in {table_folder}{unchanged}. {uses_text(rows, table_folder)}")


def _outcome(results: Sequence[StudyResult]) -> Table:
    """Per study: the chosen config, its time, the heuristic's, the speed-up, what bounds it."""
    table = Table(title="Expected time of one launch over the workload, simulated", show_lines=True)
    table.add_column("study", no_wrap=True)
    table.add_column("config", min_width=24)
    for name in ("time us", "heuristic us", "speed-up"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("bound by")
    table.add_column("verdict")
    for result in results:
        row = result.row()
        if row is None:
            table.add_row(result.study.name, "none", "-", "-", "-", "-", "no config works")
            continue
        table.add_row(
            result.study.name,
            "\n".join(config_lines(row)),
            f"{row.evidence.time_us:,.1f}",
            _number(row.evidence.heuristic_us, 1),
            _number(row.evidence.speedup, 2),
            row.evidence.bound_by or "-",
            verdict_text(row),
        )
    return table


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:,.{digits}f}"


def _summary(result: StudyResult) -> str:
    """Why nothing works: reasons with counts, and one example."""
    counts = Counter(stop.reason for stop in result.stops)
    counts.update({f"rejected by {limit}": n for limit, n in result.space.rejected.items()})
    text = ", ".join(f"{count} {reason}" for reason, count in counts.most_common())
    example = next((stop.detail for stop in result.stops if stop.detail), "")
    return f"{text}; for example {example}" if example else text


def _result_to_dict(result: StudyResult) -> dict[str, Any]:
    decision = result.decision
    row = result.row()
    return {
        "study": result.study.name,
        "chip": result.study.chip,
        "family": result.study.family,
        "workload": result.study.workload.name,
        "workload_source": result.study.workload.source,
        "workload_digest": result.study.workload.digest,
        "verdict": row.evidence.verdict if row else "none",
        "config": row.configs[0] if row else None,
        "time_us": row.evidence.time_us if row else None,
        "heuristic_us": row.evidence.heuristic_us if row else None,
        "speedup": row.evidence.speedup if row else None,
        "bound_by": row.evidence.bound_by if row else None,
        "verified": row.evidence.verified if row else "",
        "regret_by_num_configs_pct": row.evidence.regret_by_num_configs_pct if row else (),
        "best_us": decision.best.time_us if decision else None,
        "row": row.to_dict() if row else None,
        "num_feasible": len(result.space.configs),
        "rejected": dict(result.space.rejected),
        "num_evaluated": len(result.answers),
        "num_asked": result.num_asked,
        "statuses": dict(Counter(answer.status.value for answer in result.answers)),
        "stopped": [
            {"config": asdict(stop.candidate.config), "reason": stop.reason, "detail": stop.detail}
            for stop in result.stops
        ],
    }
