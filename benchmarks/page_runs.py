"""What it gains to copy runs of neighbouring pages at once: this build beside the one before it.

    python benchmarks/page_runs.py --json benchmarks/results/page_runs.json

Decode of 8 query heads on 1 KV head (Qwen3-32B at TP8), bfloat16, with the page tables that the
engine model hands out (`page_tables: engine`), and the same batches with pages drawn at random,
where there are no runs. Both builds are compiled in one run, the one before from its commit, and
timed by today's simulator with the best of the same block sizes. Times are simulated.

`bound` is what the copy engine allows: the time before, less what runs save of the engine's own
time with KV blocks of 2048 tokens (longer than those of most configs, which cut runs).
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import click
import numpy as np
from before import Before
from candidates import fitting

from rpa_kernels.batch import Batch
from rpa_kernels.decode.config import DecodeConfig
from rpa_kernels.ints import cdiv
from rpa_kernels.problem import Problem
from rpa_kernels.runs import SeqRuns
from rpa_tune.candidate import Candidate, Status
from rpa_tune.evaluate.simulated import SimulatedEvaluator
from rpa_tune.families.registry import load_family
from rpa_tune.hw.chip import load_chip
from rpa_tune.llo.machine import load_machine
from rpa_tune.llo.parse import load_program
from rpa_tune.llo.simulate import simulate
from rpa_tune.llo.timeline import Timeline
from rpa_tune.provenance import provenance
from rpa_tune.workload.workload import WeightedBatch, Workload, load_workload

# The last commit whose kernels copy page by page.
BEFORE = "9f8bf3b"
CHIPS = ("v4", "v5e", "v5p", "v6e", "v7x")
PAGE_SIZES = (16, 128)
# Workloads that share a problem, so that each config is compiled once for all of them.
WORKLOADS = (("azure-conv", "azure-code", "chat-high"), ("agentic-low",))
LONGEST_BLOCK = 2048
FAMILY = load_family("decode")
PAGE_TABLE = 1  # operand that the build before reads as it comes
# `bkv_sz`, `seqs_per_step`, `num_buffers`, beside those of the default config.
CONFIGS = ((512, 4, 4), (LONGEST_BLOCK, 2, 3), (LONGEST_BLOCK, 4, 4))


@dataclass(frozen=True, kw_only=True, slots=True)
class Group:
    """Workloads of one problem on one chip.

    Attributes:
      chip: Name in the chip table.
      problem: Static shapes and dtypes.
      batches: (weight, decode batch with the engine's page table), by workload.
    """

    chip: str
    problem: Problem
    batches: dict[str, list[tuple[float, Batch]]]

    @property
    def candidates(self) -> list[Candidate]:
        """The default config and those of `CONFIGS` that fit, with its form of copies."""
        chip = load_chip(self.chip)
        default = FAMILY.default_config(self.problem, chip.target)
        assert isinstance(default, DecodeConfig)
        sizes = [(default.bkv_sz, default.seqs_per_step, default.num_buffers), *CONFIGS]
        configs = [
            replace(
                default, bkv_sz=bkv, bkv_csz=512, seqs_per_step=seqs, num_buffers=buffers, bq_sz=16
            )
            for bkv, seqs, buffers in dict.fromkeys(sizes)
        ]
        return fitting(FAMILY, self.problem, chip, self.workload, configs)

    @property
    def workload(self) -> Workload:
        """Every batch twice: with the engine's page table and with a fragmented one."""
        both = [
            replace(batch, page_table=table)
            for batches in self.batches.values()
            for _, batch in batches
            for table in (batch.page_table, None)
        ]
        return Workload(
            name="page runs",
            source="decode batches of presets",
            batches=tuple(WeightedBatch(batch=batch, weight=1 / len(both)) for batch in both),
        )


class Answer(NamedTuple):
    """Means over the launches of a workload.

    Attributes:
      time_us: Of a launch.
      engine_us: What the copy engine is busy reading.
    """

    time_us: float
    engine_us: float


def make_group(chip: str, names: Sequence[str], page_size: int) -> Group:
    """Serves the presets by the engine model, and keeps the decode sequences of their steps."""
    batches = {}
    for name in names:
        spec = {"preset": name, "compress": {"page_tables": "engine"}}
        own = load_workload(spec, page_size=page_size).for_family("decode").batches
        batches[name] = [(one.weight, _decode_only(one.batch)) for one in own]
    every = [batch for own in batches.values() for _, batch in own]
    problem = Problem(
        num_q_heads=8,
        num_kv_heads=1,
        head_dim=128,
        page_size=page_size,
        max_num_tokens=128,
        max_num_seqs=max(batch.num_seqs for batch in every),
        pages_per_seq=max(cdiv(max(batch.kv_lens), page_size) for batch in every),
        num_pages=1 + max(max(row) for batch in every for row in batch.page_table or ()),
        sm_scale=128**-0.5,
    )
    return Group(chip=chip, problem=problem, batches=batches)


def _decode_only(batch: Batch) -> Batch:
    keep = batch.family_seqs("decode")
    assert batch.page_table is not None
    return Batch(
        q_lens=(1,) * len(keep),
        kv_lens=tuple(batch.kv_lens[i] for i in keep),
        num_decode=len(keep),
        page_table=tuple(batch.page_table[i] for i in keep),
        page_seed=batch.page_seed,
    )


def times_before(group: Group, before: Before) -> list[list[Timeline]]:
    """Timelines of each config on each batch of the group's workload, one copy a page."""
    found, chip = [], load_chip(group.chip)
    candidates = [_linear(candidate) for candidate in group.candidates]
    for candidate, schedule in zip(candidates, before.compile_all(candidates), strict=True):
        if isinstance(schedule, str):
            raise SystemExit(f"the build before did not compile: {schedule}")
        program, machine, timelines = load_program(schedule), load_machine(group.chip), []
        for weighted in group.workload.batches:
            batch, problem = weighted.batch, group.problem
            scalars = dict(candidate.family.scalar_operands(problem, candidate.config, chip, batch))
            scalars[PAGE_TABLE] = batch.arrays(problem).page_indices
            timelines.append(simulate(program, machine, scalars))
        found.append(timelines)
    return found


def _linear(candidate: Candidate) -> Candidate:
    """The same with the one form of page copies that the build before has."""
    config = candidate.config
    if not isinstance(config, DecodeConfig):
        return candidate
    return replace(candidate, config=replace(config, strided_copies=0))


def times_now(group: Group, evaluator: SimulatedEvaluator) -> list[list[Timeline]]:
    """The same of this build, whose copies and bytes the evaluator holds against the account."""
    by_config = {}
    for simulation in evaluator.simulate_all(group.candidates, group.workload):
        evaluation = simulation.evaluation
        if evaluation.status is not Status.OK:
            raise SystemExit(f"{evaluation.candidate}: {evaluation.status}: {evaluation.detail}")
        by_config[evaluation.candidate.config] = list(simulation.timelines)
    return [by_config[candidate.config] for candidate in group.candidates]


def answers(group: Group, timelines: list[Timeline]) -> dict[tuple[str, bool], Answer]:
    """By workload, and whether pages are fragmented."""
    rest, found = iter(timelines), {}
    for name, batches in group.batches.items():
        sums = {False: [0.0, 0.0], True: [0.0, 0.0]}
        for weight, _ in batches:
            for fragmented in (False, True):
                timeline = next(rest)
                us = timeline.time_us / timeline.total_cycles
                sums[fragmented][0] += weight * timeline.time_us
                sums[fragmented][1] += weight * timeline.read_busy_cycles * us
        total = sum(weight for weight, _ in batches)
        for fragmented, (time_us, engine_us) in sums.items():
            found[name, fragmented] = Answer(time_us / total, engine_us / total)
    return found


def pages_per_copy(group: Group, name: str, bkv_sz: int) -> float:
    """Mean pages of a copy of cached KV, over the launches of a workload."""
    size, pages, copies = group.problem.page_size, 0.0, 0.0
    for weight, batch in group.batches[name]:
        table = SeqRuns.of(batch.arrays(group.problem), group.problem)
        for seq, kv_len in enumerate(batch.kv_lens):
            start = np.arange(0, kv_len - 1, bkv_sz)
            end = np.minimum(start + bkv_sz, kv_len - 1)
            pages += weight * cdiv(kv_len - 1, size)
            copies += weight * table.count_copies(seq, start, end)
    return pages / copies


def compare(
    group: Group, before: list[list[Timeline]], now: list[list[Timeline]]
) -> list[dict[str, Any]]:
    """A row of the report for each workload of a group."""
    old = [answers(group, timelines) for timelines in before]
    new = [answers(group, timelines) for timelines in now]
    configs = [candidate.config for candidate in group.candidates]
    rows = []
    for name in group.batches:
        was = min((one[name, False] for one in old), key=lambda answer: answer.time_us)
        best = min(range(len(new)), key=lambda i: new[i][name, False].time_us)
        time_us = new[best][name, False].time_us
        engine_us = min(
            one[name, False].engine_us
            for one, config in zip(new, configs, strict=True)
            if config.bkv_sz == LONGEST_BLOCK
        )
        bound = was.time_us / (was.time_us - was.engine_us + engine_us)
        fragmented = [min(one[name, True].time_us for one in build) for build in (old, new)]
        rows.append(
            {
                "chip": group.chip,
                "workload": name,
                "page_size": group.problem.page_size,
                "time_us": time_us,
                "before_us": was.time_us,
                "speedup": was.time_us / time_us,
                "bound": bound,
                "share_of_gain": (was.time_us / time_us - 1) / (bound - 1),
                "pages_per_copy": pages_per_copy(group, name, configs[best].bkv_sz),
                "config": str(configs[best]),
                "fragmented_us": fragmented[1],
                "fragmented_before_us": fragmented[0],
                "fragmented_ratios": [
                    one[name, True].time_us / other[name, True].time_us
                    for one, other in zip(old, new, strict=True)
                ],
            }
        )
    return rows


def print_row(row: dict[str, Any]) -> None:
    """One line on stdout."""
    print(
        f"{row['chip']:4} {row['workload']:12} page {row['page_size']:3}  "
        f"{row['before_us']:8.1f} -> {row['time_us']:7.1f} us  "
        f"{row['speedup']:5.2f}x of {row['bound']:5.2f}x "
        f"({row['share_of_gain']:4.0%} of the gain), {row['pages_per_copy']:5.2f} pages a copy; "
        f"fragmented {min(row['fragmented_ratios']):5.3f}x",
        flush=True,
    )


@click.command()
@click.option("--chips", default=",".join(CHIPS), help="Comma-separated.")
@click.option("--before", "revision", default=BEFORE, help="Commit of the build before.")
@click.option("--workers", default=2, help="Worker processes.")
@click.option("--cache", default=Path(".rpa-tune/cache"), type=Path, help="Of compiles.")
@click.option("--json", "json_file", type=Path, help="Where the report goes.")
def main(chips: str, revision: str, workers: int, cache: Path, json_file: Path | None) -> None:
    """Prints one line a cell, and keeps what a run that is stopped has found."""
    before = Before(revision, cache / "before", workers=workers)
    evaluator = SimulatedEvaluator(num_workers=workers, cache_dir=cache, deadline_s=600)
    cells: list[dict[str, Any]] = []
    try:
        for page_size in PAGE_SIZES:
            for names in WORKLOADS:
                served = make_group("", names, page_size)
                for chip in chips.split(","):
                    group = replace(served, chip=chip)
                    rows = compare(group, times_before(group, before), times_now(group, evaluator))
                    for row in rows:
                        print_row(row)
                    cells += rows
                    if json_file:
                        report = report_of(cells, before.commit)
                        json_file.write_text(json.dumps(report, indent=1) + "\n")
    finally:
        evaluator.close()
    print(f"fragmented page tables: at worst {worst_fragmented(cells):.3f}x as fast as before")


def worst_fragmented(cells: Sequence[dict[str, Any]]) -> float:
    """The least speed-up over the build before where pages are fragmented."""
    return float(min(min(row["fragmented_ratios"]) for row in cells))


def report_of(cells: Sequence[dict[str, Any]], commit: str) -> dict[str, Any]:
    """The JSON report."""
    return {
        "evidence": "simulated",
        "versions": provenance(FAMILY.digest),
        "before": commit,
        "worst_fragmented_ratio": worst_fragmented(cells),
        "cells": cells,
    }


if __name__ == "__main__":
    main()
