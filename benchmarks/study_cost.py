"""What a study costs, in CPU seconds, and what its answer is worth: today and before a change.

    python benchmarks/study_cost.py --json benchmarks/results/study_cost.json

Ten studies are run by the code of this checkout and by that of an earlier commit, each from an
empty store and an empty cache with one worker process, by the defaults of a plan, the check of the
winner and the times under all sets of parameters included. Today's start from winners of the tables
that ship, as every sweep does, but for rows of the study's own key, or of its heads, page and
window. CPU seconds are those of the process and of its worker.

The rule that draws them: the spaces of `spaces/` by name, of each chip and family the first, then
the rest. Of that list the first five whose recorded optimum beats the heuristic by 10 %, then the
first others, ten in all. Each space is that of the record: its axes, on today's kernels. All its
configs are simulated (today's code), and the regret of a build is how much slower the config that
it chose is than the best of them, by these times. What the study of today compiled is not compiled
again for that. Times are simulated, CPU seconds measured.

Every part is kept in a folder beside the JSON file, and not run again: the command can be stopped.
"""

import gzip
import importlib.metadata
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

FOLDER = Path(__file__).parent
NUM_STUDIES, NUM_GAINING, GAIN_PCT = 10, 5, 10.0
BEFORE = "c2247f0"  # the last commit before studies were made cheaper
TODAY, EARLIER, TRUTH = "today", "before", "truth"
_BUILD = {TODAY: TODAY, EARLIER: EARLIER, TRUTH: TODAY}  # whose compiles a part may find


def read_space(path: Path) -> dict[str, Any]:
    """What `record.py` wrote."""
    found: dict[str, Any] = json.loads(gzip.decompress(path.read_bytes()))
    return found


def gain_pct(space: dict[str, Any]) -> float:
    """How much slower than the recorded optimum the heuristic was recorded, in percent."""
    times = {json.dumps(c["config"], sort_keys=True): c["time_us"] for c in space["configs"]}
    best = min(us for us in times.values() if us is not None)
    heuristic = times[json.dumps(space["heuristic"], sort_keys=True)]
    return 100 * (heuristic / best - 1) if heuristic else 0.0


def draw(paths: list[Path]) -> list[Path]:
    """The studies, by the rule of this file."""
    spaces = {path: read_space(path) for path in sorted(paths)}
    firsts: dict[tuple[str, str], Path] = {}
    for path, space in spaces.items():
        firsts.setdefault((space["chip"], space["family"]), path)
    ordered = [*firsts.values(), *(path for path in spaces if path not in firsts.values())]
    gaining = [path for path in ordered if gain_pct(spaces[path]) >= GAIN_PCT][:NUM_GAINING]
    others = [path for path in ordered if path not in gaining]
    return [*gaining, *others][:NUM_STUDIES]


def run_part(path: Path, kind: str, cache: Path) -> dict[str, Any]:
    """Runs one study in this process and a worker; written for the modules of both commits."""
    from rpa_tune.candidate import Correctness, Fidelity
    from rpa_tune.compile.pool import WorkerPool
    from rpa_tune.evaluate.analytical import AnalyticalEvaluator
    from rpa_tune.evaluate.interpreted import InterpretedEvaluator
    from rpa_tune.evaluate.simulated import SimulatedEvaluator
    from rpa_tune.store.journal import Journal
    from rpa_tune.sweep.sampler import Search
    from rpa_tune.sweep.sweep import Sweep
    from rpa_tune.sweep.watch import Watch

    study = build_study(read_space(path))
    deadline_s = 1800.0  # of CPU that others use, too
    search = Search(deadline_s=deadline_s)
    if kind == TRUTH:
        search = replace(search, sampler="exhaustive", simulate=10**6)
    study = replace(study, search=search)
    with tempfile.TemporaryDirectory() as work:
        pool = WorkerPool(num_workers=2 if kind == TRUTH else 1, deadline_s=deadline_s)
        made: dict[Any, Any] = {
            Fidelity.ANALYTICAL: AnalyticalEvaluator(),
            Fidelity.SIMULATED: SimulatedEvaluator(
                pool=pool, cache_dir=cache, deadline_s=deadline_s
            ),
        }
        if kind != TRUTH:
            made[Correctness.INTERPRETED] = InterpretedEvaluator(pool=pool, deadline_s=deadline_s)
        more = {"winners": winners_elsewhere(study)} if kind == TODAY else {}
        with pool, Journal(Path(work) / "store.jsonl") as store:
            (result,) = Sweep(evaluators=made, journal=store, watch=Watch(), **more).run([study])
    timed = [answer for answer in result.answers if answer.ok]
    chosen = study.heuristic() if result.decision is None else (
        result.decision.chosen.candidate.config
    )  # fmt: skip
    usage = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return {
        "study": study.name,
        "cpu_s": round(sum(one.ru_utime + one.ru_stime for one in usage), 2),
        "answers": len(result.answers),
        "chosen": str(chosen),
        "verified": result.verified,
        "kernel": study.family.digest,
        "times_us": {str(answer.candidate.config): answer.time_us for answer in timed},
        "schedules": {
            str(answer.candidate.config): answer.metrics.get("schedule_digest") for answer in timed
        },
    }


