"""What taking a neighbour's row is expected to lose, by what differs and how far it is. No jax.

`expected_loss.yaml` has what was lost when recorded spaces were given what each other's rows lend:
a config, or, where the row keeps the heuristic, the borrower's own (`benchmarks/expected_loss.py`).
All of it is simulated. Pairs that differ in the very fields of a look-up say most, where there are
enough; else all pairs that are as far apart, if each field of the look-up is one in which some of
them differ. Of what no pair differs in, nothing is known.
"""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from rpa_tune.tables.key import FILLED, TuningKey, differences, distance
from rpa_tune.tables.row import HEURISTIC, TUNED

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
      verdict: That of the rows of these pairs: `tuned`, and lends its config; or `heuristic`, and
        lends that of the borrower.
      differ_in: The fields in which each pair differs; empty for pairs of any fields.
      fields: Those in which some pair differs.
    """

    pct: float
    worst_pct: float
    num_pairs: int
    up_to_distance: float
    verdict: str = TUNED
    differ_in: tuple[str, ...] = ()
    fields: frozenset[str] = frozenset()

    @property
    def pairs_text(self) -> str:
        """Which pairs it rests on, in words."""
        near = f"up to distance {self.up_to_distance:g}" if self.up_to_distance else "of equal keys"
        if self.differ_in:
            near = f"that differ in {' and '.join(self.differ_in)} alone"
        whose = " whose row keeps the heuristic" if self.verdict == HEURISTIC else ""
        return f"{self.num_pairs} pairs {near}{whose}"

    def __str__(self) -> str:
        """In words, as `why` of a choice says it."""
        return (
            f"expected loss {self.pct:.1f} %, at worst {self.worst_pct:.1f} % (simulated, "
            f"{self.pairs_text})"
        )


def _read(row: Mapping[str, Any]) -> ExpectedLoss:
    return ExpectedLoss(
        pct=row["mean_pct"],
        worst_pct=row["worst_pct"],
        num_pairs=row["pairs"],
        up_to_distance=row["up_to_distance"],
        verdict=row["verdict"],
        differ_in=tuple(row.get("differ_in", ())),
        fields=frozenset(row.get("fields", row.get("differ_in", ()))),
    )


@functools.cache
def _document() -> dict[str, Any]:
    return yaml.safe_load(TABLE.read_text(encoding="utf-8"))  # type: ignore[no-any-return]


@functools.cache
def _by_distance() -> dict[tuple[str, str], tuple[ExpectedLoss, ...]]:
    """Family and verdict -> losses, nearest first."""
    found: dict[tuple[str, str], tuple[ExpectedLoss, ...]] = {}
    for row in _document()["distances"]:
        kind = (row["family"], row["verdict"])
        found[kind] = (*found.get(kind, ()), _read(row))
    return found


@functools.cache
def _by_fields() -> dict[tuple[str, str, frozenset[str]], ExpectedLoss]:
    """Family, verdict and the fields that differ -> loss, where there are enough pairs."""
    rows = [row for row in _document()["fields"] if row["pairs"] >= _ENOUGH and row["differ_in"]]
    known = [(row["family"], _read(row)) for row in rows]
    return {(family, loss.verdict, loss.fields): loss for family, loss in known}


def expected_loss(asked: TuningKey, row: TuningKey, verdict: str) -> ExpectedLoss | None:
    """What a row is expected to lose where another key is asked for.

    Where pairs that are farther apart lost less than nearer ones, which chance can do, the nearer
    ones count. Sizes that a study fills (`key.FILLED`) make no distance; they are a loss of their
    own, which counts if it is the greater one.

    Args:
      asked: What is looked up.
      row: What the row was timed on.
      verdict: `heuristic` where the answer is that of the very problem, because the row keeps it;
        `tuned` where the answer is the row's config.

    Returns:
      None where nothing was recorded for the family, the distance or a field that differs, and for
      keys of which none can stand in for the other.
    """
    sizes: dict[str, Any] = {name: getattr(asked, name) for name in FILLED.get(asked.family, ())}
    near = replace(row, **sizes)
    away = distance(asked, near)
    if away is None:
        return None
    changed = frozenset(differences(asked, near))
    listed = _by_distance().get((asked.family, verdict), ())
    fields = _by_fields()
    same = [loss for loss in listed[:1] if not loss.up_to_distance]
    alike = fields.get((asked.family, verdict, changed))
    filled = fields.get((asked.family, verdict, frozenset(differences(near, row))))
    if (alike and away <= alike.up_to_distance) or (filled and not changed):
        counted = [alike, *same] if alike else same  # another workload alone may cost more, too
    else:
        counted = _pooled(listed, away, changed)
    counted += [filled] if filled and (counted or not changed) else []
    return max(counted, key=lambda loss: loss.pct, default=None)


def _pooled(
    listed: Sequence[ExpectedLoss], away: float, changed: frozenset[str]
) -> list[ExpectedLoss]:
    """The pool of a distance and all nearer ones; empty if no pair in it differs in a field."""
    for number, loss in enumerate(listed):
        if away <= loss.up_to_distance and changed <= loss.fields:
            return list(listed[: number + 1])
    return []
