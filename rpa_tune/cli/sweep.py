"""`rpa-tune sweep`: a plan in, tables out."""

import os
import shlex
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from rpa_tune.candidate import Evaluation, Fidelity, Status
from rpa_tune.cli.main import print_json
from rpa_tune.cli.paths import default_cache_dir
from rpa_tune.cli.progress import PlainWatch, RichWatch
from rpa_tune.cli.tables import config_lines, regret_text, verified_text, workload_text
from rpa_tune.evaluate.analytical import AnalyticalEvaluator
from rpa_tune.evaluate.evaluator import AbstractEvaluator
from rpa_tune.evaluate.interpreted import InterpretedEvaluator
from rpa_tune.evaluate.simulated import SimulatedEvaluator
from rpa_tune.families import public_family
from rpa_tune.hw.chip import load_chip
from rpa_tune.interop.wheel import use_wheel
from rpa_tune.provenance import provenance
from rpa_tune.public_kernels import WHEELS
from rpa_tune.store import journal as store
from rpa_tune.store.codec import stamp_of
from rpa_tune.sweep.nodes import parse_seconds
from rpa_tune.sweep.plan import SweepPlan, load_plan
from rpa_tune.sweep.study import Study, build_studies
from rpa_tune.sweep.sweep import BudgetSpentError, StudyResult, Sweep
from rpa_tune.sweep.watch import Watch
from rpa_tune.tables.writer import merge_into

EXIT_FAILURES = 3
EXIT_BUDGET = 75
EXIT_INTERRUPTED = 130
# Compile and simulate one candidate, until the store has times of its own. A guess.
_GUESSED_CANDIDATE_S = 8.0
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
    as_json: bool,
) -> None:
    """Tunes what PLAN asks for and writes table rows.

    Candidates are bounded analytically, the promising ones are compiled for the chip and their
    schedules simulated; winners are promoted if the interpreter finds them right. Everything learnt
    is stored at once: run the same command again to go on after an interruption.

    Exit codes: 0 done; 1 error; 2 usage; 3 some problem has no config that works; 75 budget
    spent; 130 interrupted. After 75 and 130 the same command resumes.

    Example: rpa-tune sweep sweeps/quickstart.yaml --chip v5e --budget 10m
    """
    plan = load_plan(plan_file)
    if chip is not None:
        plan = replace(plan, chips=(load_chip(chip).name,))
    budget_s = plan.budget_s if budget is None else parse_seconds(budget, "--budget")
    store_file = store_file or Path(".rpa-tune") / f"{plan.name}.jsonl"
    workers = workers or _num_cores()
    studies = build_studies(plan)
    if dry_run:
        _print_forecast(_forecast(studies, store_file, workers, fresh=fresh), as_json)
        return
    if any(public_family(name) for name in plan.families):
        use_wheel(cache / WHEELS)
    console = Console(stderr=True)
    watch: Watch = RichWatch(console) if console.is_terminal else PlainWatch(console)
    results: list[StudyResult] = []
    with (
        tempfile.TemporaryDirectory() as no_cache,
        store.Journal(store_file, ignore_known=fresh) as journal,
        watch,
    ):
        evaluators = make_evaluators(plan, workers, Path(no_cache) if fresh else cache)
        if not verify:
            evaluators.pop(Fidelity.INTERPRETED)
        run = Sweep(
            evaluators=evaluators,
            journal=journal,
            watch=watch,
            deadline=None if budget_s is None else time.monotonic() + budget_s,
        )
        code, files = _run(run, studies, table_folder, results)
    _report(results, files, table_folder, as_json=as_json, num_studies=len(studies), code=code)
    if code in (EXIT_BUDGET, EXIT_INTERRUPTED):
        what = "budget spent" if code == EXIT_BUDGET else "interrupted"
        kept = f"{run.num_asked} new answers are in {store_file}"
        places = {"--store": store_file, "--tables": table_folder, "--cache": cache}
        command = _resume_command(plan_file, chip, places, verify=verify)
        click.echo(f"{what}: {kept}; go on with: {command}", err=True)
    raise click.exceptions.Exit(code)


def make_evaluators(
    plan: SweepPlan, workers: int, cache: Path
) -> dict[Fidelity, AbstractEvaluator]:
    """The ladder of a machine without a TPU, and the interpreter for its winners."""
    return {
        Fidelity.ANALYTICAL: AnalyticalEvaluator(),
        Fidelity.SIMULATED: SimulatedEvaluator(
            num_workers=workers, cache_dir=cache, deadline_s=plan.search.deadline_s
        ),
        Fidelity.INTERPRETED: InterpretedEvaluator(
            num_workers=workers, deadline_s=max(plan.search.deadline_s, _LEAST_CHECK_DEADLINE_S)
        ),
    }