def winners_elsewhere(study: Any) -> Any:
    """What the shipped tables know of other problems: not of the same heads, page and window."""
    from rpa_tune.sweep.seeds import winners_before
    from rpa_tune.tables.reader import shipped_folder

    def shape(key: Any) -> tuple[Any, ...]:
        heads = (key.num_q_heads, key.num_kv_heads, key.head_dim, key.page_size)
        return (key.chip, *heads, key.sliding_window_tokens)

    found = winners_before([study], [], [shipped_folder()], asks_packages=False)
    return [winner for winner in found if shape(winner.key) != shape(study.key)]


def build_study(space: dict[str, Any]) -> Any:
    """The study of a recorded space, on the kernels of whoever runs this."""
    from rpa_kernels.problem import Problem
    from rpa_tune.families.registry import load_family
    from rpa_tune.hw.chip import load_chip
    from rpa_tune.sweep.study import Study
    from rpa_tune.workload.workload import load_workload

    family, problem = load_family(space["family"]), Problem(**space["problem"])
    workload = load_workload(space["workload"], page_size=problem.page_size)
    return Study(
        name=space["study"],
        family=family,
        problem=problem,
        chip=load_chip(space["chip"]),
        workload=workload.for_family(*family.slots),
        overrides={axis: tuple(values) for axis, values in space["axes"].items()},
    )


def run_apart(path: Path, kind: str, kept: Path, tree: Path | None) -> dict[str, Any]:
    """A part in a process of its own, by a commit's code, unless it is kept."""
    name = path.name.removesuffix(".truth.json.gz")
    file, cache = kept / f"{name}.{kind}.json", kept / f"{name}.{_BUILD[kind]}.cache"
    if not file.exists():
        environment = dict(os.environ)
        if tree is not None:
            environment["PYTHONPATH"] = str(tree)
        if kind != TRUTH:
            shutil.rmtree(cache, ignore_errors=True)
        cache.mkdir(exist_ok=True)
        done = subprocess.run(
            [sys.executable, __file__, "--part", kind, "--cache", str(cache), str(path)],
            check=True, stdout=subprocess.PIPE, text=True, env=environment,
        )  # fmt: skip
        file.with_suffix(".part").write_text(done.stdout.splitlines()[-1] + "\n")
        file.with_suffix(".part").rename(file)
    found: dict[str, Any] = json.loads(file.read_text())
    return found


def summarize(parts: dict[str, dict[str, Any]], gain: float) -> dict[str, Any]:
    """One study: what each build took, its regret, and whether schedules are equal."""
    truth = parts[TRUTH]["times_us"]
    best = min(truth.values())
    row: dict[str, Any] = {"study": parts[TODAY]["study"], "recorded_gain_pct": round(gain, 2)}
    for build in (EARLIER, TODAY):
        part = parts[build]
        row[build] = {
            "cpu_s": part["cpu_s"],
            "answers": part["answers"],
            "chosen": part["chosen"],
            "verified": part["verified"],
            "regret_pct": round(100 * (truth[part["chosen"]] / best - 1), 3),
        }
    both = parts[TODAY]["schedules"].keys() & parts[EARLIER]["schedules"].keys()
    same = [parts[TODAY]["schedules"][c] == parts[EARLIER]["schedules"][c] for c in both]
    row |= {
        "configs": len(truth),
        "same_kernel": parts[TODAY]["kernel"] == parts[EARLIER]["kernel"],
        "schedules_in_common": len(same),
        "schedules_equal": sum(same),
        "cpu_ratio": round(row[TODAY]["cpu_s"] / row[EARLIER]["cpu_s"], 4),
    }
    return row


