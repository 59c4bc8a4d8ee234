"""What does it cost to take a neighbour's row in place of one's own? Leave-one-out, no compiler.

    python benchmarks/expected_loss.py

Each file of `spaces/` and `neighbour_spaces/` holds a space, or a sample of one, every config
simulated (`record.py`). Each space in turn has no row of its own: it is given the best config of
each other space of its chip, family and dtypes, and its regret is how much slower that is than its
own best. Regrets are pooled by the distance of the keys (`tables.key.distance`) and written to
`rpa_tune/tables/expected_loss.yaml`, from which `nearest` says what it expects to lose; and once
more by the fields in which the keys differ, which says what the best config depends on. A pair
counts if the neighbour's config was recorded in both spaces.

A space whose best config does not beat today's heuristic by more than the simulator's error has a
row that pins the heuristic, and a neighbour is given its own heuristic then. Such pairs are pooled
by themselves (`pinned`), as far as the heuristic was recorded in both spaces: another heuristic is
another table.

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

FOLDERS = [Path(__file__).parent / name for name in ("spaces", "neighbour_spaces")]
Config = Any  # a family's record


@dataclass(frozen=True, kw_only=True, slots=True)
class Space:
    """One recorded space: its key, the time of each config that has one, today's heuristic."""

    key: TuningKey
    time_us: dict[Config, float]
    date: str
    heuristic: Config = None

    @property
    def best(self) -> Config:
        """What its row would have."""
        return min(self.time_us, key=lambda config: self.time_us[config])

    def loss_pct(self, config: Config) -> float:
        """How much slower a recorded config is than the best."""
        return 100 * (self.time_us[config] / self.time_us[self.best] - 1)

    @property
    def pins_default(self) -> bool:
        """Whether its row would pin the heuristic."""
        is_timed = self.heuristic in self.time_us
        return is_timed and self.loss_pct(self.heuristic) <= ERROR_PCT[Fidelity.SIMULATED]


def load_space(path: Path) -> Space:
    """Reads a truth that `record.py` wrote."""
    data = json.loads(gzip.decompress(path.read_bytes()))
    timed = [row for row in data["configs"] if row["time_us"]]
    problem, family = Problem(**data["problem"]), load_family(data["family"])
    return Space(
        key=tuning_key(problem, data["chip"], data["family"]),
        time_us={family.config_from_dict(row["config"]): row["time_us"] for row in timed},
        date=data["provenance"]["time"][:10],
        heuristic=family.default_config(problem, load_chip(data["chip"]).target),
    )


def regrets(spaces: list[Space], *, pinned: bool = False) -> dict[tuple[str, float], list[float]]:
    """Family and edge of a bin -> percent that each pair in it lost.

    Args:
      spaces: Recorded ones.
      pinned: Only what the heuristic lost where the other space's row pins it.
    """
    found: dict[tuple[str, float], list[float]] = {}
    for ours, theirs in itertools.permutations(spaces, 2):
        away = distance(ours.key, theirs.key)
        edge = next((edge for edge in EDGES if away is not None and away <= edge), None)
        answer = ours.heuristic if pinned else theirs.best
        if edge is None or answer not in ours.time_us or (pinned and not theirs.pins_default):
            continue
        found.setdefault((ours.key.family, edge), []).append(ours.loss_pct(answer))
    return found


def by_fields(spaces: list[Space]) -> list[dict[str, Any]]:
    """What pairs lost by the fields in which their keys differ; `pairs` counts those with a loss.

    Pairs that look-ups could take for each other; `not_counted` are those whose best config was
    recorded in one alone.
    """
    found: dict[tuple[str, tuple[str, ...]], list[tuple[float, float | None]]] = {}
    for ours, theirs in itertools.permutations(spaces, 2):
        away = distance(ours.key, theirs.key)
        if away is None or away > NEAREST_LIMIT:
            continue
        loss = ours.loss_pct(theirs.best) if theirs.best in ours.time_us else None
        fields = tuple(differences(ours.key, theirs.key))
        found.setdefault((ours.key.family, fields), []).append((away, loss))
    rows = []
    for (family, fields), pairs in sorted(found.items()):
        counted = [(away, loss) for away, loss in pairs if loss is not None]
        row: dict[str, Any] = {"family": family, "differ_in": list(fields), "pairs": len(counted)}
        if counted:
            losses = [loss for _, loss in counted]
            row |= {"up_to_distance": round(max(away for away, _ in counted), 2)}
            row |= {"mean_pct": round(statistics.mean(losses), 2)}
            row |= {"worst_pct": round(max(losses), 2)}
        rows.append(row | {"not_counted": len(pairs) - len(counted)})
    return rows


def table(spaces: list[Space]) -> dict[str, Any]:
    """The content of the file."""
    dates = sorted({space.date for space in spaces})
    return {
        "source": f"benchmarks/expected_loss.py, {len(spaces)} spaces recorded {dates[0]} to "
        f"{dates[-1]}, simulated",
        "families": _by_family(regrets(spaces)),
        "pinned": _by_family(regrets(spaces, pinned=True)),
        "fields": by_fields(spaces),
    }


def _by_family(pooled: dict[tuple[str, float], list[float]]) -> dict[str, list[dict[str, Any]]]:
    families: dict[str, list[dict[str, Any]]] = {}
    for (family, edge), losses in sorted(pooled.items()):
        families.setdefault(family, []).append(
            {
                "up_to_distance": edge,
                "mean_pct": round(statistics.mean(losses), 2),
                "worst_pct": round(max(losses), 2),
                "pairs": len(losses),
            }
        )
    return families


def main() -> None:
    """Writes the table, and shows it."""
    spaces = [load_space(p) for f in FOLDERS for p in sorted(f.glob("*.truth.json.gz"))]
    text = "# Percent that a row of a neighbour lost; written by benchmarks/expected_loss.py.\n"
    text += yaml.safe_dump(table(spaces), sort_keys=False, width=98)
    TABLE.write_text(text)
    print(text, end="")


if __name__ == "__main__":
    main()
