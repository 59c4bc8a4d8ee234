"""What a KV cache without padding gains: both layouts beside the build before and public kernels.

    python benchmarks/layouts.py --json benchmarks/results/layouts.json

12 query heads on 1 KV head, float8 (Llama-70B and Qwen3-Coder at TP8), where today's layout pads
half of each page. Pages have the same bytes in both layouts, 128 and 256 tokens; a third row has
pages of the same tokens. Pages are drawn at random: there are no runs. The build before is compiled
from its commit, in today's layout, and every schedule is timed by today's simulator, with the best
of a few block sizes. Public kernels of a row have its layout: v3 and batched, or batched (whose
pages along lanes have 128 tokens) and stacked.

Schedules are kept in `--cache`: a run that was stopped goes on there. Times are simulated.
"""

import json
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from statistics import geometric_mean
from typing import Any

import click
from before import Before
from candidates import fitting
from page_runs import BEFORE, times_before

from rpa_kernels import layout
from rpa_kernels.batch import Batch
from rpa_kernels.ints import cdiv
from rpa_kernels.problem import Problem
from rpa_tune.candidate import Candidate, Status
from rpa_tune.compile.pool import WorkerPool
from rpa_tune.evaluate.simulated import SimulatedEvaluator
from rpa_tune.families.registry import load_family
from rpa_tune.hw.chip import load_chip
from rpa_tune.interop import simulate as foreign
from rpa_tune.interop.public.tpu_inference.package import WHEEL
from rpa_tune.provenance import provenance
from rpa_tune.workload.workload import WeightedBatch, Workload

