"""Latent attention: our kernels and tpu-inference's, same problem, batches and simulator, one run.

    python benchmarks/mla.py --json benchmarks/results/mla.json

Each chip has every number of heads once, with the dtype and page size of `VARIANTS` (all of both
with `--all-variants`). The public kernel gets the blocks that its engine would look up, which are
defaults where its table has no key, and one more set: what its table has most often, as far as it
fits. Ours gets its default and one neighbour.

A public time is that of the attention kernels of the function, empty launches included, because it
launches them. `turning_us` is what its two further kernels take to turn queries and output over
between heads-first and tokens-first; both sides have that around attention, and it is left out.
`bound_us` is the longer of every useful byte at HBM's nominal rate and every useful multiplication
at the matrix units' peak. Times are simulated.

Answers go to a journal under the work folder, and schedules to the compile cache: a run can be
stopped, or end by `--minutes`, and be taken up again.
"""

import itertools
import json
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import geometric_mean
from typing import Any

import click
from entries import Entry, our_entries

from kernels import Answer, Journal, compare, print_failures, print_group, run, times_of
from rpa_kernels import useful
from rpa_kernels.batch import Batch
from rpa_kernels.infeasible import Infeasible
from rpa_kernels.ints import cdiv
from rpa_kernels.layout import next_power_of_2
from rpa_kernels.problem import Problem
from rpa_tune.compile.pool import Reply, WorkerPool
from rpa_tune.families.registry import load_family
from rpa_tune.hw.chip import load_chip
from rpa_tune.interop import simulate as foreign
from rpa_tune.interop.public.tpu_inference.calls import idle_mla_blocks
from rpa_tune.interop.public.tpu_inference.package import WHEEL
from rpa_tune.models.buckets import TPU_INFERENCE, latent_fields
from rpa_tune.provenance import kernel_digest, provenance
from rpa_tune.workload.workload import WeightedBatch, Workload

CHIPS = ("v5p", "v6e", "v7x")
KINDS = ("decode", "mixed")
FLOAT8 = "float8_e4m3fn"
# Heads of a device -> (dtype of the cache, tokens of a page). All 128, 64 or 32 heads are on a
# device in tpu-inference, whose page has 1024 tokens; 16 and 8 are those of 128 at TP8 and TP16
# where the heads are shared.
VARIANTS = {
    128: (FLOAT8, 1024), 64: (FLOAT8, 1024), 32: ("bfloat16", 1024), 16: ("bfloat16", 256),
    8: (FLOAT8, 256),
}  # fmt: skip
RANK, ROPE = 512, 64  # DeepSeek-V3, Kimi-K2
SCALE = 192**-0.5
# What the public table has most often, then smaller ones; of pages of 1024.
PUBLIC_SETS: dict[str, list[dict[str, int]]] = {
    "decode": [
        {"bkv_sz": 3072, "batch_size": 8}, {"bkv_sz": 3072, "batch_size": 4},
        {"bkv_sz": 2048, "batch_size": 4}, {"bkv_sz": 1024, "batch_size": 4},
    ],
    "mixed": [
        {"bq_sz": 64, "bkv_sz": 1024, "q_split": 16}, {"bq_sz": 32, "bkv_sz": 1024, "q_split": 8},
        {"bq_sz": 8, "bkv_sz": 1024, "q_split": 4},
    ],
}  # fmt: skip
ROOM = 0.7  # of VMEM for buffers, where nobody has compiled a set before
TURNING = "xpose"  # how the names of the kernels begin that turn arrays over


@dataclass(frozen=True, kw_only=True, slots=True)
class LatentGroup:
    """Cells that share a chip and a problem; see `cells.Group`, whose fields it has.

    Attributes:
      chip: Name in the chip table.
      model: Heads, dtype and page, for people.
      kind: `decode` or `mixed`.
      problem: Static shapes and dtypes.
      batches: Batch by cell name.
    """

    chip: str
    model: str
    kind: str
    problem: Problem
    batches: dict[str, Batch]

    @property
    def family(self) -> str:
        """Our family that serves the batches."""
        return f"mla-{self.kind}"

    @property
    def workload(self) -> Workload:
        """All cells with one weight."""
        weight = 1 / len(self.batches)
        weighted = tuple(WeightedBatch(batch=b, weight=weight) for b in self.batches.values())
        return Workload(name="cells", source="the cells of one group", batches=weighted)


