"""How good is the search? Against the best of recorded spaces, with no compiler.

    python benchmarks/search.py --json benchmarks/results/search.json

Each file of `spaces/` holds a space, or a sample of one, at both fidelities (`record.py`). A
searcher may ask for a share of it; its regret is how much slower its best answer is than the best
of the space. The times behind it are simulated; the regret is a property of the search alone.

The search was made with the spaces of the design half in sight. Those of the held-out half are of
other problems, and nothing was chosen by them.
"""

import gzip
import importlib.util
import itertools
import json
import statistics
from collections import namedtuple
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click

from rpa_kernels.problem import Problem
from rpa_tune.space.axis import Axis
from rpa_tune.space.space import Space
from rpa_tune.sweep.sampler import Search
from rpa_tune.sweep.sampler_choice import make_sampler
from rpa_tune.sweep.seeds import MAX_SEEDS, Winner, nearest_first
from rpa_tune.tables.key import TuningKey, tuning_key

SPACES = Path(__file__).parent / "spaces"
SHARES_PCT = (5, 10, 15, 25, 50)
DESIGN, HELD_OUT = "design", "held_out"
# What a searcher starts from.
NOTHING, HEURISTIC, NEIGHBOURS = "nothing", "the heuristic", "the heuristic and winners"


@dataclass(frozen=True, kw_only=True, slots=True)
class Searcher:
    """One way to search.

    Attributes:
      kind: A sampler.
      start: What it is given to start from.
      repeats: With other random seeds; the mean of their regrets counts.
    """

    kind: str
    start: str
    repeats: int = 1


SEARCHERS = {
    "ladder": Searcher(kind="kriging", start=HEURISTIC),
    "ladder_with_neighbours": Searcher(kind="kriging", start=NEIGHBOURS),
    "optuna": Searcher(kind="tpe", start=NOTHING, repeats=5),
    "optuna_from_heuristic": Searcher(kind="tpe", start=HEURISTIC, repeats=5),
    "optuna_gp": Searcher(kind="gp", start=NOTHING, repeats=2),
    "optuna_gp_from_heuristic": Searcher(kind="gp", start=HEURISTIC, repeats=2),
    "random": Searcher(kind="random", start=NOTHING, repeats=5),
    "grid": Searcher(kind="exhaustive", start=NOTHING),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Truth:
    """One recorded space.

    Attributes:
      name: The file's.
      half: `design`, `held_out`, or empty.
      key: What was tuned.
      space: Axes and the recorded configs, in axis order.
      times_us: Config -> simulated time, or None when it has none.
      bounds: Config -> analytical bound, microseconds.
      heuristic: The heuristic's config, among the recorded ones.
    """

    name: str
    half: str
    key: TuningKey
    space: Space
    times_us: dict[Any, float | None]
    bounds: dict[Any, float]
    heuristic: Any

    @property
    def best(self) -> Any:
        """The fastest config."""
        return min((us, config) for config, us in self.times_us.items() if us is not None)[1]

    @property
    def best_us(self) -> float:
        """Its time."""
        return min(us for us in self.times_us.values() if us is not None)


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
        half=data.get("half", ""),
        key=tuning_key(Problem(**data["problem"]), data["chip"], data["family"]),
        space=Space(family=data["family"], axes=axes, configs=tuple(sorted(times_us))),
        times_us=times_us,
        bounds={config: row["bound_us"] for config, row in rows if row["bound_us"] is not None},
        heuristic=config_type(**data["heuristic"]),
    )


def answer(truth: Truth, config: Any) -> Any:
    """What samplers read of an evaluation: the config, whether it has a time, and the time."""
    time_us = truth.times_us[config]
    return SimpleNamespace(
        candidate=SimpleNamespace(config=config), time_us=time_us, ok=time_us is not None,
        batch_us=(),
    )  # fmt: skip


def seeds(truth: Truth, start: str, others: Sequence[Truth]) -> list[Any]:
    """Recorded configs to start from.

    Winners are those of the other problems of the design half: the tables of a user who has
    swept that half before.
    """
    if start == NOTHING:
        return []
    winners = [
        Winner(key=other.key, config=tuple(other.best))
        for other in others
        if start == NEIGHBOURS and other.half == DESIGN and other.key != truth.key
    ]
    recorded = {tuple(config): config for config in truth.times_us}
    near = [recorded[c] for c in nearest_first(truth.key, winners) if c in recorded]
    return list(dict.fromkeys([truth.heuristic, *near[:MAX_SEEDS]]))


