"""Where a search starts beside the heuristic: winners of neighbouring problems."""

from collections.abc import Sequence
from typing import Any

from rpa_tune.hw.chip import load_chip
from rpa_tune.promote import Decision
from rpa_tune.sweep.study import Study
from rpa_tune.tables.key import distance, tuning_key

MAX_SEEDS = 2


def neighbour_seeds(study: Study, decisions: Sequence[Decision]) -> list[Any]:
    """Configs that won earlier studies of the same run, nearest problem first.

    Only the run's own studies count: a sweep that is resumed after some of its rows were written
    must ask the same questions as one that never stopped, so tables on disk play no part.

    Args:
      study: About to be searched.
      decisions: Of the studies before it, in their order.

    Returns:
      At most `MAX_SEEDS` configs that fit.
    """
    key = tuning_key(study.problem, study.chip, study.family)
    target = load_chip(study.chip).target
    ranked: list[tuple[float, int, Any]] = []
    for decision in decisions:
        other = decision.chosen.candidate
        if other.family != study.family:
            continue
        # What fits one chip may be a good start on another.
        away = distance(key, tuning_key(other.problem, study.chip, study.family))
        if away is not None:
            ranked.append((away, len(ranked), other.config))
    found: list[Any] = []
    for _, _, config in sorted(ranked, key=lambda entry: entry[:2]):
        if config not in found and config.check(study.problem, target) is None:
            found.append(config)
    return found[:MAX_SEEDS]
