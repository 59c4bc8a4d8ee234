"""What taking a neighbour's row is expected to lose, by how far its key is. No jax.

`expected_loss.yaml` has what was lost when recorded spaces were given each other's best configs
(`benchmarks/expected_loss.py`). All of it is simulated.
"""

import functools
from dataclasses import dataclass
from pathlib import Path

import yaml

TABLE = Path(__file__).parent / "expected_loss.yaml"
# Distances that are pooled: up to each of these, and above the one before. 0 are keys that are
# equal, judged on another workload.
EDGES = (0.0, 2.0, 4.0, 6.5)


@dataclass(frozen=True, kw_only=True, slots=True)
class ExpectedLoss:
    """What rows of neighbours so far away lost.

    Attributes:
      pct: Mean, percent of the time of the best config.
      worst_pct: The most that one lost.
      num_pairs: Pairs of spaces that it rests on.
      up_to_distance: The farthest of them, in the units of `key.distance`.
    """

    pct: float
    worst_pct: float
    num_pairs: int
    up_to_distance: float

    def __str__(self) -> str:
        """In words, as `why` of a choice says it."""
        return (
            f"expected loss {self.pct:.1f} %, at worst {self.worst_pct:.1f} % (simulated, "
            f"{self.num_pairs} pairs up to distance {self.up_to_distance:g})"
        )


@functools.cache
def _table() -> dict[str, tuple[ExpectedLoss, ...]]:
    """Family -> its losses, nearest first."""
    rows = yaml.safe_load(TABLE.read_text(encoding="utf-8"))["families"]
    return {
        family: tuple(
            ExpectedLoss(
                pct=row["mean_pct"],
                worst_pct=row["worst_pct"],
                num_pairs=row["pairs"],
                up_to_distance=row["up_to_distance"],
            )
            for row in listed
        )
        for family, listed in rows.items()
    }


def expected_loss(family: str, distance: float) -> ExpectedLoss | None:
    """What a row at this distance is expected to lose.

    Where pairs that are farther apart lost less than nearer ones, which chance can do, the nearer
    ones count.

    Args:
      family: Kernel family.
      distance: Of the keys; see `key.distance`.

    Returns:
      None for a family, or a distance, that nothing was recorded for.
    """
    listed = _table().get(family, ())
    for number, loss in enumerate(listed):
        if distance <= loss.up_to_distance:
            return max(listed[: number + 1], key=lambda entry: entry.pct)
    return None