def regret_pct(
    truth: Truth, searcher: Searcher, *, num: int, seed: int = 0, others: Sequence[Truth] = ()
) -> float:
    """How much slower than the best the best of `num` answers is, in percent."""
    wave = max(2, min(8, num // 3))
    search = Search(simulate=num, wave=wave, seed=seed, least_gain_pct=0)
    return play(truth, searcher, search, others)[1]


def play(
    truth: Truth, searcher: Searcher, search: Search, others: Sequence[Truth] = ()
) -> tuple[int, float]:
    """How many answers a search took, and how much slower its best is than the best, in percent."""
    first = seeds(truth, searcher.start, others)
    pool = list(dict.fromkeys([*first, *truth.space.configs]))
    if searcher.kind == "exhaustive":
        pool = pool[: search.simulate]
    below: Any = {
        config: SimpleNamespace(time_us=us, batch_us=(), ok=True)
        for config, us in truth.bounds.items()
    }
    sampler = make_sampler(
        searcher.kind,
        truth.space,
        pool,
        below,
        num_seeds=len(first),
        search=search,
    )
    times, num = [], 0
    while wave := sampler.ask():
        told = [answer(truth, config) for config in wave]
        sampler.tell(told)
        num += len(wave)
        times += [answer.time_us for answer in told if answer.time_us is not None]
    # Who found nothing that works would fall back to the heuristic.
    found_us = min(times, default=truth.times_us[truth.heuristic] or float("inf"))
    return num, 100 * (found_us / truth.best_us - 1)


def regrets_pct(truths: Sequence[Truth], searcher: Searcher, share_pct: int) -> list[float]:
    """The regret in each space after a share of its evaluations."""
    found = []
    for truth in truths:
        num = max(1, round(len(truth.times_us) * share_pct / 100))
        each = [
            regret_pct(truth, searcher, num=num, seed=seed, others=truths)
            for seed in range(searcher.repeats)
        ]
        found.append(statistics.mean(each))
    return found


def summary(regrets: Sequence[float]) -> dict[str, float]:
    """Median, worst and mean, in percent."""
    return {
        "median_regret": statistics.median(regrets),
        "worst_regret": max(regrets),
        "mean_regret": statistics.mean(regrets),
    }


def compare(truths: Sequence[Truth], names: Sequence[str]) -> dict[str, Any]:
    """Regrets by searcher and share: over all spaces, over each half, and of each space."""
    halves = [half for half in (DESIGN, HELD_OUT) if any(truth.half == half for truth in truths)]
    document: dict[str, Any] = {half: {} for half in halves}
    document["spaces"] = {
        truth.name: {
            "half": truth.half,
            "configs": len(truth.times_us),
            "best_us": truth.best_us,
            "heuristic_us": truth.times_us[truth.heuristic],
        }
        for truth in truths
    }
    for name in names:
        for share in SHARES_PCT:
            regrets = regrets_pct(truths, SEARCHERS[name], share)
            figure = f"{name}_at_{share}_pct"
            document[figure] = summary(regrets)
            for half in halves:
                of_half = [
                    r for truth, r in zip(truths, regrets, strict=True) if truth.half == half
                ]
                document[half][figure] = summary(of_half)
            if name.startswith("ladder"):
                for truth, regret in zip(truths, regrets, strict=True):
                    document["spaces"][truth.name][figure] = regret
    document["as_swept"] = as_swept(truths, [name for name in names if name.startswith("ladder")])
    return document


def as_swept(truths: Sequence[Truth], names: Sequence[str]) -> dict[str, Any]:
    """Regret and answers of a search as a plan's defaults have it, which ends by itself.

    Beside it the same search that goes on to its last answer, and that of before it ended by
    itself, which chose eight at a time.
    """
    searches = {
        "ends by itself": Search(),
        "to the last": Search(least_gain_pct=0),
        "to the last, waves of 8": Search(least_gain_pct=0, wave=8),
    }
    found: dict[str, Any] = {}
    for name, (how, search) in itertools.product(names, searches.items()):
        played = [play(truth, SEARCHERS[name], search, truths) for truth in truths]
        for half in dict.fromkeys(("all", *(truth.half for truth in truths if truth.half))):
            here = [p for p, t in zip(played, truths, strict=True) if half in ("all", t.half)]
            found.setdefault(f"{name}, {how}", {})[half] = {
                "mean_answers": statistics.mean(num for num, _ in here),
                **summary([regret for _, regret in here]),
            }
    return found


def show(document: dict[str, Any]) -> None:
    """Prints median and worst regret, overall and by half."""
    parts = {
        "all": document,
        **{half: document[half] for half in (DESIGN, HELD_OUT) if half in document},
    }
    click.echo(f"{len(document['spaces'])} spaces; median / worst regret, % of the best simulated")
    click.echo(f"{'':34}" + "".join(f"{part:>19}" for part in parts))
    for name in [key for key in document if "_at_" in key]:
        figures = [part[name] for part in parts.values()]
        cells = [f"{f['median_regret']:.2f} / {f['worst_regret']:6.2f}" for f in figures]
        click.echo(f"{name:34}" + "".join(f"{cell:>19}" for cell in cells))
    click.echo("a search by a plan's defaults: answers, median / worst regret")
    for name, figures in document["as_swept"].items():
        cells = [
            f"{figures[part]['mean_answers']:.1f}, {figures[part]['median_regret']:.2f} / "
            f"{figures[part]['worst_regret']:.2f}"
            for part in parts
        ]
        click.echo(f"{name:48}" + "".join(f"{cell:>20}" for cell in cells))


@click.command()
@click.argument("files", nargs=-1, type=click.Path(path_type=Path))
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Write the figures.")
def main(files: tuple[Path, ...], json_file: Path | None) -> None:
    """Prints regret by searcher and share of evaluations; FILES default to `spaces/`."""
    truths = [load_truth(path) for path in files or sorted(SPACES.glob("*.truth.json.gz"))]
    has_torch = importlib.util.find_spec("torch") is not None
    if not has_torch:
        click.echo("PyTorch is not installed: Optuna's Gaussian process is left out")
    names = [name for name, one in SEARCHERS.items() if has_torch or one.kind != "gp"]
    document = compare(truths, names)
    show(document)
    packages = ("numpy", "optuna", *(["torch"] if has_torch else []))
    document["versions"] = {name: metadata.version(name) for name in packages}
    document["regrets_are"] = "percent of simulated time"
    if json_file is not None:
        json_file.write_text(json.dumps(document, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