def batches_of(kind: str) -> dict[str, Batch]:
    """The cells of a kind by name."""
    if kind == "decode":
        return {
            f"{kv // 1024}kx{seqs}": Batch(
                q_lens=(1,) * seqs, kv_lens=(kv,) * seqs, num_decode=seqs
            )
            for kv, seqs in ((4096, 16), (4096, 128), (16384, 64), (65536, 16))
        }
    lengths = {
        "verify4x32": ((4,) * 32, (4096,) * 32),
        "chunk512+4k": ((512,), (4608,)),
        "2x1024+16k": ((1024, 1024), (16384, 16384)),
        "4096": ((4096,), (4096,)),
    }
    return {name: Batch(q_lens=q, kv_lens=kv, num_decode=0) for name, (q, kv) in lengths.items()}


def groups(
    chips: Sequence[str], heads: Sequence[int], kinds: Sequence[str], all_variants: bool
) -> Iterator[LatentGroup]:
    """All groups of the named chips, heads and kinds."""
    for chip, number, kind in itertools.product(chips, heads, kinds):
        variants = set(VARIANTS.values()) if all_variants else {VARIANTS[number]}
        for kv_dtype, page_size in sorted(variants):
            batches = batches_of(kind)
            context = max(max(batch.kv_lens) for batch in batches.values())
            pages = max(
                sum(cdiv(kv, page_size) for kv in batch.kv_lens) for batch in batches.values()
            )
            problem = Problem(
                num_q_heads=number,
                num_kv_heads=1,
                head_dim=RANK,
                rope_dim=ROPE,
                page_size=page_size,
                max_num_tokens=max(batch.num_tokens for batch in batches.values()),
                max_num_seqs=max(batch.num_seqs for batch in batches.values()),
                pages_per_seq=cdiv(context, page_size),
                num_pages=next_power_of_2(pages),
                sm_scale=SCALE,
                kv_dtype=kv_dtype,
                **{"q_dtype": "bfloat16", **latent_fields(TPU_INFERENCE, kv_dtype)},
            )
            name = f"{number} heads {kv_dtype} page {page_size}"
            yield LatentGroup(chip=chip, model=name, kind=kind, problem=problem, batches=batches)


def public_sets(group: LatentGroup, count: int) -> list[dict[str, int]]:
    """The blocks of the public kernel for a kind: what its engine looks up, then `likely_sets`."""
    family = load_family(f"public-mla-{group.kind}")
    own = family.default_config(group.problem, load_chip(group.chip).target)
    sets = [] if isinstance(own, Infeasible) else [own]
    return [asdict(config) for config in dict.fromkeys([*sets, *likely_sets(group)])][:count]


def likely_sets(group: LatentGroup) -> list[Any]:
    """Those of `PUBLIC_SETS` that fit."""
    family, target = load_family(f"public-mla-{group.kind}"), load_chip(group.chip).target
    configs = [family.config_from_dict(fields) for fields in PUBLIC_SETS[group.kind]]
    return [
        config
        for config in configs
        if family.check(group.problem, config, target) is None
        and family.scratch_bytes(group.problem, config, target) <= ROOM * target.vmem_bytes
    ]


