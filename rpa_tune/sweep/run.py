"""`tune`: a plan in, results and table rows out. `rpa-tune sweep` is this with options and text."""

import functools
import os
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rpa_tune.candidate import Correctness, Fidelity, Method
from rpa_tune.compile.paths import default_cache_dir
from rpa_tune.compile.pool import TaskPool, WorkerPool
from rpa_tune.compile.ray_pool import RayPool
from rpa_tune.compile.target import worker_environment
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
from rpa_tune.ranges import RANGES
from rpa_tune.store.journal import Journal
from rpa_tune.sweep.identity import require_same_samplers
from rpa_tune.sweep.job import Job, open_job
from rpa_tune.sweep.lineup import num_side_by_side
from rpa_tune.sweep.oracle import BudgetSpentError
from rpa_tune.sweep.plan import SweepPlan
from rpa_tune.sweep.result import StudyResult
from rpa_tune.sweep.seeds import Winner, winners_before
from rpa_tune.sweep.sweep import Sweep
from rpa_tune.sweep.watch import Watch
from rpa_tune.tables.reader import shipped_folder
from rpa_tune.tables.writer import merge_into, require_writable

if TYPE_CHECKING:
    from rpa_tune.sweep.exchange import Exchange

BUDGET_SPENT, INTERRUPTED = "budget spent", "interrupted"
# A check of blocks of 2048 tokens takes 20 s on a busy core, and a timeout is not promoted.
_LEAST_CHECK_DEADLINE_S = 300.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """How a run ended; to iterate over it is to iterate over its results.

    Attributes:
      results: Of the studies that were decided, in the order of the plan.
      job: What the run had to do, and where its answers are.
      tables: Files of rows that changed.
      measuring: What could be measured on, or why nothing could.
      num_asked: Evaluations that no store knew.
      stopped: `budget spent` or `interrupted` when studies are missing, else empty. The same call
        goes on.
    """

    results: tuple[StudyResult, ...]
    job: Job
    tables: tuple[Path, ...]
    measuring: MeasuringHost
    num_asked: int
    stopped: str = ""

    def __iter__(self) -> Iterator[StudyResult]:
        """The results."""
        return iter(self.results)

    def __len__(self) -> int:
        """How many studies were decided."""
        return len(self.results)


def tune(
    plan: str | Path | Mapping[str, Any] | SweepPlan | Job,
    *,
    workers: int | None = None,
    journal: str | Path | None = None,
    tables: str | Path | None = None,
    cache: str | Path | None = None,
    verify: bool = True,
    fresh: bool = False,
    shard: str | None = None,
    storage: str | None = None,
    pool: WorkerPool | RayPool | None = None,
    watch: Watch | None = None,
    returns_when_interrupted: bool = False,
) -> Outcome:
    """Tunes what a plan asks for; what `rpa-tune sweep` does. Prints nothing.

    Every answer is in the journal before the next question is asked: after an interruption or a
    spent budget the same call goes on. A plan's `budget_s` limits the time.

    Args:
      plan: A YAML file, the name of a plan that comes with rpa-tune, a mapping with the same keys,
        a plan, or a job that `open_job` made of one.
      workers: Worker processes; one per core if None.
      journal: File where answers are kept; `.rpa-tune/PLAN.jsonl` if None.
      tables: Folder that rows are written to, and whose rows searches start from; None writes none.
      cache: Folder for cached compiles; the user's cache folder if None.
      verify: Whether what is about to be promoted is compared with the reference.
      fresh: Whether to ignore stored results and cached compiles.
      shard: `I/N` runs the I-th of N parts, with a journal of its own, and writes no tables.
      storage: Journal file or `postgresql://USER@HOST/DATABASE` through which several runs share
        the work, each with a journal of its own.
      pool: Where candidates are compiled, instead of worker processes here; closed at the end. Its
        workers have the plan's `libtpu_args`.
      watch: Who is told what happens.
      returns_when_interrupted: Whether `KeyboardInterrupt` ends the run with what was decided;
        raised otherwise.

    Raises:
      UsageError: The plan is wrong, or arguments contradict each other.
      StoreError: The journal cannot be used: it is another run's, or of other versions.
      TableError: The folder of tables cannot be written.
    """
    if isinstance(plan, Job) and (journal is not None or shard is not None):
        raise UsageError("a job has its journal and its shard", where="tune(journal=, shard=)")
    job = plan if isinstance(plan, Job) else open_job(plan, journal, shard)
    cache = default_cache_dir() if cache is None else Path(cache)
    fetch_families(job, cache)
    if not fresh:
        require_same_samplers(job.mine, job.plans, str(job.store_file))
    if pool is not None and workers is not None:
        raise UsageError("a pool has workers of its own", where="tune(workers=, pool=)")
    pool = pool or make_pool(workers, job.plan.libtpu_args)
    folder = Path(tables) if tables is not None and job.shard is None else None
    if folder is not None:
        require_writable(folder)
    host, measuring = find_measuring_host(job.plan, on_cluster=isinstance(pool, RayPool))
    with tempfile.TemporaryDirectory() as no_cache, _open_exchange(storage, fresh) as exchange:
        made = make_evaluators(job.plan, pool, Path(no_cache) if fresh else cache, measuring)
        if not verify:
            made.pop(Correctness.INTERPRETED)
        budget_s = job.plan.budget_s
        with Journal(job.own, ignore_known=fresh, also_known=job.known) as opened:
            run = Sweep(
                evaluators=made,
                journal=opened,
                watch=watch or Watch(),
                deadline=None if budget_s is None else time.monotonic() + budget_s,
                num_together=num_side_by_side(pool.num_workers),
                num_shards=job.num_shards,
                winners=_winners(job, tables, storage),
                chip_here=host.chip,
                exchange=exchange,
            )
            results, files, stopped = _run(run, job, folder, returns_when_interrupted)
    return Outcome(
        results=tuple(sorted(results, key=lambda result: job.studies.index(result.study))),
        job=job,
        tables=tuple(sorted(set(files))),
        measuring=host,
        num_asked=run.num_asked,
        stopped=stopped,
    )


