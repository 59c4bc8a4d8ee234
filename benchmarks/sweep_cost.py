"""What a sweep over 5 chips, 40 problems and 3 families costs on 1, 16 and 256 cores.

    python benchmarks/sweep_cost.py .rpa-tune/*.jsonl --json benchmarks/results/sweep_cost.json

On paper: all seconds of work over the number of cores. By simulation: the studies in the order in
which a sweep runs them (`sweep.lineup`: most wait for others' winners), in waves that wait for
their slowest candidate, over workers and one parent process per run, whose own work is done by one
core. Task durations are drawn from those of real stores; what the parent does for a study is
measured on this machine with an evaluator that answers at once, as the mean over the chips. Without
stores the durations come from the file that `--json` names.
"""

import datetime
import heapq
import itertools
import json
import os
import random
import statistics
import tempfile
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from rpa_tune.candidate import Candidate, Correctness, Evaluation, Fidelity
from rpa_tune.evaluate.analytical import AnalyticalEvaluator
from rpa_tune.evaluate.evaluator import AbstractEvaluator
from rpa_tune.store import journal
from rpa_tune.sweep.lineup import Place, line_up, num_side_by_side
from rpa_tune.sweep.plan import load_plan
from rpa_tune.sweep.sampler import Search
from rpa_tune.sweep.study import Study, build_studies
from rpa_tune.sweep.sweep import Sweep
from rpa_tune.sweep.watch import Watch
from rpa_tune.workload.workload import Workload

FAMILIES = ("decode", "mixed", "prefill")
STANDS_IN = {"prefill": "mixed"}  # two sets of configs of one kernel; see ARCHITECTURE.md
NUM_CHIPS, NUM_PROBLEMS = 5, 40
PLAN = """\
chip: [v4, v5e, v5p, v6e, v7x]
model: llama3-8b
families: [decode, mixed]
page_size: 128
workload: azure-conv
"""

