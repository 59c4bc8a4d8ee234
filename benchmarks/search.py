"""How good is the search? Against the best of recorded spaces, with no compiler.

    python benchmarks/search.py truth/*.truth.json --json out.json

Each file holds a sample of one space at both fidelities (`record.py`). A searcher may ask for a
share of it; its regret is how much slower its best answer is than the best of the sample. The
times behind it are simulated; the regret is a property of the search alone.
"""

import gzip
import json
import statistics
from collections import namedtuple
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click

from rpa_tune.space.axis import Axis
from rpa_tune.space.space import Space
from rpa_tune.sweep.sampler import Search, make_sampler

SHARES_PCT = (5, 10, 15, 25, 50)
# Searcher -> (sampler, whether it starts from the heuristic).
SEARCHERS = {
    "ladder": ("kriging", True),
    "optuna": ("tpe", False),
    "random": ("random", False),
    "grid": ("exhaustive", False),
}
SEEDS = 5  # repeats of the searchers that draw


@dataclass(frozen=True, kw_only=True, slots=True)
class Truth:
    """One recorded space.

    Attributes:
      name: The file's.
      space: Axes and the sampled configs, in axis order.
      times_us: Config -> simulated time, or None when it has none.
      bounds: Config -> analytical bound, microseconds.
      heuristic: The heuristic's config, in the sample.
      best_us: Least simulated time.
    """

    name: str
    space: Space
    times_us: dict[Any, float | None]
    bounds: dict[Any, float]
    heuristic: Any
    best_us: float


def load_truth(path: Path) -> Truth:
    """Reads what `record.py` wrote. Configs become named tuples: today's kernels play no part."""
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "rt") as file:
        data = json.load(file)
    axes = tuple(Axis(name=name, values=tuple(v)) for name, v in data["axes"].items())
    config_type = namedtuple("Config", [axis.name for axis in axes])  # type: ignore[misc]
    rows = [(config_type(**row["config"]), row) for row in data["configs"]]
    times_us = {config: row["time_us"] for config, row in rows}
    return Truth(
        name=path.name.removesuffix(".gz").removesuffix(".truth.json"),
        space=Space(family="recorded", axes=axes, configs=tuple(sorted(times_us))),
        times_us=times_us,
        bounds={config: row["bound_us"] for config, row in rows if row["bound_us"] is not None},
        heuristic=config_type(**data["heuristic"]),
        best_us=min(us for us in times_us.values() if us is not None),
    )


def answer(truth: Truth, config: Any) -> Any:
    """What samplers read of an evaluation: the config, whether it has a time, and the time."""
    time_us = truth.times_us[config]
    return SimpleNamespace(
        candidate=SimpleNamespace(config=config), time_us=time_us, ok=time_us is not None,
        batch_us=(),
    )  # fmt: skip


def regret_pct(truth: Truth, searcher: str, *, num: int, seed: int) -> float:
    """How much slower than the best the best of `num` answers is, in percent."""
    kind, is_seeded = SEARCHERS[searcher]
    pool = list(truth.space.configs)
    if is_seeded:
        pool = [truth.heuristic, *(config for config in pool if config != truth.heuristic)]
    if kind == "exhaustive":
        pool = pool[:num]
    below: Any = {
        config: SimpleNamespace(time_us=us, batch_us=(), ok=True)
        for config, us in truth.bounds.items()
    }
    sampler = make_sampler(
        kind,
        truth.space,
        pool,
        below if searcher == "ladder" else {},
        num_seeds=int(is_seeded),
        search=Search(simulate=num, wave=max(2, min(8, num // 3)), seed=seed),
    )
    times = []
    while wave := sampler.ask():
        told = [answer(truth, config) for config in wave]
        sampler.tell(told)
        times += [answer.time_us for answer in told if answer.time_us is not None]
    # Who found nothing that works would fall back to the heuristic.
    found_us = min(times, default=truth.times_us[truth.heuristic] or float("inf"))
    return 100 * (found_us / truth.best_us - 1)


def compare(truths: Sequence[Truth]) -> dict[str, Any]:
    """Median and worst regret over the spaces, by searcher and share."""
    figures: dict[str, Any] = {}
    for searcher, (kind, _) in SEARCHERS.items():
        for share in SHARES_PCT:
            regrets = []
            for truth in truths:
                num = max(1, round(len(truth.times_us) * share / 100))
                seeds = range(SEEDS) if kind in ("tpe", "random") else range(1)
                each = [regret_pct(truth, searcher, num=num, seed=seed) for seed in seeds]
                regrets.append(statistics.mean(each))
            figures[f"{searcher}_at_{share}_pct"] = {
                "median_regret": statistics.median(regrets),
                "worst_regret": max(regrets),
            }
    return figures


@click.command()
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Write the figures.")
def main(files: tuple[Path, ...], json_file: Path | None) -> None:
    """Prints regret by searcher and share of evaluations."""
    truths = [load_truth(path) for path in files]
    click.echo(f"{len(truths)} spaces; regret in percent of the best simulated time")
    figures = compare(truths)
    for name, figure in figures.items():
        click.echo(
            f"{name:20} median {figure['median_regret']:7.2f}   worst {figure['worst_regret']:7.2f}"
        )
    if json_file is not None:
        spaces = {
            truth.name: {
                "configs": len(truth.times_us),
                "best_us": truth.best_us,
                "heuristic_us": truth.times_us[truth.heuristic],
            }
            for truth in truths
        }
        document = {**figures, "spaces": spaces, "regrets_are": "percent of simulated time"}
        json_file.write_text(json.dumps(document, indent=2, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