def fetch_families(job: Job, cache: Path) -> None:
    """Has everything there that the studies' kernels need; their own choices may need it, too.

    Args:
      job: What is run.
      cache: Folder of the compile cache.

    Raises:
      UsageError: It could not be had.
    """
    for family in dict.fromkeys(study.family for study in job.studies):
        family.fetch(cache)


def make_pool(workers: int | None = None, libtpu_args: str = "") -> WorkerPool:
    """Worker processes of this host; none starts yet.

    Args:
      workers: How many; one a core if None.
      libtpu_args: Flags that they give libtpu.

    Raises:
      UsageError: Not a number of processes.
    """
    num_workers = num_cores() if workers is None else RANGES["workers"].check(workers, "workers")
    return WorkerPool(
        num_workers=int(num_workers),
        environment=functools.partial(worker_environment, libtpu_args=libtpu_args),
    )


def find_measuring_host(
    plan: SweepPlan, *, on_cluster: bool = False
) -> tuple[MeasuringHost, TaskPool | None]:
    """What to measure on, and where; what is there is found out by a worker process.

    Args:
      plan: Says how many to measure, and for which chips.
      on_cluster: Whether to look for TPU hosts of the Ray cluster, instead of a TPU of this host.
    """
    if not plan.search.measure:
        return MeasuringHost(reason="the plan asks for no measurements"), None
    pool: TaskPool
    if on_cluster:
        pool = RayPool(resources={"TPU": 1}, libtpu_args=plan.libtpu_args)
        if not pool.has_room:
            return MeasuringHost(reason="no node of the cluster has a TPU"), None
    elif has_tpu():
        pool = device_pool(libtpu_args=plan.libtpu_args) if plan.libtpu_args else device_pool()
    else:
        return MeasuringHost(reason="this host has no TPU"), None
    host = find_host(pool)
    if host.chip in plan.chips:
        return host, pool
    pool.close()
    reason = host.reason or f"this TPU is a {host.chip}, which the plan does not name"
    return MeasuringHost(reason=reason, device=host.device), None


def make_evaluators(
    plan: SweepPlan, pool: TaskPool, cache: Path, measuring: TaskPool | None
) -> dict[Method, AbstractEvaluator]:
    """The rungs, and the interpreter for the winners.

    Args:
      plan: Says how long a candidate may take.
      pool: Where candidates are compiled, simulated and interpreted.
      cache: Folder of compiles.
      measuring: Where they are measured; None where there is no TPU.
    """
    made: dict[Method, AbstractEvaluator] = {
        Fidelity.ANALYTICAL: AnalyticalEvaluator(),
        Fidelity.SIMULATED: SimulatedEvaluator(
            pool=pool,
            cache_dir=cache,
            deadline_s=plan.search.deadline_s,
            libtpu_args=plan.libtpu_args,
        ),
        Correctness.INTERPRETED: InterpretedEvaluator(
            pool=pool, deadline_s=max(plan.search.deadline_s, _LEAST_CHECK_DEADLINE_S)
        ),
    }
    if measuring is not None:
        made[Fidelity.MEASURED] = MeasuredEvaluator(pool=measuring)
    return made


def _run(
    run: Sweep, job: Job, tables: Path | None, returns_when_interrupted: bool
) -> tuple[list[StudyResult], list[Path], str]:
    """Runs the studies, and writes each one's row as soon as it is decided.

    Returns:
      What was decided, the files that changed, and why studies are missing, if some are.
    """
    results: list[StudyResult] = []
    files: list[Path] = []
    stopped = ""
    try:
        # What cannot be read of any schedule is found out before the first candidate is compiled.
        chips = {study.chip.name: study.chip for study in job.studies}
        for evaluator in run.evaluators.values():
            evaluator.prepare(chips.values())
        with run.watch:
            for result in run.run(job.studies, shard=job.shard.index if job.shard else 0):
                results.append(result)
                if tables is not None and (rows := result.rows()):
                    files += merge_into(tables, rows)
    except BudgetSpentError:
        stopped = BUDGET_SPENT
    except KeyboardInterrupt:
        if not returns_when_interrupted:
            raise
        stopped = INTERRUPTED
    finally:
        for evaluator in run.evaluators.values():
            evaluator.close()
    return results, files, stopped


def _winners(job: Job, tables: str | Path | None, storage: str | None) -> list[Winner]:
    """What won before this run.

    Runs that share a storage must ask the same questions, whatever lies beside each of them: for
    them only what came with this project counts.
    """
    if storage is not None:
        return winners_before(job.studies, [], [shipped_folder()], asks_packages=False)
    folders = [shipped_folder()] if tables is None else [shipped_folder(), Path(tables)]
    return winners_before(job.studies, job.answers, folders)


def _open_exchange(storage: str | None, fresh: bool) -> "AbstractContextManager[Exchange | None]":
    """What runs share their work through, if they do."""
    if storage is None:
        return nullcontext()
    if fresh:
        raise UsageError(
            "--fresh ignores stored results, but --storage shares those of other runs",
            hint="to start over, give all runs a new --storage",
        )
    from rpa_tune.sweep.exchange import Exchange

    return Exchange(storage)


def num_cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 2
