"""How much of the machine our kernels use: shares of HBM bandwidth and of peak FLOPs, and aims.

    python benchmarks/utilization.py --json benchmarks/results/utilization.json

Each figure is the best of the default config and its likeliest neighbours, for one launch alone.
The bandwidth counts bytes that no kernel could avoid, over the chip's nominal one; the FLOPs are
causal ones over the bfloat16 peak. Beside it stand the interval of that share, and how much of the
time the engine serves reads and the fullest issue slot is busy: one of them near 100 % is why no
more can be had from that schedule. Times are simulated.

The file is written cell by cell, and a run leaves alone what an earlier one wrote of the same
kernels, simulator and versions; compiles are kept in the cache.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
from cells import PAGE_SIZE, Group
from entries import our_candidates

from rpa_kernels.batch import Batch
from rpa_kernels.problem import Problem
from rpa_tune.candidate import Status
from rpa_tune.evaluate.simulated import SimulatedEvaluator
from rpa_tune.files import write_whole
from rpa_tune.provenance import kernel_digest, provenance, simulator_digest, versions

CHIPS = ("v4", "v5e", "v5p", "v6e", "v7x")
LARGE_PAGE = 512
# By chip and head size. A head of 128 fills a 256-wide MXU (v6e, v7x) by half.
AIMS_OF_PREFILL = {
    "v5e": {128: 0.7},
    "v5p": {128: 0.7},
    "v6e": {128: 0.35, 256: 0.6},
    "v7x": {128: 0.35, 256: 0.6},
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Cell:
    """One launch and what is aimed at.

    Attributes:
      group: Chip, problem and the one batch.
      metric: `mbu` or `mfu`.
      aim: Share of the nominal peak, 0 to 1; None where no aim was set.
    """

    group: Group
    metric: str
    aim: float | None


def cells(chips: tuple[str, ...]) -> Iterator[Cell]:
    """Decode at 8K, long prefills at two head sizes, short fp8 decode of one KV head."""
    for chip in chips:
        heads = {"num_q_heads": 32, "num_kv_heads": 8, "head_dim": 128}
        for num_seqs in (32, 64):
            yield Cell(
                group=_group(chip, f"decode 8192x{num_seqs}", _decode(8192, num_seqs), heads),
                metric="mbu",
                aim=0.9,
            )
        short = {
            "num_q_heads": 12, "num_kv_heads": 1, "head_dim": 128, "kv_dtype": "float8_e4m3fn",
            "k_scale": 1.0, "v_scale": 1.0,
        }  # fmt: skip
        for page_size in (PAGE_SIZE, LARGE_PAGE):
            name = f"decode 1024x32, 12 q on 1 kv, fp8, pages of {page_size}"
            yield Cell(
                group=_group(chip, name, _decode(1024, 32), short, page_size=page_size),
                metric="mbu",
                # Twice what the public stacked kernel has; it has that with large pages.
                aim=0.36 if (chip, page_size) == ("v7x", LARGE_PAGE) else None,
            )
        for head_dim in (128, 256):
            aim = AIMS_OF_PREFILL.get(chip, {}).get(head_dim)
            chunk = Batch(q_lens=(2048,), kv_lens=(34816,), num_decode=0)
            model = {**heads, "num_q_heads": 4096 // head_dim, "head_dim": head_dim}
            name = f"prefill 2048 after 32k, head {head_dim}"
            yield Cell(group=_group(chip, name, chunk, model), metric="mfu", aim=aim)


def _decode(kv_len: int, num_seqs: int) -> Batch:
    return Batch(q_lens=(1,) * num_seqs, kv_lens=(kv_len,) * num_seqs, num_decode=num_seqs)


def _group(
    chip: str, name: str, batch: Batch, model: dict[str, Any], *, page_size: int = PAGE_SIZE
) -> Group:
    pages = -(-max(batch.kv_lens) // page_size)
    problem = Problem(
        **model,
        page_size=page_size,
        max_num_tokens=sum(batch.q_lens),
        max_num_seqs=len(batch.q_lens),
        pages_per_seq=pages,
        num_pages=pages * len(batch.q_lens),
        sm_scale=model["head_dim"] ** -0.5,
    )
    kind = "decode" if batch.num_decode else "prefill"
    return Group(chip=chip, model=name, kind=kind, problem=problem, batches={name: batch})


def measure(cell: Cell, search: int, evaluator: SimulatedEvaluator) -> dict[str, Any]:
    """The best of `search` configs, as a row of the report."""
    group = cell.group
    candidates = our_candidates(group)[:search]
    simulations = list(evaluator.simulate_all(candidates, group.workload))
    answers = [simulation.evaluation for simulation in simulations]
    found = [s for s in simulations if s.evaluation.status is Status.OK]
    row: dict[str, Any] = {
        "chip": group.chip, "cell": group.model, "metric": cell.metric, "aim": cell.aim,
        "failures": [f"{a.status}: {a.detail}" for a in answers if a.status is not Status.OK],
    }  # fmt: skip
    if not found:
        return {**row, "share": None}
    chosen = min(found, key=lambda simulation: simulation.evaluation.time_us or 0.0)
    best, (timeline,) = chosen.evaluation, chosen.timelines
    default = next((a for a in answers if a.ok and a.candidate == candidates[0]), None)
    slot = timeline.busiest_slot
    return {
        **row,
        "share": best.metrics[cell.metric],
        "share_default": default.metrics[cell.metric] if default else None,
        "time_us": best.time_us,
        "interval_us": best.metrics["interval_us"],
        "read_engine_busy": timeline.read_busy_cycles / timeline.total_cycles,
        "fullest_slot": {"name": slot, "share": timeline.slots[slot].share},
        "bound_by": best.metrics["bound_by"],
        "cycles_by_owner": best.metrics["cycles_by_owner"],
        "compile_s": best.metrics.get("compile_s"),
        "config": str(best.candidate.config),
    }


def line(row: dict[str, Any]) -> str:
    """A row of the report, for people."""
    name = f"{row['chip']:4} {row['cell']:34} {row['metric']}"
    if row["share"] is None:
        return f"{name} no time: {row['failures']}"
    aim = f"aim {row['aim']:.0%}" if row["aim"] else ""
    low, high = interval_of(row)
    slot = row["fullest_slot"]
    return (
        f"{name} {row['share']:6.1%} ({low:.0%} to {high:.0%}) {aim:7}  {row['time_us']:8.1f} us, "
        f"reads {row['read_engine_busy']:4.0%}, {slot['name']} slots {slot['share']:4.0%}; "
        f"bound by {row['bound_by']}"
    )


def interval_of(row: dict[str, Any]) -> tuple[float, float]:
    """The shares that the interval of a row's time leaves."""
    low_us, high_us = row["interval_us"]
    return row["share"] * row["time_us"] / high_us, row["share"] * row["time_us"] / low_us


