"""Latent attention: our kernels and tpu-inference's, same problem, batches and simulator, one run.

    python benchmarks/mla.py --json benchmarks/results/mla.json

Each chip has every number of heads with the dtype and page size of `VARIANTS`. The public kernel
gets the blocks that its engine would look up, which are defaults where its table has no key, and
one more set: what its table has most often, as far as it fits. Ours gets its default and one
neighbour.

What is compiled is little: all cells of a chip and variant share one problem, so that a kernel is
compiled once for contexts and batches of every size, and the public function once for its decode
and its mixed blocks. `TIERS` says what comes first; a run that ends by `--minutes` has that whole.

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
from dataclasses import asdict, replace
from pathlib import Path
from statistics import geometric_mean
from typing import Any, NamedTuple

import click
from cells import Group
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

CHIPS = ("v6e", "v7x", "v5p")
KINDS = ("decode", "mixed")
FLOAT8 = "float8_e4m3fn"
# (heads of a device, dtype of the cache, tokens of a page), the most important first. In
# tpu-inference all 128, 64 or 32 heads are on a device, and a page has 1024 tokens; 16 and 8 are
# those of 128 at TP8 and TP16 where the heads are shared.
VARIANTS = (
    (128, FLOAT8, 1024), (128, "bfloat16", 1024), (16, "bfloat16", 256), (8, FLOAT8, 256),
    (64, FLOAT8, 1024), (32, "bfloat16", 1024),
)  # fmt: skip
HEADS = tuple(dict.fromkeys(heads for heads, _, _ in VARIANTS))
# (chips, heads): what a run does whole before it begins the next.
TIERS = (
    (("v6e", "v7x"), (128,)), (("v6e", "v7x"), (16, 8)), (("v6e", "v7x"), (64, 32)),
    (("v5p",), HEADS),
)  # fmt: skip
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
Plan = list[tuple["Case", list[Entry]]]
TURNING = "xpose"  # how the names of the kernels begin that turn arrays over


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


class Case(NamedTuple):
    """What is compared on one problem.

    Attributes:
      tier: Place in `TIERS`.
      by_kind: The cells of each kind.
    """

    tier: int
    by_kind: dict[str, Group]

    @property
    def whole(self) -> Group:
        """The cells of all kinds: the public function is compiled for them at once."""
        first = next(iter(self.by_kind.values()))
        batches = {k: b for group in self.by_kind.values() for k, b in group.batches.items()}
        return replace(first, kind="+".join(self.by_kind), batches=batches)

    def part(self, answer: Answer, kind: str) -> Answer:
        """What an answer for the whole says of one kind."""
        names, wanted = list(self.whole.batches), self.by_kind[kind].batches
        places = [i for i, name in enumerate(names) if name in wanted]
        return answer._replace(
            times_us=[answer.times_us[i] for i in places if answer.times_us],
            sets_us=[answer.sets_us[i] for i in places if answer.sets_us],
        )


def cases(chips: Sequence[str], heads: Sequence[int], kinds: Sequence[str]) -> Iterator[Case]:
    """All cases of the named chips, heads and kinds, the most important first."""
    for tier, (of_tier, heads_of_tier) in enumerate(TIERS):
        for variant, chip in itertools.product(VARIANTS, of_tier):
            if chip in chips and variant[0] in heads and variant[0] in heads_of_tier:
                yield Case(tier, groups(chip, *variant, kinds))


def groups(
    chip: str, heads: int, kv_dtype: str, page_size: int, kinds: Sequence[str]
) -> dict[str, Group]:
    """The cells of a chip and variant by kind, all of one problem."""
    by_kind = {kind: batches_of(kind) for kind in kinds}
    batches = [batch for some in by_kind.values() for batch in some.values()]
    pages = max(sum(cdiv(kv, page_size) for kv in batch.kv_lens) for batch in batches)
    problem = Problem(
        num_q_heads=heads,
        num_kv_heads=1,
        head_dim=RANK,
        rope_dim=ROPE,
        page_size=page_size,
        max_num_tokens=max(batch.num_tokens for batch in batches),
        max_num_seqs=max(batch.num_seqs for batch in batches),
        pages_per_seq=cdiv(max(max(batch.kv_lens) for batch in batches), page_size),
        num_pages=next_power_of_2(pages),
        sm_scale=SCALE,
        kv_dtype=kv_dtype,
        **{"q_dtype": "bfloat16", **latent_fields(TPU_INFERENCE, kv_dtype)},
    )
    model = f"{heads} heads {kv_dtype} page {page_size}"
    return {
        kind: Group(chip=chip, model=model, kind=kind, problem=problem, batches=some)
        for kind, some in by_kind.items()
    }


def public_sets(group: Group, count: int) -> list[dict[str, int]]:
    """The blocks of the public kernel for a kind: what its engine looks up, then `likely_sets`."""
    family = load_family(f"public-mla-{group.kind}")
    own = family.default_config(group.problem, load_chip(group.chip).target)
    sets = [] if isinstance(own, Infeasible) else [own]
    return [asdict(config) for config in dict.fromkeys([*sets, *likely_sets(group)])][:count]


def likely_sets(group: Group) -> list[Any]:
    """Those of `PUBLIC_SETS` that fit."""
    family, target = load_family(f"public-mla-{group.kind}"), load_chip(group.chip).target
    configs = [family.config_from_dict(fields) for fields in PUBLIC_SETS[group.kind]]
    return [
        config
        for config in configs
        if family.check(group.problem, config, target) is None
        and family.scratch_bytes(group.problem, config, target) <= ROOM * target.vmem_bytes
    ]


def public_entries(case: Case, count: int, cache_dir: Path) -> list[Entry]:
    """The public function with each set of all kinds at once; no set of a kind is left out."""
    sets = {kind: public_sets(group, count) for kind, group in case.by_kind.items()}
    return [
        public_entry(
            case.whole, {kind: some[min(rank, len(some) - 1)] for kind, some in sets.items()}, rank,
            cache_dir,
        )
        for rank in range(max(map(len, sets.values())))
    ]  # fmt: skip


def public_entry(
    group: Group, blocks: dict[str, dict[str, int]], rank: int, cache_dir: Path
) -> Entry:
    """The public function with blocks by kind; small ones for a kind that has none."""
    return Entry(
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
            blocks=idle_mla_blocks(group.problem) | blocks,
            batches=tuple(group.batches.values()),
            cache_dir=cache_dir,
        ),
    )


def alone(case: Case, entry: Entry, cache_dir: Path) -> dict[str, Entry]:
    """By kind: the blocks of a public entry for the cells of that kind only.

    Where the function does not compile because of the blocks of another kind these may.
    """
    return {
        kind: public_entry(group, {kind: entry.blocks[kind]}, entry.rank, cache_dir)
        for kind, group in case.by_kind.items()
    }


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
            for row in cell["best"].values():
                row["share_of_bound"] = cell["bound_us"] / row["time_us"]
        results.append(result)
    return results


def ask(plan: Plan, journal: Journal, cache_dir: Path, options: dict[str, Any]) -> None:
    """Asks for what the journal has not: tier by tier, first choices before others."""
    started, some = time.perf_counter(), options["workers"]

    def run_all(pool: WorkerPool, entries: Sequence[Entry]) -> None:
        for i in range(0, len(entries), some):
            if time.perf_counter() - started < 60 * options["minutes"]:
                run(pool, list(entries[i : i + some]), journal, read)

    with WorkerPool(num_workers=some, deadline_s=options["deadline"]) as pool:
        for tier in range(len(TIERS)):
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
    shown = ("geomean_speedup", "worst_cell_speedup", "verdicts", "num_cells", "num_compared")
    print(json.dumps({key: report[key] for key in shown}))
    if options["json_file"]:
        options["json_file"].write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
