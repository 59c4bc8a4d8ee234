"""Few configs that fit most steps: at most K of them, and the rule that picks one.

A serving engine compiles every config it may launch, so there must be few. The rule cuts the
range of one feature of a step (`tables.step.FEATURES`) into pieces and gives each piece a config:
short enough to be read in the table, and known to the host before the launch.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rpa_tune.tables.row import MAX_CONFIGS, Clause
from rpa_tune.tables.step import FEATURES, Lengths

# What one more config must save to be worth its compiles, percent: well below any evaluator's
# own error, well above rounding.
LEAST_GAIN_PCT = 0.1
_TIE = 1e-9  # relative difference of two costs that counts as none


@dataclass(frozen=True, kw_only=True, slots=True)
class Portfolio:
    """Configs with a rule, and what they cost.

    Attributes:
      configs: Config records, each used by a clause.
      rule: Which of them a step uses.
      time_us: Expected time over the workload when the rule picks, microseconds.
      oracle_us: The same when every batch gets its own best config.
    """

    configs: tuple[Any, ...]
    rule: tuple[Clause, ...]
    time_us: float
    oracle_us: float

    @property
    def regret_pct(self) -> float:
        """Loss against choosing the best config for every batch, percent."""
        return 100 * (self.time_us / self.oracle_us - 1)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Piece:
    """A run of batches, in the order of a feature, that share a config."""

    end: int
    config: Any


def portfolio_curve(
    batch_us: Mapping[Any, Sequence[float]],
    weights: Sequence[float],
    lengths: Sequence[Lengths],
    *,
    max_configs: int = MAX_CONFIGS,
    least_gain_pct: float = LEAST_GAIN_PCT,
) -> tuple[Portfolio, ...]:
    """The best rule of at most 1, 2, 3, ... pieces over any one feature.

    Exact for rules of this form. Of rules that cost the same, the one with fewer pieces wins,
    then the feature that comes first in `FEATURES`.

    Args:
      batch_us: Config -> time of each batch, microseconds.
      weights: Share of launches of each batch.
      lengths: Of each batch, the sequences that the family serves.
      max_configs: Pieces, and so configs.
      least_gain_pct: More configs than the entry before must save this much, percent.

    Returns:
      Entry `k - 1` has at most `k` configs; the last one is where more gain too little.

    Raises:
      ValueError: No configs, no weight, or lists of different lengths.
    """
    if not batch_us or any(len(us) != len(weights) for us in batch_us.values()):
        raise ValueError(f"need times of {len(weights)} batches for at least one config")
    total = sum(weights)
    if len(lengths) != len(weights) or not total > 0:
        raise ValueError(f"need lengths and weights of {len(weights)} batches")
    oracle_us = _oracle(batch_us, weights) / total
    curve: list[Portfolio] = []
    for num_pieces in range(1, max_configs + 1):
        best, limit = (curve[-1], 1 - least_gain_pct / 100) if curve else (None, 1 - _TIE)
        for feature in FEATURES:
            values = [int(getattr(length, feature)) for length in lengths]
            order = sorted(range(len(values)), key=values.__getitem__)
            ordered = [values[i] for i in order]
            cost, pieces = _cut(batch_us, weights, ordered, order, num_pieces)
            if best is None or cost / total < best.time_us * limit:
                configs = tuple(dict.fromkeys(piece.config for piece in pieces))
                best = Portfolio(
                    configs=configs,
                    rule=_rule(feature, pieces, ordered, configs),
                    time_us=cost / total,
                    oracle_us=oracle_us,
                )
                limit = 1 - _TIE
        assert best is not None
        curve.append(best)
    while len(curve) > 1 and curve[-1] is curve[-2]:
        curve.pop()
    return tuple(curve)


def _oracle(batch_us: Mapping[Any, Sequence[float]], weights: Sequence[float]) -> float:
    """Weighted time when every batch gets its own best config."""
    return sum(w * min(us[i] for us in batch_us.values()) for i, w in enumerate(weights))


def _cut(
    batch_us: Mapping[Any, Sequence[float]],
    weights: Sequence[float],
    values: Sequence[int],
    order: Sequence[int],
    num_pieces: int,
) -> tuple[float, list[_Piece]]:
    """Cheapest cut of the ordered batches into at most `num_pieces` pieces.

    Dynamic programming over where the last piece begins; a cut falls only between different
    values, because the rule cannot tell equal ones apart.

    Returns:
      (weighted time, pieces in rising order).
    """
    num = len(order)
    running = {}
    for config, us in batch_us.items():
        sums = [0.0]
        for i in order:
            sums.append(sums[-1] + weights[i] * us[i])
        running[config] = sums
    cuts = [0, *(i for i in range(1, num) if values[i] != values[i - 1]), num]
    # done[end]: cheapest way to serve the first `end` batches with the pieces allowed so far.
    done: dict[int, tuple[float, list[_Piece]]] = {0: (0.0, [])}
    for _ in range(num_pieces):
        longer = dict(done)
        for start, (cost, pieces) in done.items():
            for end in (cut for cut in cuts if cut > start):
                config = min(running, key=lambda c: running[c][end] - running[c][start])
                added = cost + running[config][end] - running[config][start]
                if end not in longer or added < longer[end][0] * (1 - 1e-12):
                    longer[end] = (added, [*pieces, _Piece(end=end, config=config)])
        done = longer
    return done[num]


def _rule(
    feature: str, pieces: Sequence[_Piece], values: Sequence[int], configs: Sequence[Any]
) -> tuple[Clause, ...]:
    """Pieces as clauses; neighbours with the same config become one."""
    clauses = []
    for i, piece in enumerate(pieces):
        use = configs.index(piece.config)
        if i == len(pieces) - 1:
            clauses.append(Clause(use=use))
        elif piece.config != pieces[i + 1].config:
            limit = roundest(values[piece.end - 1], values[piece.end] - 1)
            clauses.append(Clause(use=use, feature=feature, at_most=limit))
    return tuple(clauses)


def roundest(low: int, high: int) -> int:
    """The multiple of the largest power of two in [low, high]: a limit that people can read."""
    step = 1
    while high // (2 * step) * (2 * step) >= max(low, 1):
        step *= 2
    return high // step * step
