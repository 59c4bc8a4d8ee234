"""Our kernels and the public ones, side by side: same problem, same batches, same simulator.

Every kernel gets the best of some block sizes for each cell; the first is what it would choose
itself. The times of a public function are those of all Pallas calls it launches for
the batch, the empty ones included, because it launches them; what XLA does around the kernels is
left out on both sides.

    python benchmarks/kernels.py --chips v6e --models llama3-8b --json out.json

Every answer goes to a journal under the work folder, with the digest of the kernel's source, so a
run can be stopped and taken up again. Times are simulated.
"""

import json
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from statistics import geometric_mean
from typing import Any, NamedTuple

import click
from cells import KINDS, MODELS, OPPONENTS, Group, groups
from entries import Entry, our_entries, public_entries

from rpa_tune.compile.pool import Reply, WorkerPool
from rpa_tune.errors import UsageError
from rpa_tune.interop.public.tpu_inference.package import WHEEL
from rpa_tune.llo.ensemble import NEARLY_ALL, interval, share_of_wins
from rpa_tune.provenance import kernel_digest, provenance

LEVEL = 1.02  # times nearer to each other than this are level
QUICK_TO_COMPILE_FIRST = ("ours", *OPPONENTS)


class Answer(NamedTuple):
    """What one set of block sizes gave on the batches of a group.

    Attributes:
      times_us: Microseconds of each batch, None for one that was not served; empty where nothing
        was compiled.
      detail: The reason of what misses.
      compile_s: Seconds of tracing, lowering and compiling, on a machine as busy as it was; None
        if unknown or from a cache.
      sets_us: Each batch under every set of the simulator's parameters.
    """

    times_us: list[float | None]
    detail: str
    compile_s: float | None = None
    sets_us: Sequence[Sequence[float]] = ()


def verdict(ours: dict[str, Any], theirs: dict[str, Any]) -> str:
    """How sure a cell is: ahead or behind under nearly all sets of the simulator's parameters.

    Else level where the times are within `LEVEL` of each other, and undecided where they are not.
    """
    share = share_of_wins(ours["sets_us"], theirs["sets_us"])
    if share >= NEARLY_ALL:
        return "ahead"
    if share <= 1 - NEARLY_ALL:
        return "behind"
    ratio = theirs["time_us"] / ours["time_us"]
    return "level" if 1 / LEVEL <= ratio <= LEVEL else "undecided"


def compare(group: Group, answers: list[tuple[Entry, Answer]]) -> dict:
    """The cells of one group: each kernel's best blocks and time, our speed-up, and how sure."""
    kernels = list(dict.fromkeys(entry.kernel for entry, _ in answers))
    cells = []
    for i, name in enumerate(group.batches):
        best: dict[str, Any] = {}
        for kernel in kernels:
            found = [
                (answer.times_us[i], entry.blocks, answer.sets_us[i] if answer.sets_us else ())
                for entry, answer in answers
                if entry.kernel == kernel and answer.times_us and answer.times_us[i] is not None
            ]
            if found:
                time_us, blocks, sets_us = min(found, key=lambda one: one[0])
                best[kernel] = {"time_us": time_us, "blocks": blocks, "sets_us": sets_us}
        cell: dict[str, Any] = {"name": name, "best": best, "speedup": None, "verdict": None}
        theirs = [row for kernel, row in best.items() if kernel != "ours"]
        if theirs and "ours" in best:
            best_of_them = min(theirs, key=lambda row: row["time_us"])
            cell["speedup"] = best_of_them["time_us"] / best["ours"]["time_us"]
            if best_of_them["sets_us"] and best["ours"]["sets_us"]:
                cell["verdict"] = verdict(best["ours"], best_of_them)
        for row in best.values():
            span = interval(row.pop("sets_us") or [row["time_us"]])
            row["interval_us"] = [round(us, 3) for us in span]
        cells.append(cell)
    failures = [
        {"kernel": entry.kernel, "blocks": entry.blocks, "detail": answer.detail}
        for entry, answer in answers
        if answer.detail
    ]
    compiled = [
        {"kernel": entry.kernel, "blocks": entry.blocks, "compile_s": answer.compile_s}
        for entry, answer in answers
        if answer.compile_s and entry.rank == 0
    ]
    names = {"chip": group.chip, "model": group.model, "kind": group.kind}
    return {**names, "cells": cells, "failures": failures, "compiled": compiled}