def total(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Over the studies that are done: CPU seconds of all by those of all before, and regrets."""
    document: dict[str, Any] = {}
    for build in (EARLIER, TODAY):
        regrets = [row[build]["regret_pct"] for row in rows]
        document[build] = {
            "cpu_s": round(sum(row[build]["cpu_s"] for row in rows), 1),
            "mean_answers": statistics.mean(row[build]["answers"] for row in rows),
            "median_regret": statistics.median(regrets),
            "worst_regret": max(regrets),
        }
    ratio = document[TODAY]["cpu_s"] / document[EARLIER]["cpu_s"]
    return {"cpu_ratio": round(ratio, 4), "num_studies": len(rows), **document, "studies": rows}


@click.command(help=(__doc__ or "").split("\n")[0])
@click.argument("part_of", required=False, type=click.Path(path_type=Path))
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Write the figures.")
@click.option("--before", default=BEFORE, show_default=True, help="The commit to compare with.")
@click.option("--studies", default=NUM_STUDIES, show_default=True, help="The first so many only.")
@click.option("--part", type=click.Choice([TODAY, EARLIER, TRUTH]), hidden=True)
@click.option("--cache", type=click.Path(path_type=Path), hidden=True)
def main(
    part_of: Path | None, json_file: Path | None, before: str, studies: int, part: str | None,
    cache: Path | None,
) -> None:  # fmt: skip
    """Runs what is missing, prints the table and writes it."""
    if part is not None and part_of is not None and cache is not None:
        click.echo(json.dumps(run_part(part_of, part, cache)))
        return
    if json_file is None:
        raise click.UsageError("--json names the file to write")
    from before import Before

    kept = json_file.with_suffix(".parts")
    kept.mkdir(parents=True, exist_ok=True)
    rows = []
    tree = Before(before, kept).tree
    drawn = draw(list((FOLDER / "spaces").glob("*.gz")))[:studies]
    done: dict[Path, dict[str, dict[str, Any]]] = {path: {} for path in drawn}
    for path in drawn:  # the figures first: the truth takes longest
        for kind in (EARLIER, TODAY):
            done[path][kind] = run_apart(path, kind, kept, tree if kind == EARLIER else None)
            click.echo(f"{path.name}: {done[path][kind]['cpu_s']:.0f} s of CPU {kind}", err=True)
    for path in drawn:
        parts = done[path] | {TRUTH: run_apart(path, TRUTH, kept, None)}
        rows.append(summarize(parts, gain_pct(read_space(path))))
        row = rows[-1]
        click.echo(
            f"{row['study']}: {row[EARLIER]['cpu_s']:.0f} s before, {row[TODAY]['cpu_s']:.0f} s "
            f"today ({row[EARLIER]['answers']} and {row[TODAY]['answers']} answers); regret "
            f"{row[EARLIER]['regret_pct']:.2f} and {row[TODAY]['regret_pct']:.2f} %; "
            f"{row['schedules_equal']} of {row['schedules_in_common']} schedules equal"
        )
        made = total(rows) | {
            "before_commit": before,
            "load_average": os.getloadavg()[0],
            "libtpu": importlib.metadata.version("libtpu"),
            "jax": importlib.metadata.version("jax"),
        }
        json_file.write_text(json.dumps(made, indent=1) + "\n")
        for build in (EARLIER, TODAY):
            click.echo(
                f"  {build}: median_regret {made[build]['median_regret']:.2f} "
                f"worst_regret {made[build]['worst_regret']:.2f} cpu_s {made[build]['cpu_s']:.0f}"
            )
        click.echo(f"  cpu_ratio {made['cpu_ratio']:.3f} over {made['num_studies']} studies")


if __name__ == "__main__":
    main()
