"""How good is the search? Against the best of recorded spaces, with no compiler.

    python benchmarks/search.py truth/*.jsonl --json out.json

Each store holds a sample of one space at both fidelities (`record.py`). A searcher may ask for a
share of it; its regret is how much slower its best answer is than the best of the sample. The
times behind it are simulated; the regret is a property of the search alone.
"""

import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from rpa_kernels import load_family
from rpa_kernels.infeasible import Infeasible
from rpa_tune.candidate import Evaluation, Fidelity
from rpa_tune.hw.chip import load_chip
from rpa_tune.space.axis import Axis
from rpa_tune.space.space import Space
from rpa_tune.store import journal
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
      name: The store's.
      space: Axes and the sampled configs, in axis order.
      answers: Config -> simulated answer.
      bounds: Config -> analytical bound, microseconds.
      heuristic: The heuristic's config, in the sample.
      best_us: Least simulated time.
    """

    name: str
    space: Space
    answers: dict[Any, Evaluation]
    bounds: dict[Any, float]
    heuristic: Any
    best_us: float


def load_truth(path: Path) -> Truth | None:
    """Reads a store; None when it holds no more than a handful of times."""
    evaluations = journal.read(path).evaluations
    answers = {e.candidate.config: e for e in evaluations if e.fidelity is Fidelity.SIMULATED}
    times = [e.time_us for e in answers.values() if e.time_us is not None]
    if len(times) < 20:
        return None
    some = next(iter(answers.values())).candidate
    family, target = load_family(some.family), load_chip(some.chip).target
    heuristic = family.default_config(some.problem, target)
    if isinstance(heuristic, Infeasible) or heuristic not in answers:
        return None
    axes = tuple(
        Axis(name=name, values=tuple(sorted({getattr(config, name) for config in answers})))
        for name in family.search_axes(some.problem, target)
    )
    order = sorted(answers, key=lambda config: tuple(getattr(config, axis.name) for axis in axes))
    return Truth(
        name=path.stem,
        space=Space(family=some.family, axes=axes, configs=tuple(order)),
        answers=answers,
        bounds={
            e.candidate.config: e.time_us
            for e in evaluations
            if e.fidelity is Fidelity.ANALYTICAL and e.time_us is not None
        },
        heuristic=heuristic,
        best_us=min(times),
    )


def regret_pct(truth: Truth, searcher: str, *, num: int, seed: int) -> float:
    """How much slower than the best the best of `num` answers is, in percent."""
    kind, is_seeded = SEARCHERS[searcher]
    pool = list(truth.space.configs)
    if is_seeded:
        pool = [truth.heuristic, *(config for config in pool if config != truth.heuristic)]
    if kind == "exhaustive":
        pool = pool[:num]
    sampler = make_sampler(
        kind,
        truth.space,
        pool,
        truth.bounds if searcher == "ladder" else {},
        num_seeds=int(is_seeded),
        search=Search(simulate=num, wave=max(2, min(8, num // 3)), seed=seed),
    )
    times = []
    while wave := sampler.ask():
        told = [truth.answers[config] for config in wave]
        sampler.tell(told)
        times += [answer.time_us for answer in told if answer.time_us is not None]
    # Who found nothing that works would fall back to the heuristic.
    found_us = min(times, default=truth.answers[truth.heuristic].time_us or float("inf"))
    return 100 * (found_us / truth.best_us - 1)


def compare(truths: Sequence[Truth]) -> dict[str, Any]:
    """Median and worst regret over the spaces, by searcher and share."""
    figures: dict[str, Any] = {}
    for searcher, (kind, _) in SEARCHERS.items():
        for share in SHARES_PCT:
            regrets = []
            for truth in truths:
                num = max(1, round(len(truth.answers) * share / 100))
                seeds = range(SEEDS) if kind in ("tpe", "random") else range(1)
                each = [regret_pct(truth, searcher, num=num, seed=seed) for seed in seeds]
                regrets.append(statistics.mean(each))
            figures[f"{searcher}_at_{share}_pct"] = {
                "median_regret": statistics.median(regrets),
                "worst_regret": max(regrets),
            }
    return figures


@click.command()
@click.argument("stores", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Write the figures.")
def main(stores: tuple[Path, ...], json_file: Path | None) -> None:
    """Prints regret by searcher and share of evaluations."""
    truths = [truth for path in stores if (truth := load_truth(path))]
    click.echo(f"{len(truths)} spaces; regret in percent of the best simulated time")
    figures = compare(truths)
    for name, figure in figures.items():
        click.echo(
            f"{name:20} median {figure['median_regret']:7.2f}   worst {figure['worst_regret']:7.2f}"
        )
    if json_file is not None:
        spaces = {
            truth.name: {
                "configs": len(truth.answers),
                "best_us": truth.best_us,
                "heuristic_us": truth.answers[truth.heuristic].time_us,
            }
            for truth in truths
        }
        document = {**figures, "spaces": spaces, "regrets_are": "percent of simulated time"}
        json_file.write_text(json.dumps(document, indent=2, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
