"""Predicted against measured, and what it would have cost to trust the simulator.

Only finalists are measured, which the simulator found nearly equal. So a low rank correlation may
mean that there was little to choose between; the regret says what it would have cost.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import correlation, median
from typing import Any

from rpa_tune.candidate import Evaluation
from rpa_tune.decide.objective import yardstick


@dataclass(frozen=True, kw_only=True, slots=True)
class Agreement:
    """Simulated against measured losses of the configs of one study that have both.

    Attributes:
      num_configs: How many.
      rank_correlation: Spearman's, ties sharing their mean rank; None when either side does not
        tell them apart.
      regret_pct: How much worse, as measured, the config is that the simulator thinks best than
        the best measured one.
      measured_over_simulated: Median ratio of times.
    """

    num_configs: int
    rank_correlation: float | None
    regret_pct: float
    measured_over_simulated: float

    def __str__(self) -> str:
        """For people."""
        if self.num_configs < 2:
            return (
                f"1 config measured at {self.measured_over_simulated:.2f}x its simulated time: "
                "too few to judge the simulator's ranking"
            )
        rank = "none" if self.rank_correlation is None else f"{self.rank_correlation:.2f}"
        return (
            f"{self.num_configs} configs measured at {self.measured_over_simulated:.2f}x their "
            f"simulated time (median), rank correlation {rank}; trusting the simulator would have "
            f"cost {self.regret_pct:.1f} %"
        )


def compare(
    simulated: Mapping[Any, Evaluation], measured: Sequence[Evaluation], objective: str
) -> Agreement | None:
    """How far the two agree, or None when no config has both times.

    Args:
      simulated: Config -> its simulated answer.
      measured: Measured answers; those without a time are left out.
      objective: What the losses are.
    """
    pairs = [(simulated[e.candidate.config], e) for e in measured
             if e.ok and e.candidate.config in simulated]  # fmt: skip
    if not pairs:
        return None
    before = yardstick([predicted for predicted, _ in pairs], objective)
    after = yardstick([found for _, found in pairs], objective)
    losses = [(before.loss(predicted), after.loss(found)) for predicted, found in pairs]
    trusted, best = min(losses)[1], min(found for _, found in losses)
    return Agreement(
        num_configs=len(pairs),
        rank_correlation=_rank_correlation(*zip(*losses, strict=True)),
        regret_pct=round(100 * (trusted / best - 1), 3),
        measured_over_simulated=round(
            median((f.time_us or 0.0) / (p.time_us or 1.0) for p, f in pairs), 4
        ),
    )


def _rank_correlation(one: Sequence[float], other: Sequence[float]) -> float | None:
    if len(set(one)) < 2 or len(set(other)) < 2:
        return None
    return round(correlation(_ranks(one), _ranks(other)), 4)


def _ranks(values: Sequence[float]) -> list[float]:
    """Mean rank of each value among those equal to it."""
    ordered = sorted(values)
    return [ordered.index(v) + (ordered.count(v) - 1) / 2 for v in values]
