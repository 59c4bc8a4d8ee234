"""Our kernels and the public ones, side by side: same problem, same batches, same simulator.

Every kernel gets the best of the same number of block sizes for each cell. The times of a public
function are those of all Pallas calls it launches for the batch, the empty ones included, because
it launches them; what XLA does around the kernels is left out on both sides.

    python benchmarks/kernels.py --chips v6e --models llama3-8b --json out.json

Times are simulated.
"""

import json
import math
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
from cells import KINDS, MODELS, Group, groups

from rpa_kernels import load_family
from rpa_tune.candidate import Candidate
from rpa_tune.compile.pool import Reply, WorkerPool
from rpa_tune.errors import UsageError
from rpa_tune.evaluate import simulate_task
from rpa_tune.hw.chip import load_chip
from rpa_tune.interop import simulate as foreign
from rpa_tune.interop import wheel
from rpa_tune.provenance import provenance


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """One kernel with one set of block sizes on one group.

    Attributes:
      kernel: `ours`, `v3`, `hd64`, `batched` or `stacked`.
      blocks: Its block sizes.
      task: Name of the worker task.
      argument: What the task gets.
    """

    kernel: str
    blocks: Any
    task: str
    argument: Any


def our_entries(group: Group, search: int, cache_dir: Path) -> list[Entry]:
    """The default config and its best neighbours by the family's own account."""
    family, chip = load_family(group.family), load_chip(group.chip)
    default = family.default_config(group.problem, chip.target)
    axes = family.search_axes(group.problem, chip.target)
    configs = [default]
    for name, values in axes.items():
        fields = family.config_to_dict(default)
        nearest = sorted(values, key=lambda v: abs(math.log2(v / fields[name])))[:3]
        for value in nearest:
            config = family.config_from_dict({**fields, name: value})
            fits = config.check(group.problem, chip.target) is None
            if fits and config not in configs:
                configs.append(config)
    batches = tuple(group.batches.values())
    entries = []
    for config in configs[:search]:
        candidate = Candidate(
            family=group.family, problem=group.problem, config=config, chip=group.chip, workload=""
        )
        argument = simulate_task.SimulateTask(
            candidate=candidate, batches=batches, cache_dir=cache_dir
        )
        entries.append(
            Entry(
                kernel="ours",
                blocks=family.config_to_dict(config),
                task=simulate_task.TASK,
                argument=argument,
            )
        )
    return entries


def foreign_entries(group: Group, search: int, root: Path) -> list[Entry]:
    """The public kernels that take the problem, `search` block sizes each."""
    problem = group.problem
    if problem.head_dim == 64:
        spaces = {"hd64": _hd64_blocks(group)}
    else:
        spaces = {
            "v3": _v3_blocks(group),
            "batched": _batched_blocks(group, buffers=3),
            "stacked": _batched_blocks(group, buffers=2),
        }
    return [
        Entry(
            kernel=kernel,
            blocks=blocks,
            task=foreign.TASK,
            argument=foreign.ForeignTask(
                kernel=kernel,
                root=root,
                chip=group.chip,
                problem=problem,
                blocks=blocks,
                batches=tuple(group.batches.values()),
            ),
        )
        for kernel, space in spaces.items()
        for blocks in space[:search]
    ]


def _v3_blocks(group: Group) -> list[Any]:
    """(bq_sz, bkv_sz, bq_csz, bkv_csz), the likeliest first."""
    idle_d, idle_m = (1, 512, 1, 512), (32, 512, 32, 512)
    if group.kind == "decode":
        sizes = [(2048, 512), (1024, 512), (4096, 1024), (2048, 1024), (512, 512), (1024, 256)]
        return [{"d": (1, kv, 1, csz), "m": idle_m} for kv, csz in sizes]
    q = 4 if max(next(iter(group.batches.values())).q_lens) == 4 else 128
    sizes4 = [
        (q, 1024, q, 512), (2 * q, 1024, q, 512), (q, 2048, q, 1024), (2 * q, 1024, 2 * q, 512),
        (q, 512, q, 512), (4 * q, 1024, q, 512),
    ]  # fmt: skip
    return [{"d": idle_d, "m": sizes} for sizes in sizes4]


