"""What does it cost to take a neighbour's row in place of one's own? Leave-one-out, no compiler.

    python benchmarks/expected_loss.py

Each file of `spaces/` and `neighbour_spaces/` holds a space, or a sample of one, every config
simulated (`record.py`). Each space in turn has no row of its own: it is given what the dispatcher
would give it of the row of each other space of its chip, family and dtypes, and its regret is how
much slower that is than its own best. A row has its space's best config, and lends it; one whose
heuristic loses less than the simulator's error to that keeps the heuristic, and lends the
borrower's own. Regrets are pooled by the distance of the keys (`tables.key.distance`) and written
to `rpa_tune/tables/expected_loss.yaml`, from which `nearest` says what it expects to lose; and once
more by the fields in which the keys differ, which says what the best config depends on. A pair
counts if what is lent was recorded in the borrower's space.

The plans beside the neighbour spaces record more of them:

    python benchmarks/record.py benchmarks/neighbour_spaces/decode.yaml --sample 8 --into truth
"""

import gzip
import itertools
import json
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from rpa_kernels import load_family
from rpa_kernels.problem import Problem
from rpa_tune.candidate import Fidelity
from rpa_tune.decide.promote import ERROR_PCT
from rpa_tune.hw.chip import load_chip
from rpa_tune.tables.key import NEAREST_LIMIT, TuningKey, differences, distance, tuning_key
from rpa_tune.tables.loss import EDGES, TABLE
from rpa_tune.tables.row import HEURISTIC, TUNED

FOLDERS = [Path(__file__).parent / name for name in ("spaces", "neighbour_spaces")]
Config = Any  # a family's record


@dataclass(frozen=True, kw_only=True, slots=True)
class Space:
    """One recorded space.

    Attributes:
      key: Its key.
      time_us: The time of each config that has one.
      date: When it was recorded.
      heuristic: Today's default of the family there; None if it has no time.
    """

    key: TuningKey
    time_us: dict[Config, float]
    date: str
    heuristic: Config = None

    @property
    def best(self) -> Config:
        """The config of its row, unless that keeps the heuristic."""
        return min(self.time_us, key=lambda config: self.time_us[config])

    @property
    def keeps_heuristic(self) -> bool:
        """Whether its row would: a gain within the simulator's error is none."""
        if self.heuristic is None:
            return False
        return self.loss_pct(self.heuristic) <= ERROR_PCT[Fidelity.SIMULATED]

    def loss_pct(self, config: Config) -> float:
        """How much slower a config is than the best."""
        return 100 * (self.time_us[config] / self.time_us[self.best] - 1)


def load_space(path: Path) -> Space:
    """Reads a truth that `record.py` wrote."""
    data = json.loads(gzip.decompress(path.read_bytes()))
    problem, family = Problem(**data["problem"]), load_family(data["family"])
    rows = [row for row in data["configs"] if row["time_us"]]
    timed = {family.config_from_dict(row["config"]): row["time_us"] for row in rows}
    default = family.default_config(problem, load_chip(data["chip"]).target)
    return Space(
        key=tuning_key(problem, data["chip"], data["family"]),
        time_us=timed,
        date=data["provenance"]["time"][:10],
        heuristic=default if default in timed else None,
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Pair:
    """A space that was given what the row of another one lends.

    Attributes:
      family: Of both.
      verdict: Of the row: `tuned` or `heuristic`.
      away: Distance of their keys.
      fields: Those in which the keys differ.
      loss_pct: How much slower that is than the space's own best; None if it was not recorded
        there.
    """

    family: str
    verdict: str
    away: float
    fields: tuple[str, ...]
    loss_pct: float | None


def pairs_of(spaces: list[Space]) -> list[Pair]:
    """Every pair whose keys can stand in for each other at all, at whatever distance."""
    found = []
    for ours, theirs in itertools.permutations(spaces, 2):
        away = distance(ours.key, theirs.key)
        if away is None:
            continue
        lent = ours.heuristic if theirs.keeps_heuristic else theirs.best
        found.append(
            Pair(
                family=ours.key.family,
                verdict=HEURISTIC if theirs.keeps_heuristic else TUNED,
                away=away,
                fields=tuple(differences(ours.key, theirs.key)),
                loss_pct=ours.loss_pct(lent) if lent in ours.time_us else None,
            )
        )
    return found


def summary(pairs: list[Pair]) -> dict[str, Any]:
    """What pairs lost, in numbers; nothing without any."""
    losses = [pair.loss_pct for pair in pairs if pair.loss_pct is not None]
    if not losses:
        return {}
    mean, worst = round(statistics.mean(losses), 2), round(max(losses), 2)
    return {"mean_pct": mean, "worst_pct": worst}


def by_distance(pairs: list[Pair]) -> list[dict[str, Any]]:
    """What pairs lost, pooled by distance.

    `fields` are those in which any pair so near differs: of other fields a pool says nothing.
    """
    rows = []
    counted = [pair for pair in pairs if pair.loss_pct is not None]
    for family, verdict in sorted({(pair.family, pair.verdict) for pair in counted}):
        alike = [pair for pair in counted if (pair.family, pair.verdict) == (family, verdict)]
        for below, edge in itertools.pairwise([-1.0, *EDGES]):
            if pool := [pair for pair in alike if below < pair.away <= edge]:
                seen = {name for pair in alike if pair.away <= edge for name in pair.fields}
                row = {"family": family, "verdict": verdict, "up_to_distance": edge}
                rows.append(row | {"pairs": len(pool), **summary(pool), "fields": sorted(seen)})
    return rows


def by_fields(pairs: list[Pair]) -> list[dict[str, Any]]:
    """What pairs lost by the fields in which their keys differ; `pairs` counts those with a loss.

    Pairs as far apart as look-ups take rows; the farthest that counts is said. `not_counted` are
    those in which what is lent was not recorded.
    """
    pairs = [pair for pair in pairs if pair.away <= NEAREST_LIMIT]
    rows = []
    for kind in sorted({(pair.family, pair.verdict, pair.fields) for pair in pairs}):
        alike = [pair for pair in pairs if (pair.family, pair.verdict, pair.fields) == kind]
        counted = [pair for pair in alike if pair.loss_pct is not None]
        family, verdict, fields = kind
        row: dict[str, Any] = {
            "family": family, "verdict": verdict, "differ_in": list(fields), "pairs": len(counted),
        }  # fmt: skip
        if counted:
            row["up_to_distance"] = round(max(pair.away for pair in counted), 2)
        row |= summary(counted)
        rows.append(row | {"not_counted": len(alike) - len(counted)})
    return rows


def table(spaces: list[Space]) -> dict[str, Any]:
    """The content of the file."""
    pairs = pairs_of(spaces)
    dates = sorted({space.date for space in spaces})
    return {
        "source": f"benchmarks/expected_loss.py, {len(spaces)} spaces recorded {dates[0]} to "
        f"{dates[-1]}, simulated",
        "distances": by_distance(pairs),
        "fields": by_fields(pairs),
    }


def main() -> None:
    """Writes the table, and shows it."""
    spaces = [load_space(p) for f in FOLDERS for p in sorted(f.glob("*.truth.json.gz"))]
    text = "# Percent that a row of a neighbour lost; written by benchmarks/expected_loss.py.\n"
    text += yaml.safe_dump(table(spaces), sort_keys=False, width=98)
    TABLE.write_text(text)
    print(text, end="")


if __name__ == "__main__":
    main()