def geomeans(cells: list[dict]) -> dict[str, float | None]:
    """Of our speed-ups, by kind."""
    found = {kind: [cell["speedup"] for cell in cells if cell["kind"] == kind] for kind in KINDS}
    return {kind: geometric_mean(ratios) if ratios else None for kind, ratios in found.items()}


def summarize(results: list[dict], seconds: float) -> dict[str, Any]:
    """The JSON report: geometric means by kind, the worst cell, all cells."""
    cells = [
        {**{k: result[k] for k in ("chip", "model", "kind")}, **cell}
        for result in results
        for cell in result["cells"]
    ]
    compared = [cell for cell in cells if cell["speedup"]]
    chips = list(dict.fromkeys(cell["chip"] for cell in cells))
    worst = min(compared, key=lambda cell: cell["speedup"], default=None)
    return {
        "evidence": "simulated",
        "versions": provenance(kernel_digest("mixed")),
        "opponent": f"tpu-inference {WHEEL.version}",
        "geomean_speedup": geomeans(compared),
        "geomean_by_chip": {
            chip: geomeans([cell for cell in compared if cell["chip"] == chip]) for chip in chips
        },
        "worst_cell_speedup": worst["speedup"] if worst else None,
        "worst_cell": worst,
        "num_cells": len(cells),
        "num_compared": len(compared),
        "verdicts": dict(Counter(cell["verdict"] for cell in compared)),
        "seconds": seconds,
        "cells": cells,
        **{
            key: [
                {**{k: result[k] for k in ("chip", "model", "kind")}, **row}
                for result in results
                for row in result[key]
            ]
            for key in ("failures", "compiled")
        },
    }


def print_group(result: dict) -> None:
    """One line a cell on stdout."""
    for cell in result["cells"]:
        times = "  ".join(f"{k} {row['time_us']:9.1f}" for k, row in cell["best"].items())
        speedup = f"{cell['speedup']:5.2f}x" if cell["speedup"] else "    -"
        print(
            f"{result['chip']:4} {result['model']:16} {result['kind']:8} {cell['name']:14} "
            f"{speedup}  {times}",
            flush=True,
        )


def print_failures(result: dict) -> None:
    """One line on stderr for every set of block sizes that misses a time."""
    for failure in result["failures"]:
        print(f"  misses: {failure['kernel']} {failure['blocks']}: {failure['detail'][:400]}",
              file=sys.stderr)  # fmt: skip


def _chosen(text: str, allowed: list[str], what: str) -> list[str]:
    names = allowed if text == "all" else text.split(",")
    unknown = [name for name in names if name not in allowed]
    if unknown:
        raise UsageError(f"unknown {what} {unknown}", hint=f"known: {', '.join(allowed)}")
    return names


class Journal:
    """Answers by what they are an answer to, kept in a file of JSON Lines."""

    def __init__(self, path: Path) -> None:
        """Reads what an earlier run left; a last line that was cut off is dropped."""
        self._path = path
        self._answers: dict[str, Answer] = {}
        if path.exists():
            for line in path.read_text().splitlines():
                try:
                    row = json.loads(line)
                except json.JSONDecodeError:
                    continue
                identity = row.pop("id")
                self._answers[identity] = Answer(**row)

    def get(self, entry: Entry) -> Answer | None:
        """The answer of an earlier run."""
        return self._answers.get(entry.identity)

    def add(self, entry: Entry, answer: Answer) -> None:
        """Keeps an answer."""
        self._answers[entry.identity] = answer
        row = {"id": entry.identity, **answer._asdict()}
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("a") as file:
            file.write(json.dumps(row) + "\n")


def times_of(entry: Entry, reply: Reply) -> Answer:
    """Microseconds of each batch, or none and the reason."""
    if reply.failure is not None:
        return Answer([], f"{reply.failure.kind}: {' '.join(reply.failure.detail.split())}")
    value = reply.value
    if entry.kernel == "ours":
        seconds = value.costs.get("lower_s", 0) + value.costs.get("compile_s", 0)
        fresh = None if value.costs.get("from_cache") else seconds
        sets_us = [t.set_us for t in value.timelines]
        return Answer([t.time_us for t in value.timelines], value.detail, fresh, sets_us)
    return Answer(list(value.batch_us), value.detail, value.compile_s or None, value.set_us)