def _hd64_blocks(group: Group) -> list[Any]:
    """(pages, queries) of one block."""
    queries = (8, 32) if group.kind == "decode" else (64, 128)
    return [(pages, q) for pages in (8, 16, 4) for q in queries]


def _batched_blocks(group: Group, buffers: int) -> list[Any]:
    """Fields of the public BlockSizes for both cases; the idle case gets small ones."""
    decodes = [(1024, 8), (512, 8), (1024, 4), (2048, 4), (512, 16), (2048, 2)]
    prefills = [(128, 1024), (64, 1024), (128, 512), (256, 1024), (64, 512), (256, 512)]
    if group.kind != "decode":
        decodes = [(512, 4)] * len(prefills)
    else:
        prefills = [(32, 512)] * len(decodes)
    blocks = []
    for (kv, seqs), (q, prefill_kv) in zip(decodes, prefills, strict=True):
        decode = {"bq_sz": 1, "bkv_sz": kv, "batch_size": seqs, "n_buffer": buffers}
        prefill = {
            "bq_sz": q, "bq_c_sz": q, "bkv_sz": prefill_kv, "batch_size": 1, "n_buffer": buffers,
        }  # fmt: skip
        if buffers == 3:
            decode["bq_c_sz"] = 1
        blocks.append({"decode": decode, "prefill": prefill})
    return blocks


def times_of(entry: Entry, reply: Reply) -> tuple[list[float], str]:
    """Microseconds of each batch, or none and the reason."""
    if reply.failure is not None:
        return [], f"{reply.failure.kind}: {reply.failure.detail}"
    if entry.kernel == "ours":
        return [t.time_us for t in reply.value.timelines], reply.value.detail
    return list(reply.value.batch_us), reply.value.detail


def compare(group: Group, entries: list[Entry], answers: list[tuple[list[float], str]]) -> dict:
    """The cells of one group: each kernel's best blocks and time, and our speed-up."""
    kernels = list(dict.fromkeys(entry.kernel for entry in entries))
    cells = []
    for i, name in enumerate(group.batches):
        best: dict[str, Any] = {}
        for kernel in kernels:
            found = [
                (times[i], entry.blocks)
                for entry, (times, _) in zip(entries, answers, strict=True)
                if entry.kernel == kernel and times
            ]
            if found:
                time_us, blocks = min(found, key=lambda pair: pair[0])
                best[kernel] = {"time_us": time_us, "blocks": blocks}
        theirs = [row["time_us"] for kernel, row in best.items() if kernel != "ours"]
        speedup = min(theirs) / best["ours"]["time_us"] if theirs and "ours" in best else None
        cells.append({"name": name, "best": best, "speedup": speedup})
    failures = [
        {"kernel": entry.kernel, "blocks": entry.blocks, "detail": detail}
        for entry, (times, detail) in zip(entries, answers, strict=True)
        if not times
    ]
    names = {"chip": group.chip, "model": group.model, "kind": group.kind}
    return {**names, "cells": cells, "failures": failures}