def public_entries(group: LatentGroup, count: int, cache_dir: Path) -> list[Entry]:
    """The public function with each set; the case without sequences gets small blocks."""
    idle = idle_mla_blocks(group.problem)
    return [
        Entry(
            group=group,
            kernel="mla",
            blocks=blocks,
            rank=rank,
            source=WHEEL.version,
            task=foreign.TASK,
            argument=foreign.ForeignTask(
                kernel="mla",
                root=WHEEL.root,
                chip=load_chip(group.chip),
                problem=group.problem,
                blocks=idle | {group.kind: blocks},
                batches=tuple(group.batches.values()),
                cache_dir=cache_dir,
            ),
        )
        for rank, blocks in enumerate(public_sets(group, count))
    ]


def read(entry: Entry, reply: Reply) -> Answer:
    """As `kernels.times_of`, without the kernels that turn the public function's arrays over."""
    answer = times_of(entry, reply)
    if entry.kernel == "ours" or reply.failure is not None:
        return answer
    attention = [
        [name for name in calls if not name.startswith(TURNING)] for calls in reply.value.call_us
    ]
    times_us = [
        sum(calls[name] for name in names) if calls else None
        for calls, names in zip(reply.value.call_us, attention, strict=True)
    ]
    sets_us = [
        list(map(sum, zip(*(sets[name] for name in names), strict=True)))
        for sets, names in zip(reply.value.call_set_us, attention, strict=True)
    ]
    return answer._replace(times_us=times_us, sets_us=sets_us)


def bound(group: LatentGroup, batch: Batch) -> dict[str, Any]:
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


def result_of(group: LatentGroup, entries: Sequence[Entry], journal: Journal) -> dict[str, Any]:
    """The cells of a group, each with its bound and the share of it that each kernel reaches."""
    answers = [(entry, journal.get(entry) or Answer([], "not run")) for entry in entries]
    result = compare(group, answers)
    for cell in result["cells"]:
        cell |= bound(group, group.batches[cell["name"]])
        for row in cell["best"].values():
            row["share_of_bound"] = cell["bound_us"] / row["time_us"]
    return result


def _numbers(text: str, allowed: Sequence[Any], what: str) -> list[Any]:
    kind = type(allowed[0])
    chosen = list(allowed) if text == "all" else [kind(part) for part in text.split(",")]
    if unknown := [one for one in chosen if one not in allowed]:
        raise click.BadParameter(f"{unknown} are not among {list(allowed)}", param_hint=what)
    return chosen


@click.command()
@click.option("--chips", default="all", help="Comma-separated: v5p, v6e, v7x.")
@click.option("--heads", default="all", help="Comma-separated: 128, 64, 32, 16, 8.")
@click.option("--kinds", default="all", help="decode, mixed.")
@click.option("--all-variants", is_flag=True, help="Each dtype with each page size of VARIANTS.")
@click.option("--search", default=2, help="Configs tried of ours; 0 for none.")
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
    WHEEL.use(work / "cache")
    journal = Journal(work / "mla.jsonl")
    chosen = groups(
        _numbers(options["chips"], CHIPS, "--chips"),
        _numbers(options["heads"], list(VARIANTS), "--heads"),
        _numbers(options["kinds"], KINDS, "--kinds"),
        options["all_variants"],
    )
    plan = [
        (
            group,
            [
                *our_entries(group, options["search"], work / "cache"),
                *public_entries(group, options["search_public"], work / "cache"),
            ],
        )
        for group in chosen
    ]
    # First choices before others: a run that ends early has all groups.
    ranked = sorted((e for _, entries in plan for e in entries), key=lambda entry: entry.rank)
    some = options["workers"]
    with WorkerPool(num_workers=some, deadline_s=options["deadline"]) as pool:
        for i in range(0, len(ranked), some):
            if time.perf_counter() - started < 60 * options["minutes"]:
                run(pool, ranked[i : i + some], journal, read)
    results = [result_of(group, entries, journal) for group, entries in plan]
    for result in results:
        print_group(result)
        print_failures(result)
    report = report_of(results, time.perf_counter() - started)
    shown = ("geomean_speedup", "worst_cell_speedup", "verdicts", "num_cells", "num_compared")
    print(json.dumps({key: report[key] for key in shown}))
    if options["json_file"]:
        options["json_file"].write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
