"""Long decodes of one KV head with linear and with strided page copies, beside the stacked kernel.

    python benchmarks/copy_forms.py --json benchmarks/results/copy_forms.json

v7x, 32 sequences, pages of 2048 tokens, drawn at random, as the stacked kernel's own measurements
have them. 8 query heads on 1 KV head in bfloat16 and 12 on 1 in float8, without padding
(`seq_along_lane`, the layout that the stacked kernel has for it). Each form has the best of the
default config and one with long blocks, the stacked kernel the block sizes that it chooses. `share`
is that of 3.4 TB/s, what the stacked kernel's measured times show (`measured_rpa_2.jsonl`: from 64K
to 1M tokens), for the bytes of the cache.

The machine model has one rate for linear copies on v7x and another for strided ones: a correlation
(`fidelity.md`). So a third time is given, of linear copies if they streamed as strided ones do, and
a cell is `undecided` where the two forms do not come to the same beside the stacked kernel. Times
are simulated.
"""

import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click
from candidates import fitting

from kernels import verdict
from rpa_kernels.batch import Batch
from rpa_kernels.problem import Problem
from rpa_tune.candidate import Candidate, Status
from rpa_tune.compile.cache import CompileCache, compile_key
from rpa_tune.compile.dumps import unpack_bundles
from rpa_tune.compile.pool import WorkerPool
from rpa_tune.evaluate.simulated import SimulatedEvaluator
from rpa_tune.families.registry import load_family
from rpa_tune.hw.chip import load_chip
from rpa_tune.interop import simulate as foreign
from rpa_tune.interop.public.tpu_inference.package import WHEEL
from rpa_tune.llo.machine import Machine, load_machine
from rpa_tune.llo.parse import load_program
from rpa_tune.llo.simulate import simulate
from rpa_tune.provenance import provenance
from rpa_tune.workload.workload import WeightedBatch, Workload

CHIP, SEQS, PAGE_SIZE = "v7x", 32, 2048
STREAM_BYTES_PER_S = 3.4e12
CONTEXTS = (8192, 65536, 1048576)
FORMS = {"linear": 0, "strided": 1}
KINDS: dict[str, dict[str, Any]] = {
    "8 on 1 bfloat16": {"num_q_heads": 8, "kv_dtype": "bfloat16"},
    "12 on 1 float8": {
        "num_q_heads": 12, "kv_dtype": "float8_e4m3fn", "kv_layout": "seq_along_lane",
        "k_scale": 1.0, "v_scale": 1.0,
    },
}  # fmt: skip
# Fields beside the default config: long blocks, of which a step begins and ends fewer, and as many
# chains as fit (a token of bfloat16 has three times its bytes in VMEM where copies are strided).
LONG_BLOCKS = {
    "8 on 1 bfloat16": {"bkv_sz": 2048, "bkv_csz": 1024, "seqs_per_step": 4, "num_buffers": 3},
    "12 on 1 float8": {"bkv_sz": 1024, "bkv_csz": 1024, "seqs_per_step": 8, "num_buffers": 4},
}


@dataclass(frozen=True, kw_only=True)
class Group:
    """The cells of one kind: a batch for each context, of one problem."""

    kind: str

    @property
    def problem(self) -> Problem:
        """Static shapes, for the longest of the contexts."""
        pages = max(CONTEXTS) // PAGE_SIZE
        return Problem(
            num_kv_heads=1, head_dim=128, page_size=PAGE_SIZE, max_num_tokens=128,
            max_num_seqs=SEQS, pages_per_seq=pages, num_pages=pages * SEQS, sm_scale=128**-0.5,
            **KINDS[self.kind],
        )  # fmt: skip

    @property
    def workload(self) -> Workload:
        """Decode of each context."""
        batches = [
            Batch(q_lens=(1,) * SEQS, kv_lens=(context,) * SEQS, num_decode=SEQS)
            for context in CONTEXTS
        ]
        weighted = tuple(WeightedBatch(batch=one, weight=1 / len(batches)) for one in batches)
        return Workload(name=self.kind, source="made up", batches=weighted)

    def candidates(self, form: str) -> list[Candidate]:
        """The default config and the one with long blocks, with one form of copies."""
        family, chip = load_family("decode"), load_chip(CHIP)
        default = family.default_config(self.problem, chip.target)
        forms = {"strided_copies": FORMS[form]}
        configs = [replace(default, **one, **forms) for one in ({}, LONG_BLOCKS[self.kind])]
        return fitting(family, self.problem, chip, self.workload, configs)


