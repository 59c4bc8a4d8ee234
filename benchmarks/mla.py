"""Latent attention: our kernels and tpu-inference's, same problem, batches and simulator, one run.

    python benchmarks/mla.py --json benchmarks/results/mla.json

Each chip has every number of heads with the dtype and page size of `VARIANTS` (`mla_cells.py`). The
public kernel gets the blocks that its engine would look up, which are defaults where its table has
no key, and one more set: what its table has most often, as far as it fits. Ours gets its default
alone, which needs no search.

What is compiled is little: all cells of a chip and variant share one problem, so that a kernel is
compiled once for contexts and batches of every size, and the public function once for its decode
and its mixed blocks. A run does one variant on all chips of a tier (`TIERS`), then the next: one
that ends by `--minutes` has the first ones whole.

A public time is that of the attention kernels of the function, empty launches included, because it
launches them. The two kernels that turn queries and output over between heads-first and
tokens-first are left out: both sides have that around attention.
`bound_us` is the longer of every useful byte at HBM's nominal rate and every useful multiplication
at the matrix units' peak, of all cores of a device; `share_of_bound` is that over the time.
Times are simulated.

Answers go to a journal under the work folder, and schedules to the compile cache: a run can be
stopped, or end by `--minutes`, and be taken up again.
"""

import itertools
import json
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import geometric_mean
from typing import Any

import click
from cells import Group
from entries import Entry, our_entries
from mla_cells import CHIPS, FLOAT8, HEADS, KINDS, Case, alone, cases, public_entries

from kernels import Answer, Journal, compare, print_failures, print_group, run
from rpa_kernels import useful
from rpa_kernels.batch import Batch
from rpa_tune.compile.pool import WorkerPool
from rpa_tune.hw.chip import load_chip
from rpa_tune.interop.public.tpu_inference.package import WHEEL
from rpa_tune.provenance import kernel_digest, provenance

Plan = list[tuple[Case, list[Entry]]]


def bound(group: Group, batch: Batch) -> dict[str, Any]:
    """The least time of a cell by roofline in microseconds, and which roof it is."""
    chip, problem = load_chip(group.chip), group.problem
    cores = chip.num_cores_per_device
    flops_per_s = chip.bf16_flops_per_s
    if problem.kv_dtype == problem.q_dtype == FLOAT8:
        flops_per_s = max(flops_per_s, chip.numbers["fp8_flops_per_s"].value or 0)
    num_bytes = useful.useful_bytes(group.kind, problem, batch)
    roofs = {
        "hbm": 1e6 * num_bytes / (chip.hbm_bytes_per_s * cores),
        "flops": 1e6 * useful.useful_flops(group.kind, problem, batch) / (flops_per_s * cores),
    }
    by = max(roofs, key=lambda name: roofs[name])
    return {"bound_us": roofs[by], "bound_by": by}


def report_of(results: list[dict], seconds: float) -> dict[str, Any]:
    """The JSON report: geometric means by kind, the worst cell, how sure each is, all cells."""
    cells = [
        {**{key: result[key] for key in ("chip", "model", "kind")}, **cell}
        for result in results
        for cell in result["cells"]
    ]
    compared = [cell for cell in cells if cell["speedup"]]
    by_kind = {kind: [c["speedup"] for c in compared if c["kind"] == kind] for kind in KINDS}
    verdicts = Counter(cell["verdict"] for cell in compared)
    return {
        "evidence": "simulated",
        "versions": provenance(kernel_digest("mla-mixed")),
        "opponent": f"mla/v2 of tpu-inference {WHEEL.version}",
        "geomean_speedup": {k: geometric_mean(v) if v else None for k, v in by_kind.items()},
        "worst_cell_speedup": min((cell["speedup"] for cell in compared), default=None),
        "verdicts": {name: verdicts[name] for name in ("ahead", "level", "behind", "undecided")},
        "num_cells": len(cells),
        "num_compared": len(compared),
        "seconds": seconds,
        "cells": cells,
        "failures": [
            {**{key: result[key] for key in ("chip", "model", "kind")}, **row}
            for result in results
            for row in result["failures"]
        ],
    }


def lines(report: dict[str, Any]) -> Iterator[str]:
    """The report as a table for a page: a row for each group that was compared."""
    heading = (
        "chip", "heads, cache, page", "kind", "speed-up (worst to best)", "bound",
        "share of it, ours", "public",
    )  # fmt: skip
    yield f"| {' | '.join(heading)} |"
    yield "|---" * len(heading) + "|"

    def key(cell: dict[str, Any]) -> tuple[str, ...]:
        return (cell["chip"], cell["model"], cell["kind"])

    for names, group in itertools.groupby(report["cells"], key):
        cells = [cell for cell in group if cell["speedup"]]
        if not cells:
            continue
        ratios = [cell["speedup"] for cell in cells]
        mean = f"{geometric_mean(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        bounds = "; ".join(sorted({cell["bound_by"] for cell in cells}))
        shares = [
            f"{min(found):.0%} to {max(found):.0%}"
            for kernel in ("ours", "mla")
            if (found := [cell["best"][kernel]["share_of_bound"] for cell in cells])
        ]
        yield f"| {' | '.join((*names, mean, bounds, *shares))} |"