def markdown(rows: list[dict[str, Any]]) -> str:
    """The table of `benchmarks/README.md`."""
    what = {"mbu": "bandwidth", "mfu": "FLOPs"}
    lines = [
        "| chip | launch | share | interval | aim | reads served | fullest issue slot | bound by |",
        "|" + "---|" * 8,
    ]
    for row in rows:
        if row["share"] is None:
            lines.append(f"| {row['chip']} | {row['cell']} | no time | - | - | - | - | - |")
            continue
        low, high = interval_of(row)
        slot, aim = row["fullest_slot"], f"{row['aim']:.0%}" if row["aim"] else "-"
        lines.append(
            f"| {row['chip']} | {row['cell']} | {row['share']:.1%} of {what[row['metric']]} |"
            f" {low:.0%} to {high:.0%} | {aim} | {row['read_engine_busy']:.0%} |"
            f" {slot['name']} {slot['share']:.0%} | {row['bound_by']} |"
        )
    return "\n".join(lines)


def kept_rows(path: Path | None, report: dict[str, Any]) -> dict[tuple[str, str], dict[str, Any]]:
    """Rows that an earlier run wrote, by chip and cell, where what decides them is the same."""
    if path is None or not path.exists():
        return {}
    old = json.loads(path.read_text())
    if any(old.get(name) != report[name] for name in ("search", "made_of")):
        return {}
    return {(row["chip"], row["cell"]): row for row in old["cells"] if row["share"] is not None}


@click.command()
@click.option("--chips", default=",".join(CHIPS), help="Comma-separated.")
@click.option("--only", default="", help="Launches with this in their name, such as decode.")
@click.option("--search", default=3, help="Configs tried for every cell.")
@click.option("--workers", default=2, help="Worker processes.")
@click.option("--deadline", default=1200.0, help="Seconds that a compile may take.")
@click.option("--cache", default=Path(".rpa-tune/cache"), type=Path, help="Of compiles.")
@click.option("--json", "json_file", type=Path, help="Where the report goes.")
@click.option("--markdown", "print_markdown", is_flag=True, help="Print the table too.")
def main(
    chips: str,
    only: str,
    search: int,
    workers: int,
    deadline: float,
    cache: Path,
    json_file: Path | None,
    print_markdown: bool,
) -> None:
    """Prints one line a cell."""
    report: dict[str, Any] = {
        "evidence": "simulated",
        "versions": provenance(),
        # Other rows of the file were of the same.
        "made_of": {
            **{family: kernel_digest(family) for family in ("decode", "mixed", "prefill")},
            "simulator": simulator_digest(), **versions(),
        },
        "search": search,
    }  # fmt: skip
    kept = kept_rows(json_file, report)
    evaluator = SimulatedEvaluator(num_workers=workers, cache_dir=cache, deadline_s=deadline)
    try:
        for cell in cells(tuple(chips.split(","))):
            place = (cell.group.chip, cell.group.model)
            if only not in cell.group.model:
                continue
            if place not in kept:
                kept[place] = measure(cell, search, evaluator)
                if json_file:
                    report["cells"] = [kept[name] for name in sorted(kept)]
                    write_whole(json_file, (json.dumps(report, indent=1) + "\n").encode())
            print(line(kept[place]), flush=True)
    finally:
        evaluator.close()
    if print_markdown:
        print(markdown([kept[name] for name in sorted(kept)]))


if __name__ == "__main__":
    main()