def run(
    pool: WorkerPool,
    entries: list[Entry],
    journal: Journal,
    read: Callable[[Entry, Reply], Answer] = times_of,
) -> None:
    """Asks for what the journal has not; one line on stderr for each answer, as `read` has it."""
    missing = [entry for entry in entries if journal.get(entry) is None]
    number = 0
    for task in dict.fromkeys(entry.task for entry in missing):
        asked = [entry for entry in missing if entry.task == task]
        for reply in pool.map_unordered(task, [entry.argument for entry in asked]):
            entry, number = asked[reply.index], number + 1
            answer = read(entry, reply)
            journal.add(entry, answer)
            served = [us for us in answer.times_us if us is not None]
            said = f"{len(served)} cells, {sum(served):,.0f} us in all"
            said += f"; {answer.detail[:160]}" if answer.detail else ""
            print(f"{number}/{len(missing)} {entry.title}: {said}", file=sys.stderr, flush=True)


def entries_of(
    chosen: Iterable[Group], search: int, search_public: int, opponents: list[str], work: Path
) -> Iterator[tuple[Group, list[Entry]]]:
    """The entries of each group: so many block sizes for ours, so many for each opponent."""
    root = WHEEL.fetch(work) if search_public else None
    for group in chosen:
        entries = our_entries(group, search, work / "cache")
        if root is not None:
            public = public_entries(group, search_public, root, work / "cache")
            entries += [entry for entry in public if entry.kernel in opponents]
        yield group, entries


@click.command()
@click.option("--chips", default="v6e,v7x", help="Comma-separated, or all; v4 for ours alone.")
@click.option("--models", default="llama3-8b", help="Comma-separated, or all.")
@click.option("--kinds", default="all", help="decode, prefill, mixed, or all.")
@click.option("--search", default=4, help="Block sizes tried for ours; 0 for none.")
@click.option("--search-public", default=4, help="The same for each public kernel.")
@click.option("--opponents", default="all", help="v3, hd64, batched, stacked, or all.")
@click.option("--ask/--no-ask", default=True, help="Or report what the journal has.")
@click.option("--quick", is_flag=True, help="About three batches of each kind.")
@click.option("--workers", default=2, help="Worker processes.")
@click.option("--deadline", default=900.0, help="Seconds for one set of block sizes.")
@click.option("--work-dir", default=Path(".rpa-tune"), type=Path, help="Wheel, cache, journal.")
@click.option("--json", "json_file", type=Path, help="Where the report goes.")
def main(**options: Any) -> None:
    """Compares our kernels with the public ones in simulated time."""
    started = time.perf_counter()
    chips = _chosen(options["chips"], ["v4", "v5e", "v5p", "v6e", "v7x"], "chips")
    models = _chosen(options["models"], list(MODELS), "models")
    kinds = _chosen(options["kinds"], list(KINDS), "kinds")
    opponents = _chosen(options["opponents"], list(OPPONENTS), "opponents")
    work = options["work_dir"].resolve()
    journal = Journal(work / "kernels.jsonl")
    chosen = groups(chips, models, kinds, options["quick"])
    plan = list(entries_of(chosen, options["search"], options["search_public"], opponents, work))
    # The first choices of all kernels come first: a run that is cut short has all groups.
    ranked = sorted(
        (entry for _, entries in plan for entry in entries),
        key=lambda entry: (entry.rank, QUICK_TO_COMPILE_FIRST.index(entry.kernel)),
    )
    if options["ask"]:
        with WorkerPool(num_workers=options["workers"], deadline_s=options["deadline"]) as pool:
            run(pool, ranked, journal)
    results = []
    for group, entries in plan:
        answers = [(entry, journal.get(entry) or Answer([], "not run")) for entry in entries]
        results.append(compare(group, answers))
        print_group(results[-1])
        print_failures(results[-1])
    tried = {"search": options["search"], "search_public": options["search_public"]}
    report = summarize(results, time.perf_counter() - started) | tried
    print(json.dumps({k: report[k] for k in ("geomean_speedup", "worst_cell_speedup", "verdicts")}))
    if options["json_file"]:
        options["json_file"].write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