def results_of(
    case: Case, entries: Sequence[Entry], journal: Journal, cache_dir: Path
) -> list[dict]:
    """The cells of each kind, with their bound and the share of it that each kernel reaches."""
    results = []
    for kind, group in case.by_kind.items():
        answers = []
        for entry in entries:
            if entry.kernel == "ours" and entry.group.kind != kind:
                continue
            answer = journal.get(entry) or Answer([], "not run")
            if entry.kernel != "ours":
                answer = case.part(answer, kind)
                own = alone(case, entry, cache_dir)[kind]
                if not answer.times_us and journal.get(own):
                    entry, answer = own, journal.get(own)
                entry = replace(entry, blocks=entry.blocks[kind])
            answers.append((entry, answer))
        result = compare(group, answers)
        for cell in result["cells"]:
            cell |= bound(group, group.batches[cell["name"]])
            for kernel, row in cell["best"].items():
                row["share_of_bound"] = share = cell["bound_us"] / row["time_us"]
                if share > 1:
                    where = f"{group.chip} {group.model} {cell['name']}: {kernel}"
                    raise click.ClickException(
                        f"{where} reaches {share:.0%} of its bound, which is none"
                    )
        results.append(result)
    return results


def ask(plan: Plan, journal: Journal, cache_dir: Path, options: dict[str, Any]) -> None:
    """Asks for what the journal has not: tier by tier, first choices before others."""
    started, some = time.perf_counter(), options["workers"]

    def run_all(pool: WorkerPool, entries: Sequence[Entry]) -> None:
        for i in range(0, len(entries), some):
            if time.perf_counter() - started < 60 * options["minutes"]:
                run(pool, list(entries[i : i + some]), journal)

    with WorkerPool(num_workers=some, deadline_s=options["deadline"]) as pool:
        for tier in dict.fromkeys(case.tier for case, _ in plan):
            own = [(case, e) for case, entries in plan if case.tier == tier for e in entries]
            run_all(pool, [entry for _, entry in sorted(own, key=lambda one: one[1].rank)])
            again = [
                one
                for case, entry in own
                if entry.kernel != "ours" and (answer := journal.get(entry)) and not answer.times_us
                for one in alone(case, entry, cache_dir).values()
            ]
            run_all(pool, again)


def _numbers(text: str, allowed: Sequence[Any], what: str) -> list[Any]:
    kind = type(allowed[0])
    chosen = list(allowed) if text == "all" else [kind(part) for part in text.split(",")]
    if unknown := [one for one in chosen if one not in allowed]:
        raise click.BadParameter(f"{unknown} are not among {list(allowed)}", param_hint=what)
    return chosen


@click.command()
@click.option("--chips", default="all", help="Comma-separated: v6e, v7x, v5p.")
@click.option("--heads", default="all", help="Comma-separated: 128, 64, 32, 16, 8.")
@click.option("--kinds", default="all", help="decode, mixed.")
@click.option("--search", default=1, help="Configs tried of ours; 0 for none.")
@click.option("--search-public", default=2, help="The same of the public kernel.")
@click.option("--minutes", default=50.0, help="No new compile is begun after so long.")
@click.option("--workers", default=2, help="Worker processes.")
@click.option("--deadline", default=900.0, help="Seconds for one set of block sizes.")
@click.option("--work-dir", default=Path(".rpa-tune"), type=Path, help="Cache and journal.")
@click.option("--json", "json_file", type=Path, help="Where the report goes.")
def main(**options: Any) -> None:
    """Compares our latent kernels with the public one in simulated time."""
    started = time.perf_counter()
    work = options["work_dir"].resolve()
    cache = work / "cache"
    WHEEL.use(cache)
    journal = Journal(work / "mla.jsonl")
    chosen = cases(
        _numbers(options["chips"], CHIPS, "--chips"),
        _numbers(options["heads"], HEADS, "--heads"),
        _numbers(options["kinds"], KINDS, "--kinds"),
    )
    plan = [
        (
            case,
            [
                *(
                    entry
                    for group in case.by_kind.values()
                    for entry in our_entries(group, options["search"], cache)
                ),
                *public_entries(case, options["search_public"], cache),
            ],
        )
        for case in chosen
    ]
    ask(plan, journal, cache, options)
    results = [r for case, entries in plan for r in results_of(case, entries, journal, cache)]
    for result in results:
        print_group(result)
        print_failures(result)
    report = report_of(results, time.perf_counter() - started)
    print("\n".join(lines(report)))
    shown = ("geomean_speedup", "worst_cell_speedup", "verdicts", "num_cells", "num_compared")
    print(json.dumps({key: report[key] for key in shown}))
    if options["json_file"]:
        options["json_file"].write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