def summarize(results: list[dict], seconds: float) -> dict[str, Any]:
    """The JSON report: geometric means by kind, the worst cell, all cells."""
    cells = [
        {**{k: result[k] for k in ("chip", "model", "kind")}, **cell}
        for result in results
        for cell in result["cells"]
    ]
    compared = [cell for cell in cells if cell["speedup"]]
    geomean = {}
    for kind in KINDS:
        logs = [math.log(cell["speedup"]) for cell in compared if cell["kind"] == kind]
        geomean[kind] = math.exp(sum(logs) / len(logs)) if logs else None
    worst = min(compared, key=lambda cell: cell["speedup"], default=None)
    return {
        "evidence": "simulated",
        "versions": provenance("mixed"),
        "opponent": f"tpu-inference {wheel.VERSION}",
        "geomean_speedup": geomean,
        "worst_cell_speedup": worst["speedup"] if worst else None,
        "worst_cell": worst,
        "num_cells": len(cells),
        "num_compared": len(compared),
        "seconds": seconds,
        "cells": cells,
        "failures": [
            {**{k: result[k] for k in ("chip", "model", "kind")}, **failure}
            for result in results
            for failure in result["failures"]
        ],
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
    """One line on stderr for every set of block sizes without a time."""
    for failure in result["failures"]:
        print(f"  no time: {failure['kernel']} {failure['blocks']}: {failure['detail']}",
              file=sys.stderr)  # fmt: skip


def _chosen(text: str, allowed: list[str], what: str) -> list[str]:
    names = allowed if text == "all" else text.split(",")
    unknown = [name for name in names if name not in allowed]
    if unknown:
        raise UsageError(f"unknown {what} {unknown}", hint=f"known: {', '.join(allowed)}")
    return names


@click.command()
@click.option("--chips", default="v6e,v7x", help="Comma-separated, or all.")
@click.option("--models", default="llama3-8b", help="Comma-separated, or all.")
@click.option("--kinds", default="all", help="decode, prefill, mixed, or all.")
@click.option("--search", default=4, help="Block sizes tried for every kernel.")
@click.option("--quick", is_flag=True, help="About three batches of each kind.")
@click.option("--ours-only", is_flag=True, help="Leave the public kernels out.")
@click.option("--workers", default=2, help="Worker processes.")
@click.option("--work-dir", default=Path(".rpa-tune"), type=Path, help="Wheel and compile cache.")
@click.option("--journal", type=Path, help="JSON Lines file: finished groups, read to resume.")
@click.option("--json", "json_file", type=Path, help="Where the report goes.")
def main(**options: Any) -> None:
    """Compares our kernels with the public ones in simulated time."""
    started = time.perf_counter()
    chips = _chosen(options["chips"], ["v5e", "v5p", "v6e", "v7x"], "chips")
    models = _chosen(options["models"], list(MODELS), "models")
    kinds = _chosen(options["kinds"], list(KINDS), "kinds")
    work = options["work_dir"].resolve()
    root = wheel.fetch_wheel(work)
    journal: Path | None = options["journal"]
    done = [json.loads(line) for line in journal.open()] if journal and journal.exists() else []
    known = {(r["chip"], r["model"], r["kind"]) for r in done}
    results = list(done)
    with WorkerPool(num_workers=options["workers"], deadline_s=900) as pool:
        for group in groups(chips, models, kinds, options["quick"]):
            if (group.chip, group.model, group.kind) in known:
                continue
            entries = our_entries(group, options["search"], work / "cache")
            if not options["ours_only"]:
                entries += foreign_entries(group, options["search"], root)
            result = compare(group, entries, _run(pool, entries))
            print_group(result)
            print_failures(result)
            results.append(result)
            if journal:
                with journal.open("a") as file:
                    file.write(json.dumps(result) + "\n")
    report = summarize(results, time.perf_counter() - started)
    print(json.dumps({k: report[k] for k in ("geomean_speedup", "worst_cell_speedup")}))
    if options["json_file"]:
        options["json_file"].write_text(json.dumps(report, indent=1) + "\n")


def _run(pool: WorkerPool, entries: list[Entry]) -> list[tuple[list[float], str]]:
    """Runs all entries, one task name after the other, and keeps their order."""
    answers: list[tuple[list[float], str]] = [([], "not run")] * len(entries)
    for task in dict.fromkeys(entry.task for entry in entries):
        places = [i for i, entry in enumerate(entries) if entry.task == task]
        for reply in pool.map_unordered(task, [entries[i].argument for i in places]):
            place = places[reply.index]
            answers[place] = times_of(entries[place], reply)
    return answers


if __name__ == "__main__":
    main()
