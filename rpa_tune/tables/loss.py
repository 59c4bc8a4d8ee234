"""What taking a neighbour's row is expected to lose, by what differs and how far it is. No jax.

`expected_loss.yaml` has what was lost when recorded spaces were given each other's best configs
(`benchmarks/expected_loss.py`). All of it is simulated. Pairs that differ in the very fields of a
look-up say most, where there are enough; else all pairs that are as far apart. A row that pins the
heuristic lends no config: what the heuristic of a problem lost where a neighbour pinned it is
counted apart.
"""

import functools
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from rpa_tune.tables.key import FILLED, TuningKey, differences, distance

TABLE = Path(__file__).parent / "expected_loss.yaml"
# Distances that are pooled: up to each of these, and above the one before. 0 are keys that are
# equal, judged on another workload.
EDGES = (0.0, 2.0, 4.0, 6.5)
# Pairs that differ in the very fields count alone if there are so many.
_ENOUGH = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class ExpectedLoss:
    """What rows of neighbours so far away lost.

    Attributes:
      pct: Mean, percent of the time of the best config.
      worst_pct: The most that one lost.
      num_pairs: Pairs of spaces that it rests on.
      up_to_distance: The farthest of them, in the units of `key.distance`.
      differ_in: The fields in which each pair differs; empty for pairs of any fields.
      pins_default: Whether it is what the heuristic lost where a neighbour pinned it.
    """

    pct: float
    worst_pct: float
    num_pairs: int
    up_to_distance: float
    differ_in: tuple[str, ...] = ()
    pins_default: bool = False

    @property
    def pairs_text(self) -> str:
        """Which pairs it rests on, in words."""
        if self.differ_in:
            return f"{self.num_pairs} pairs that differ in {' and '.join(self.differ_in)} alone"
        whose = " whose rows pin the heuristic" if self.pins_default else ""
        return f"{self.num_pairs} pairs up to distance {self.up_to_distance:g}{whose}"

    def __str__(self) -> str:
        """In words, as `why` of a choice says it."""
        return (
            f"expected loss {self.pct:.1f} %, at worst {self.worst_pct:.1f} % (simulated, "
            f"{self.pairs_text})"
        )


def _read(row: Mapping[str, Any], *, pins_default: bool = False) -> ExpectedLoss:
    return ExpectedLoss(
        pct=row["mean_pct"],
        worst_pct=row["worst_pct"],
        num_pairs=row["pairs"],
        up_to_distance=row["up_to_distance"],
        differ_in=tuple(row.get("differ_in", ())),
        pins_default=pins_default,
    )


@functools.cache
def _document() -> dict[str, Any]:
    return yaml.safe_load(TABLE.read_text(encoding="utf-8"))  # type: ignore[no-any-return]


@functools.cache
def _by_distance(*, pins_default: bool) -> dict[str, tuple[ExpectedLoss, ...]]:
    """Family -> its losses, nearest first."""
    families = _document()["pinned" if pins_default else "families"]
    return {
        family: tuple(_read(row, pins_default=pins_default) for row in listed)
        for family, listed in families.items()
    }


@functools.cache
def _by_fields() -> dict[tuple[str, frozenset[str]], ExpectedLoss]:
    """Family and the fields that differ -> loss, where there are enough pairs."""
    rows = [row for row in _document()["fields"] if row["pairs"] >= _ENOUGH and row["differ_in"]]
    return {(row["family"], frozenset(row["differ_in"])): _read(row) for row in rows}


def expected_loss(
    asked: TuningKey, row: TuningKey, *, pins_default: bool = False
) -> ExpectedLoss | None:
    """What a row is expected to lose where another key is asked for.

    Where pairs that are farther apart lost less than nearer ones, which chance can do, the nearer
    ones count. Sizes that a study fills (`key.FILLED`) make no distance; they are a loss of their
    own, which counts if it is the greater one.

    Args:
      asked: What is looked up.
      row: What the row was timed on.
      pins_default: Whether the row pins the heuristic, so that that of the problem is taken.

    Returns:
      None for a family, or a distance, that nothing was recorded for, and for keys of which none
      can stand in for the other.
    """
    sizes: dict[str, Any] = {name: getattr(asked, name) for name in FILLED.get(asked.family, ())}
    near = replace(row, **sizes)
    away = distance(asked, near)
    if away is None:
        return None
    listed = _by_distance(pins_default=pins_default).get(asked.family, ())
    pooled = next((n for n, loss in enumerate(listed) if away <= loss.up_to_distance), None)
    counted = [] if pooled is None else list(listed[: pooled + 1])
    if not pins_default:
        fields = _by_fields()
        if alike := fields.get((asked.family, frozenset(differences(asked, near)))):
            counted = [alike, *listed[:1]]  # another workload alone may cost more, too
        filled = fields.get((asked.family, frozenset(differences(near, row))))
        counted += [filled] if counted and filled else []
    return max(counted, key=lambda loss: loss.pct, default=None)