# What a study does next: the parent works so many seconds, or tasks of so many seconds run.
Move = tuple[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class Durations:
    """Seconds of one study's pieces, by family.

    Attributes:
      simulate: Compiling and simulating a candidate, as stores have them.
      verify: Checking a config, likewise.
      parent: What the parent does before the first wave, before each other one, and at the end.
    """

    simulate: Mapping[str, Sequence[float]]
    verify: Mapping[str, Sequence[float]]
    parent: Mapping[str, Sequence[float]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Layout:
    """How cores are used.

    Attributes:
      name: For the table.
      num_runs: `rpa-tune sweep` processes, one a shard.
      workers: Worker processes of each.
    """

    name: str
    num_runs: int
    workers: int

    @property
    def num_cores(self) -> int:
        """Cores that compile; the parents work beside them."""
        return self.num_runs * self.workers


LAYOUTS = (
    Layout(name="--workers 1", num_runs=1, workers=1),
    Layout(name="--workers 16", num_runs=1, workers=16),
    Layout(name="--shard I/16 --workers 16", num_runs=16, workers=16),
    Layout(name="--executor ray", num_runs=1, workers=256),
)


class Run:
    """One parent and its workers, on a clock of their own."""

    def __init__(self, workers: int) -> None:
        """All idle at second 0."""
        self.now = 0.0
        self.busy_s = 0.0
        self.parent_s = 0.0
        self._idle = workers
        self._waiting: deque[tuple[float, Callable[[], None]]] = deque()
        self._parent_free = 0.0
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._count = 0

    def start(self, study: Generator[Move, None, None], done: Callable[[], None]) -> None:
        """Begins a study; `done` is called at its end."""
        try:
            what, how_long = next(study)
        except StopIteration:
            done()
            return
        if what == "parent":
            begin = max(self.now, self._parent_free)
            self._parent_free = begin + how_long
            self.parent_s += how_long
            self._at(self._parent_free, lambda: self.start(study, done))
            return
        left = len(how_long)

        def ended() -> None:
            nonlocal left
            left -= 1
            if not left:
                self.start(study, done)

        self._waiting.extend((seconds, ended) for seconds in how_long)
        self._fill()

    def play(self) -> float:
        """Runs to the end; seconds it took."""
        while self._events:
            self.now, _, action = heapq.heappop(self._events)
            action()
        return self.now

    def _fill(self) -> None:
        while self._idle and self._waiting:
            seconds, ended = self._waiting.popleft()
            self._idle -= 1
            self.busy_s += seconds
            self._at(self.now + seconds, lambda ended=ended: self._free(ended))

    def _free(self, ended: Callable[[], None]) -> None:
        self._idle += 1
        ended()
        self._fill()

    def _at(self, when: float, action: Callable[[], None]) -> None:
        self._count += 1
        heapq.heappush(self._events, (when, self._count, action))


def moves(
    family: str, durations: Durations, search: Search, rng: random.Random
) -> Generator[Move, None, None]:
    """One study: parent and waves in turn, then the configs that it would promote."""
    first, between, last = durations.parent[family]
    yield "parent", first
    left = search.simulate
    while left:
        wave = min(search.wave, left)
        yield "tasks", rng.choices(durations.simulate[family], k=wave)
        left -= wave
        yield "parent", between if left else last
    for seconds in rng.choices(durations.verify[family], k=search.configs):
        yield "tasks", [seconds]


def play_run(
    places: Sequence[Place], families: Sequence[str], workers: int, durations: Durations,
    search: Search,
) -> Run:  # fmt: skip
    """One run of a sweep, study by study as `Sweep.run` starts them."""
    run = Run(workers)
    num_together = num_side_by_side(workers)
    waiting, decided = list(places), set()
    running: set[int] = set()

    def fill() -> None:
        ready = [p for p in waiting if decided.issuperset(p.teachers)]
        for place in ready[: num_together - len(running)]:
            waiting.remove(place)
            running.add(place.index)
            # Seeded by the study: its durations are the same however many cores there are.
            study = moves(families[place.index], durations, search, random.Random(place.index))
            run.start(study, lambda index=place.index: end(index))

    def end(index: int) -> None:
        running.discard(index)
        decided.add(index)
        fill()

    fill()
    run.play()
    assert not waiting, "studies that were never started"
    return run


def play(layout: Layout, families: Sequence[str], durations: Durations, search: Search) -> Any:
    """A whole sweep: hours on the clock, hours of work, and the use of the cores."""
    studies: Any = [SimpleNamespace(family=family) for family in families]
    places = line_up(studies, layout.num_runs)
    runs = [
        play_run([p for p in places if p.shard == shard], families, layout.workers, durations,
                 search)
        for shard in range(1, layout.num_runs + 1)
    ]  # fmt: skip
    seconds = max(run.now for run in runs)
    work = sum(run.busy_s for run in runs)
    return {
        "layout": layout.name,
        "cores": layout.num_cores,
        "work_core_hours": round(work / 3600, 2),
        "parent_hours": round(sum(run.parent_s for run in runs) / 3600, 2),
        "on_paper_hours": round(work / layout.num_cores / 3600, 3),
        "simulated_hours": round(seconds / 3600, 3),
        "use_of_cores_pct": round(100 * work / layout.num_cores / seconds, 1),
    }


class AtOnce(AbstractEvaluator):
    """Answers with a multiple of the bound at once, and notes when it was asked."""

    def __init__(self) -> None:
        """Not asked yet."""
        self.asked_s: list[float] = []
        self._bounds = AnalyticalEvaluator()

    @property
    def fidelity(self) -> Fidelity:
        """SIMULATED."""
        return Fidelity.SIMULATED

    def evaluate_all(
        self, candidates: Iterable[Candidate], workload: Workload
    ) -> Iterator[Evaluation]:
        """Answers that differ by up to two from their bounds."""
        self.asked_s.append(time.process_time())
        for bound in self._bounds.evaluate_all(candidates, workload):
            factor = 1 + int(bound.candidate.digest, 16) / 16**16
            yield replace(
                bound,
                fidelity=Fidelity.SIMULATED,
                time_us=None if bound.time_us is None else factor * bound.time_us,
                batch_us=tuple(factor * us for us in bound.batch_us),
            )

    def close(self) -> None:
        """Nothing is held."""


def measure_parent(study: Study) -> list[float]:
    """CPU seconds of the parent: before the first wave, between two (median), after the last."""
    evaluator = AtOnce()
    with tempfile.TemporaryDirectory() as folder, journal.Journal(Path(folder) / "s") as store:
        evaluators = {Fidelity.ANALYTICAL: AnalyticalEvaluator(), Fidelity.SIMULATED: evaluator}
        begin = time.process_time()
        list(Sweep(evaluators=evaluators, journal=store, watch=Watch()).run([study]))
        times = [begin, *evaluator.asked_s, time.process_time()]
    gaps = [after - before for before, after in itertools.pairwise(times)]
    first, *between, last = gaps
    return [first, statistics.median(between) if between else 0.0, last]


def read_durations(stores: Sequence[Path]) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Seconds of simulations that compiled, and of checks, by family, as stores have them."""
    simulate: dict[str, list[float]] = {family: [] for family in FAMILIES}
    verify: dict[str, list[float]] = {family: [] for family in FAMILIES}
    into = {Fidelity.SIMULATED: simulate, Correctness.INTERPRETED: verify}
    for evaluation in (e for path in stores for e in journal.read(path).evaluations):
        seconds = evaluation.metrics.get("evaluate_s")
        kept = into.get(evaluation.fidelity, {}).get(evaluation.candidate.family.name)
        if kept is not None and seconds and not evaluation.metrics.get("from_cache"):
            kept.append(round(seconds, 2))
    for found in (simulate, verify):
        for family, other in STANDS_IN.items():
            found[family] = found[family] or found[other]
    return simulate, verify


@click.command(help=__doc__.split("\n")[0])
@click.argument("stores", nargs=-1, type=click.Path(path_type=Path, exists=True))
@click.option("--json", "json_file", type=click.Path(path_type=Path), required=True)
def main(stores: tuple[Path, ...], json_file: Path) -> None:
    """Prints the table and writes it with the durations that it rests on."""
    if stores:
        simulate, verify = read_durations(stores)
    else:
        known = json.loads(json_file.read_text())["durations_s"]
        simulate, verify = known["simulate"], known["verify"]
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "plan.yaml").write_text(PLAN)
        studies = build_studies(load_plan(Path(folder) / "plan.yaml"))
    measured = {study.name: measure_parent(study) for study in studies}
    by_family: dict[str, list[list[float]]] = {}
    for study in studies:
        by_family.setdefault(study.family.name, []).append(measured[study.name])
    parent = {
        family: [statistics.mean(spans) for spans in zip(*found, strict=True)]
        for family, found in by_family.items()
    }
    parent |= {family: parent[other] for family, other in STANDS_IN.items()}
    durations = Durations(simulate=simulate, verify=verify, parent=parent)
    search = Search()
    families = [f for _ in range(NUM_CHIPS * NUM_PROBLEMS) for f in FAMILIES]
    rows = [play(layout, families, durations, search) for layout in LAYOUTS]
    result = {
        "are": "simulated; durations of tasks and of the parent measured on busy CPUs",
        "date": datetime.date.today().isoformat(),
        "load_average": os.getloadavg()[0],
        "num_studies": len(families),
        "search": {"simulate": search.simulate, "wave": search.wave, "configs": search.configs},
        "rows": rows,
        "parent_s_by_study": {
            name: [round(s, 3) for s in spans] for name, spans in measured.items()
        },
        "parent_s": {family: [round(s, 3) for s in spans] for family, spans in parent.items()},
        "stands_in": {f: o for f, o in STANDS_IN.items() if simulate[f] == simulate[o]},
        "durations_s": {"simulate": simulate, "verify": verify},
    }
    json_file.write_text(json.dumps(result, indent=1) + "\n")
    _print(result)


def _print(result: Mapping[str, Any]) -> None:
    for name, by_family in result["durations_s"].items():
        for family in (f for f in FAMILIES if f not in result["stands_in"]):
            seconds = by_family[family]
            spread = f"mean {statistics.mean(seconds):.1f} s, longest {max(seconds):.1f} s"
            click.echo(f"{name} {family}: {len(seconds)} durations, {spread}")
    for family, (first, between, last) in result["parent_s"].items():
        click.echo(f"parent, {family}: {first:.2f} s, then {between:.2f} s a wave, {last:.2f} s")
    table = Table("cores", "layout", "core hours", "of parents", "on paper", "simulated", "use")
    for row in result["rows"]:
        table.add_row(
            f"{row['cores']}", row["layout"], f"{row['work_core_hours']:.1f}",
            f"{row['parent_hours']:.2f}", _hours(row["on_paper_hours"]),
            _hours(row["simulated_hours"]), f"{row['use_of_cores_pct']:.0f} %",
        )  # fmt: skip
    Console(width=100).print(table)


def _hours(hours: float) -> str:
    return f"{hours:.1f} h" if hours >= 1 else f"{60 * hours:.0f} min"


if __name__ == "__main__":
    main()