def _run(
    run: Sweep, studies: Sequence[Study], table_folder: Path, results: list[StudyResult]
) -> tuple[int, list[Path]]:
    """Runs the studies, writing each one's row as soon as it is decided."""
    files: list[Path] = []
    code = 0
    try:
        for result in run.run(studies):
            results.append(result)
            row = result.row()
            if row is None:
                code = EXIT_FAILURES
            else:
                files += merge_into(table_folder, [row])
    except BudgetSpentError:
        code = EXIT_BUDGET
    except KeyboardInterrupt:
        code = EXIT_INTERRUPTED
    finally:
        for evaluator in run.evaluators.values():
            evaluator.close()
    return code, sorted(set(files))


def _num_cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 2


def _resume_command(
    plan: Path, chip: str | None, places: Mapping[str, Path], *, verify: bool
) -> str:
    """The command that goes on; without `--fresh`, which would start over."""
    chip_option = [] if chip is None else ["--chip", chip]
    options = [word for name, path in places.items() for word in (name, str(path))]
    options += [] if verify else ["--no-verify"]
    return shlex.join(["rpa-tune", "sweep", str(plan), *chip_option, *options])


def _forecast(
    studies: Sequence[Study], store_file: Path, workers: int, *, fresh: bool
) -> list[dict[str, Any]]:
    """What each study would cost, from its space and the store."""
    known = () if fresh else store.read(store_file).evaluations
    simulated = [
        e for e in known if e.fidelity is Fidelity.SIMULATED and e.status not in store.TRANSIENT
    ]
    seconds = [e.metrics["evaluate_s"] for e in simulated if "evaluate_s" in e.metrics]
    each_s = sum(seconds) / len(seconds) if seconds else _GUESSED_CANDIDATE_S
    rows = []
    for study in studies:
        space = study.space()
        num_simulated = min(study.search.simulate, len(space.configs))
        stamp = stamp_of(provenance(study.family))
        num_known = sum(_belongs(e, study) and stamp_of(e.provenance) == stamp for e in simulated)
        todo = max(0, num_simulated - num_known)
        rows.append(
            {
                "study": study.name,
                "grid": space.num_points,
                "feasible": len(space.configs),
                "rejected": dict(space.rejected),
                "simulate_at_most": num_simulated,
                "known": num_known,
                "seconds": round(todo * each_s / workers, 1),
                "seconds_are": "from the store" if seconds else "a guess",
            }
        )
    return rows


def _belongs(evaluation: Evaluation, study: Study) -> bool:
    candidate = evaluation.candidate
    return (candidate.family, candidate.problem, candidate.chip, candidate.workload) == (
        study.family, study.problem, study.chip, study.workload.digest
    )  # fmt: skip


def _print_forecast(rows: list[dict[str, Any]], as_json: bool) -> None:
    if as_json:
        print_json({"studies": rows})
        return
    table = Table("study", "grid", "feasible", "simulate at most", "known", "seconds")
    for row in rows:
        table.add_row(
            row["study"], f"{row['grid']:,}", f"{row['feasible']:,}",
            str(row["simulate_at_most"]), str(row["known"]), f"{row['seconds']:g}",
        )  # fmt: skip
    Console().print(table)
    for row in rows:
        for limit, count in sorted(row["rejected"].items(), key=lambda item: -item[1]):
            click.echo(f"{row['study']}: {count:,} configs left out: {limit}")
    total = sum(row["seconds"] for row in rows)
    click.echo(f"about {total:g} s in all ({rows[0]['seconds_are']}); nothing was run")


def _report(
    results: Sequence[StudyResult],
    files: Sequence[Path],
    table_folder: Path,
    *,
    as_json: bool,
    num_studies: int,
    code: int,
) -> None:
    """Prints the outcome: a table for people, or one JSON document."""
    if as_json:
        document = {
            "exit_code": code,
            "studies": [_result_to_dict(result) for result in results],
            "num_studies": num_studies,
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
    chips = sorted({result.study.chip for result in results if result.decision})
    if chips:
        use = f'rpa_tune.load_dispatcher(chip="{chips[0]}", tables="{table_folder}")'
        click.echo(f"Tables are in {table_folder}{unchanged}. Use them: {use}")


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
            f"{row.evidence.verdict}, {'verified' if row.evidence.verified else 'not verified'}",
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