HEADS, LANES = layout.HEAD_ALONG_SUBLANE, layout.SEQ_ALONG_LANE
# Layout and page size; the first two have pages of the same bytes, the last of the first's tokens.
ROWS = ((HEADS, 128), (LANES, 256), (LANES, 128))
FAMILIES = {"decode": "decode", "prefill": "mixed"}
DECODE_SEQS, PREFILL_TOKENS = 32, 2048
CONTEXTS = {"decode": (8192, 65536), "prefill": (2048, 8192)}
# Fields of our configs beside the default: long blocks, so that a step is as many bytes.
OURS: dict[str, list[dict[str, int]]] = {
    "decode": [{}, {"bkv_sz": 2048, "seqs_per_step": 2, "num_buffers": 3}],
    "prefill": [{}],
}
_DECODE = {"bq_sz": 1, "bkv_sz": 1024, "batch_size": 8}
_PREFILL = {"bq_sz": 128, "bq_c_sz": 128, "bkv_sz": 1024, "batch_size": 1}
PUBLIC_BLOCKS: dict[str, Any] = {
    "v3": {"d": (1, 2048, 1, 512), "m": (128, 1024, 128, 512)},
    "batched": {"decode": {**_DECODE, "bq_c_sz": 1, "n_buffer": 3},
                "prefill": {**_PREFILL, "n_buffer": 3}},
    "stacked": {"decode": {**_DECODE, "n_buffer": 2}, "prefill": {**_PREFILL, "n_buffer": 2}},
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Group:
    """The cells of a chip and a kind in one layout; batches share a problem and its compiles."""

    chip: str
    kind: str
    kv_layout: str
    page_size: int

    @cached_property
    def problem(self) -> Problem:
        """Static shapes, for the longest of the contexts."""
        pages, is_decode = cdiv(max(CONTEXTS[self.kind]), self.page_size), self.kind == "decode"
        seqs = DECODE_SEQS if is_decode else 1
        return Problem(
            num_q_heads=12, num_kv_heads=1, head_dim=128, page_size=self.page_size,
            max_num_tokens=128 if is_decode else PREFILL_TOKENS, max_num_seqs=seqs,
            pages_per_seq=pages, num_pages=pages * seqs, sm_scale=128**-0.5,
            kv_dtype="float8_e4m3fn", kv_layout=self.kv_layout,
        )  # fmt: skip

    @cached_property
    def workload(self) -> Workload:
        """A batch for each context."""
        contexts = CONTEXTS[self.kind]
        if self.kind == "decode":
            batches = [
                Batch(q_lens=(1,) * DECODE_SEQS, kv_lens=(n,) * DECODE_SEQS, num_decode=DECODE_SEQS)
                for n in contexts
            ]
        else:
            batches = [
                Batch(q_lens=(PREFILL_TOKENS,), kv_lens=(n,), num_decode=0) for n in contexts
            ]
        weight = 1 / len(batches)
        return Workload(
            name=self.kind, source="made up",
            batches=tuple(WeightedBatch(batch=batch, weight=weight) for batch in batches),
        )  # fmt: skip

    @cached_property
    def candidates(self) -> list[Candidate]:
        """Our kernel with the default config, and with others that fit."""
        family, chip = load_family(FAMILIES[self.kind]), load_chip(self.chip)
        default = family.default_config(self.problem, chip.target)
        configs = [replace(default, **fields) for fields in OURS[self.kind]]
        return fitting(family, self.problem, chip, self.workload, configs)

    def opponents(self, root: Path, cache: Path) -> list[foreign.ForeignTask]:
        """Public kernels on the same batches, with pages that they take."""
        today = replace(self.problem, kv_layout=HEADS)
        along = replace(self, page_size=128).problem
        asked = {"v3": today, "batched": today}
        if self.kv_layout == LANES:
            asked = {"batched": along, "stacked": today}
        return [
            foreign.ForeignTask(
                kernel=kernel, root=root, chip=load_chip(self.chip), problem=problem,
                blocks=PUBLIC_BLOCKS[kernel], cache_dir=cache,
                batches=tuple(weighted.batch for weighted in self.workload.batches),
            )
            for kernel, problem in asked.items()
        ]  # fmt: skip


def our_times(group: Group, evaluator: SimulatedEvaluator) -> list[float]:
    """Microseconds of each batch, by the best config; bytes and copies are held to the account."""
    found = []
    for simulation in evaluator.simulate_all(group.candidates, group.workload):
        evaluation = simulation.evaluation
        if evaluation.status is not Status.OK:
            raise SystemExit(f"{evaluation.candidate}: {evaluation.status}: {evaluation.detail}")
        found.append([timeline.time_us for timeline in simulation.timelines])
    return [min(times) for times in zip(*found, strict=True)]


def public_times(
    group: Group, pool: WorkerPool, root: Path, cache: Path
) -> list[dict[str, float]]:  # fmt: skip
    """Microseconds of each batch by public kernel; says which has no time, and why."""
    tasks = group.opponents(root, cache)
    found: list[dict[str, float]] = [{} for _ in group.workload.batches]
    for reply in pool.map_unordered(foreign.TASK, tasks):
        kernel = tasks[reply.index].kernel
        detail = str(reply.failure) if reply.failure else reply.value.detail
        if detail:
            click.echo(f"  misses: {kernel}: {' '.join(detail.split())[:300]}", err=True)
        for times, time_us in zip(found, reply.value.batch_us if reply.value else (), strict=False):
            if time_us is not None:
                times[kernel] = time_us
    return found


def rows_of(
    group: Group, ours: list[float], before: list[float], public: list[dict[str, float]]
) -> list[dict[str, Any]]:
    """The cells of a group."""
    return [
        {
            "chip": group.chip, "kind": group.kind, "context": context,
            "seqs": len(weighted.batch.q_lens), "layout": group.kv_layout,
            "page_size": group.problem.page_size, "page_bytes": group.problem.page_bytes,
            "time_us": time_us, "before_us": before_us,
            "best_public_us": min(theirs.values(), default=None), "public_us": theirs,
        }
        for context, weighted, time_us, before_us, theirs in zip(
            CONTEXTS[group.kind], group.workload.batches, ours, before, public, strict=True
        )
    ]  # fmt: skip


def print_row(row: dict[str, Any]) -> None:
    """One line on stdout."""
    public = row["best_public_us"]
    beside = f"{public / row['time_us']:5.2f}x of public {public:.1f}" if public else "no public"
    click.echo(
        f"{row['chip']:4} {row['kind']:8} {row['context']:6} x {row['seqs']:2} {row['layout']:18} "
        f"page {row['page_size']:3}  {row['before_us']:8.1f} -> {row['time_us']:8.1f} us "
        f"({row['before_us'] / row['time_us']:5.2f}x)  {beside}"
    )


def summary(cells: list[dict[str, Any]]) -> dict[str, Any]:
    """Gains of the new layout with pages of the same bytes."""
    same_bytes = [c for c in cells if (c["layout"], c["page_size"]) == ROWS[1]]
    over_before = [c["before_us"] / c["time_us"] for c in same_bytes if c["kind"] == "decode"]
    over_public = [c["best_public_us"] / c["time_us"] for c in same_bytes if c["best_public_us"]]
    return {
        "geomean_over_before": geometric_mean(over_before) if over_before else None,
        "worst_over_before": min(over_before, default=None),
        "worst_over_public": min(over_public, default=None),
    }


@click.command()
@click.option("--chips", default="v6e,v7x,v5p", help="Comma-separated.")
@click.option("--kinds", default="decode,prefill", help="Comma-separated.")
@click.option("--before", "revision", default=BEFORE, help="Commit of the build before.")
@click.option("--workers", default=2, help="Worker processes.")
@click.option("--cache", default=Path(".rpa-tune/cache"), type=Path, help="Of compiles.")
@click.option("--wheels", default=Path(".rpa-tune"), type=Path, help="Where the wheel is kept.")
@click.option("--json", "json_file", type=Path, help="Where the report goes.")
def main(
    chips: str, kinds: str, revision: str, workers: int, cache: Path, wheels: Path,
    json_file: Path | None,
) -> None:  # fmt: skip
    """Prints one line a cell."""
    before, root = Before(revision, cache / "before", workers=workers), WHEEL.fetch(wheels)
    evaluator = SimulatedEvaluator(num_workers=workers, cache_dir=cache, deadline_s=900)
    cells: list[dict[str, Any]] = []
    try:
        with WorkerPool(num_workers=workers, deadline_s=900) as pool:
            for chip, kind in ((c, k) for c in chips.split(",") for k in kinds.split(",")):
                was: list[float] = []
                for kv_layout, page_size in ROWS:
                    group = Group(chip=chip, kind=kind, kv_layout=kv_layout, page_size=page_size)
                    if not was:  # today's layout is the one that the build before has
                        timelines = times_before(group, before)
                        was = [min(t.time_us for t in one) for one in zip(*timelines, strict=True)]
                    public = public_times(group, pool, root, cache)
                    rows = rows_of(group, our_times(group, evaluator), was, public)
                    for row in rows:
                        print_row(row)
                    cells += rows
    finally:
        evaluator.close()
    report = {
        "evidence": "simulated",
        "versions": provenance(load_family("decode").digest),
        "before": before.commit,
        **summary(cells),
        "cells": cells,
    }
    click.echo(json.dumps(summary(cells)))
    if json_file:
        json_file.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
