"""The report of `kernels.py` as tables for a page: our speed-up by kind, model and chip.

    python benchmarks/summary.py benchmarks/results/kernels.json

An entry is the geometric mean over the cells, with the worst and the best cell in brackets; `-`
where no public kernel served any of them. Times are simulated, as in the report.
"""

import json
from pathlib import Path
from typing import Any

import click
import numpy as np
import pandas as pd
from cells import KINDS, MODELS, OPPONENTS

VERDICTS = ("ahead", "level", "behind", "undecided")
CHIPS = ("v5e", "v5p", "v6e", "v7x")


def entry(speedups: "pd.Series[float]") -> str:
    """`mean (worst to best)`."""
    mean = np.exp(np.log(speedups).mean())
    return f"{mean:.2f} ({speedups.min():.2f} to {speedups.max():.2f})"


def cells_frame(report: dict[str, Any]) -> pd.DataFrame:
    """A row a cell of `CHIPS`: its names, the speed-up, and every kernel's best time in us."""
    frame = pd.DataFrame(report["cells"])
    frame = frame[frame["chip"].isin(CHIPS)].reset_index(drop=True)
    times = [{k: row["time_us"] for k, row in best.items()} for best in frame.pop("best")]
    frame["speedup"] = frame["speedup"].astype("float64")
    return frame.join(pd.DataFrame(times, columns=["ours", *OPPONENTS], index=frame.index))


def lines(report: dict[str, Any]) -> list[str]:
    """A table of speed-ups for each kind, then how often each opponent was the best and served."""
    cells = cells_frame(report)
    compared = cells[cells["speedup"].notna()]
    text = []
    for kind in KINDS:
        of_kind = compared[compared["kind"] == kind]
        by_model = of_kind.groupby(["model", "chip"])["speedup"].apply(entry).unstack("chip")
        by_model.loc["all"] = of_kind.groupby("chip")["speedup"].apply(entry)
        table = by_model.reindex(index=[*MODELS, "all"], columns=CHIPS).astype(object).fillna("-")
        text += ["", f"| {kind} | {' | '.join(CHIPS)} |", "|---" * (len(CHIPS) + 1) + "|"]
        text += [f"| {model} | {' | '.join(row)} |" for model, row in table.iterrows()]
    others = cells[list(OPPONENTS)].dropna(how="all")
    served, best = others.notna().sum(), others.idxmin(axis="columns").value_counts()
    text += ["", "| public kernel | cells served | best of them |", "|---|---|---|"]
    text += [f"| {k} | {served[k]} of {len(cells)} | {best.get(k, 0)} |" for k in OPPONENTS]
    # A report from before there were sets of parameters has no verdicts, and no counts are made up.
    verdicts = compared["verdict"] if "verdict" in compared else pd.Series(dtype="object")
    counts = verdicts.value_counts()
    shown = ", ".join(f"{name} in {counts.get(name, 0)}" for name in VERDICTS)
    text += ["", f"Of {len(compared)} cells that were compared: {shown}."]
    if missing := len(compared) - counts.sum():
        text.append(f"Without a verdict: {missing}.")
    return text


@click.command()
@click.argument("report", type=click.Path(exists=True, path_type=Path))
def main(report: Path) -> None:
    """Prints Markdown."""
    click.echo("\n".join(lines(json.loads(report.read_text()))))


if __name__ == "__main__":
    main()