def best_of(found: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The quickest of some answers to a cell."""
    return min(found, key=lambda one: one["time_us"], default=None)


def our_answers(
    group: Group, form: str, evaluator: SimulatedEvaluator
) -> list[list[dict[str, Any]]]:
    """Answers to each cell; bytes and copies of every one are held to the account."""
    cells: list[list[dict[str, Any]]] = [[] for _ in CONTEXTS]
    for simulation in evaluator.simulate_all(group.candidates(form), group.workload):
        evaluation = simulation.evaluation
        candidate = evaluation.candidate
        if evaluation.status is not Status.OK:
            click.echo(f"  misses: {candidate.config}: {evaluation.detail}", err=True)
            continue
        for cell, timeline in zip(cells, simulation.timelines, strict=True):
            cell.append({
                "time_us": timeline.time_us, "sets_us": timeline.set_us,
                "config": candidate.family.config_to_dict(candidate.config),
                "bound_by": timeline.bound_by,
            })  # fmt: skip
    return cells


def alike_us(group: Group, cache: Path, machine: Machine) -> list[float]:
    """The best times of linear copies on another machine, from the schedules in the cache."""
    times, chip = [], load_chip(CHIP)
    for candidate in group.candidates("linear"):
        compiled = CompileCache(cache).load(compile_key(candidate))
        if compiled is None or compiled.bundles is None:
            continue
        with tempfile.TemporaryDirectory() as folder:
            program = load_program(unpack_bundles(compiled.bundles, Path(folder)))
        times.append([
            simulate(
                program, machine,
                candidate.family.scalar_operands(
                    group.problem, candidate.config, chip, weighted.batch
                ),
            ).time_us
            for weighted in group.workload.batches
        ])  # fmt: skip
    return [min(one) for one in zip(*times, strict=True)]


def public_answers(
    group: Group, pool: WorkerPool, root: Path, cache: Path
) -> tuple[list[list[dict[str, Any]]], list[str]]:
    """Answers of the stacked kernel, with its own block sizes, and why any are missing."""
    # Which layout its cache has it decides itself.
    problem = replace(group.problem, kv_layout="head_along_sublane")
    task = foreign.ForeignTask(
        kernel="stacked", root=root, chip=load_chip(CHIP), problem=problem, blocks=None,
        batches=tuple(one.batch for one in group.workload.batches), cache_dir=cache,
    )  # fmt: skip
    cells: list[list[dict[str, Any]]] = [[] for _ in CONTEXTS]
    missing = []
    for reply in pool.map_unordered(foreign.TASK, [task]):
        detail = str(reply.failure) if reply.failure else reply.value.detail
        if detail:
            missing.append(" ".join(detail.split())[:300])
        if reply.failure:
            continue
        for i, (time_us, sets_us) in enumerate(
            zip(reply.value.batch_us, reply.value.set_us, strict=True)
        ):
            if time_us is not None:
                cells[i].append({"time_us": time_us, "sets_us": sets_us})
    return cells, missing


def compare(
    group: Group, ours: dict[str, list[list[dict[str, Any]]]], alike: Sequence[float],
    public: list[list[dict[str, Any]]],
) -> list[dict[str, Any]]:  # fmt: skip
    """The cells of a group."""
    rows = []
    for i, context in enumerate(CONTEXTS):
        best = {form: best_of(cells[i]) for form, cells in ours.items()}
        theirs = best_of(public[i])
        num_bytes = SEQS * context * group.problem.kv_token_bytes
        row: dict[str, Any] = {
            "chip": CHIP, "kind": group.kind, "context": context, "seqs": SEQS,
            "page_size": PAGE_SIZE, "linear_if_as_strided_us": alike[i],
            "stacked_us": theirs and theirs["time_us"], "verdict": None,
        }  # fmt: skip
        verdicts = set()
        for form, answer in best.items():
            if answer is None:
                continue
            seconds = answer["time_us"] * 1e-6
            row |= {
                f"{form}_us": answer["time_us"], f"{form}_config": answer["config"],
                f"{form}_bound_by": answer["bound_by"],
                f"{form}_share": num_bytes / seconds / STREAM_BYTES_PER_S,
            }  # fmt: skip
            if theirs:
                verdicts.add(verdict(answer, theirs))
        if verdicts:
            row["verdict"] = verdicts.pop() if len(verdicts) == 1 else "undecided"
        rows.append(row)
    return rows


def print_row(row: dict[str, Any]) -> None:
    """One line on stdout."""
    stacked = f"{row['stacked_us']:8.1f}" if row["stacked_us"] else "       -"
    click.echo(
        f"{row['kind']:16} {row['context']:8} x {row['seqs']}  linear {row['linear_us']:8.1f} us "
        f"({row['linear_share']:.0%}; {row['linear_if_as_strided_us']:8.1f} if as strided)  "
        f"strided {row['strided_us']:8.1f} us ({row['strided_share']:.0%}, "
        f"{row['strided_bound_by']})  stacked {stacked}  {row['verdict']}"
    )


@click.command()
@click.option("--kinds", default=",".join(KINDS), help="Comma-separated.")
@click.option("--workers", default=2, help="Worker processes.")
@click.option("--cache", default=Path(".rpa-tune/cache"), type=Path, help="Of compiles.")
@click.option("--wheels", default=Path(".rpa-tune"), type=Path, help="Where the wheel is kept.")
@click.option("--json", "json_file", type=Path, help="Where the report goes.")
def main(kinds: str, workers: int, cache: Path, wheels: Path, json_file: Path | None) -> None:
    """Prints one line a cell."""
    root, machine = WHEEL.fetch(wheels), load_machine(CHIP)
    strided = machine.value("read_strided_bytes_per_s")
    alike_machine = machine.with_values(
        {"read_linear_bytes_per_s": strided}, source="as strided copies", confidence="guess"
    )
    evaluator = SimulatedEvaluator(num_workers=workers, cache_dir=cache, deadline_s=900)
    cells, missing = [], {}
    try:
        for kind in kinds.split(","):
            group = Group(kind=kind)
            ours = {form: our_answers(group, form, evaluator) for form in FORMS}
            alike = alike_us(group, cache, alike_machine)
            with WorkerPool(num_workers=workers, deadline_s=900) as pool:
                public, missing[kind] = public_answers(group, pool, root, cache)
            for row in compare(group, ours, alike, public):
                print_row(row)
                cells.append(row)
            for reason in missing[kind]:
                click.echo(f"  stacked misses: {reason}")
    finally:
        evaluator.close()
    report = {
        "evidence": "simulated",
        "versions": provenance(load_family("decode").digest),
        "stream_bytes_per_s": STREAM_BYTES_PER_S,
        "stacked_misses": missing,
        "cells": cells,
    }
    if json_file:
        json_file.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
