"""The report of `kernels.py` as tables for a page: our speed-up by kind, model and chip.

    python benchmarks/summary.py benchmarks/results/kernels.json

An entry is the geometric mean over the cells, with the worst and the best cell in brackets; `-`
where no public kernel served any of them. Times are simulated, as in the report.
"""

import json
from collections import Counter
from pathlib import Path
from statistics import geometric_mean
from typing import Any

import click
from cells import KINDS, MODELS, OPPONENTS

VERDICTS = ("ahead", "level", "behind", "undecided")
CHIPS = ("v5e", "v5p", "v6e", "v7x")


def entry(speedups: list[float]) -> str:
    """`mean (worst to best)`."""
    if not speedups:
        return "-"
    return f"{geometric_mean(speedups):.2f} ({min(speedups):.2f} to {max(speedups):.2f})"


def speedups(cells: list[dict[str, Any]], **wanted: str) -> list[float]:
    """Of the cells that have all the wanted names and were compared."""
    return [
        cell["speedup"]
        for cell in cells
        if cell["speedup"] and all(cell[key] == value for key, value in wanted.items())
    ]


def lines(report: dict[str, Any]) -> list[str]:
    """A table of speed-ups for each kind, then how often each opponent was the best and served."""
    cells = report["cells"]
    text = []
    for kind in KINDS:
        text += ["", f"| {kind} | {' | '.join(CHIPS)} |", "|---" * (len(CHIPS) + 1) + "|"]
        rows = {model: {"model": model} for model in MODELS} | {"all": {}}
        for name, wanted in rows.items():
            found = [entry(speedups(cells, kind=kind, chip=chip, **wanted)) for chip in CHIPS]
            text.append(f"| {name} | {' | '.join(found)} |")
    compared = [cell for cell in cells if cell["chip"] in CHIPS]
    served = Counter(kernel for cell in compared for kernel in cell["best"])
    best = Counter(
        min(others, key=lambda kernel: others[kernel]["time_us"])
        for cell in compared
        if (others := {k: row for k, row in cell["best"].items() if k != "ours"})
    )
    text += ["", "| public kernel | cells served | best of them |", "|---|---|---|"]
    text += [f"| {k} | {served[k]} of {len(compared)} | {best[k]} |" for k in OPPONENTS]
    # A report from before there were sets of parameters has no verdicts, and no counts are made up.
    counts = Counter(cell["verdict"] for cell in compared if cell.get("verdict"))
    total = sum(1 for cell in compared if cell["speedup"])
    shown = ", ".join(f"{name} in {counts[name]}" for name in VERDICTS)
    text += ["", f"Of {total} cells that were compared: {shown}."]
    if missing := total - counts.total():
        text.append(f"Without a verdict: {missing}.")
    return text


@click.command()
@click.argument("report", type=click.Path(exists=True, path_type=Path))
def main(report: Path) -> None:
    """Prints Markdown."""
    click.echo("\n".join(lines(json.loads(report.read_text()))))


if __name__ == "__main__":
    main()
