"""Thousands of steps to a few weighted ones, with the error this makes.

Steps are first told apart by the families they launch, then the stratum that differs most within
itself is split in two, again and again, until there are as many strata as batches wanted. Each
stratum is represented by one real step, with the stratum's share of launches as its weight. The
split is where it lowers the variance of the costs most; each family's costs are scaled to the
same total variance, so that the family with few launches and the one with many get their share.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from rpa_tune.workload.cost import Costs, Float64Array, StepCosts
from rpa_tune.workload.step import EngineStep

IntArray = npt.NDArray[np.intp]
NUM_CANDIDATES = 32  # steps nearest to a stratum's mean that may represent it
NUM_PASSES = 4  # rounds of exchange; the error stops falling after two or three


@dataclass(frozen=True, kw_only=True, slots=True)
class Compression:
    """Representatives of a long list of steps.

    Attributes:
      indices: Positions of the representatives in the full list, rising.
      weights: Share of launches that each stands for; sums to 1.
      errors: Measure -> relative error of its weighted mean against the full list's mean.
      num_steps: Length of the full list.
    """

    indices: tuple[int, ...]
    weights: tuple[float, ...]
    errors: Mapping[str, float]
    num_steps: int

    @property
    def worst_error(self) -> float:
        """Largest relative error over all measures."""
        return max((abs(error) for error in self.errors.values()), default=0.0)


def compress(steps: Sequence[EngineStep], num_batches: int, costs: StepCosts) -> Compression:
    """Chooses at most `num_batches` steps that stand for all.

    Args:
      steps: All launches; at least one.
      num_batches: Representatives wanted; at least one is kept for every combination of
        families, so there may be up to seven even if fewer are asked for.
      costs: What must be preserved, see `cost.py`.
    """
    table = costs(steps)
    strata = _by_families(steps)
    scaled = _scaled(table, strata)
    strata = _split(strata, scaled, num_batches)
    chosen = _representatives(strata, scaled)
    order = np.argsort(chosen)
    indices = tuple(int(i) for i in chosen[order])
    weights = tuple(len(strata[i]) / len(steps) for i in order)
    return Compression(
        indices=indices,
        weights=weights,
        errors=relative_errors(table, indices, weights),
        num_steps=len(steps),
    )


def relative_errors(
    table: Costs, indices: Sequence[int], weights: Sequence[float]
) -> dict[str, float]:
    """Measure -> (weighted mean of the chosen steps / mean of all) - 1."""
    full = table.values.mean(axis=0)
    kept = np.asarray(weights) @ table.values[np.asarray(indices)]
    return {
        name: float(k / f - 1.0) for name, k, f in zip(table.names, kept, full, strict=True) if f
    }


def _by_families(steps: Sequence[EngineStep]) -> list[IntArray]:
    """Numbers of steps by the combination of families they launch."""
    kinds = np.array(
        [4 * (s.num_decode > 0) + 2 * (s.num_prefill > 0) + (s.num_mixed > 0) for s in steps]
    )
    return [np.flatnonzero(kinds == kind) for kind in np.unique(kinds)]


def _scaled(table: Costs, strata: list[IntArray]) -> Float64Array:
    """Costs in units of their mean, and each family's with the same variance within strata."""
    means = table.values.mean(axis=0)
    scaled = table.values / np.where(means > 0, means, 1.0)
    spread = np.sum([_spread(scaled[stratum]) for stratum in strata], axis=0)
    families = np.array([name.partition(".")[0] for name in table.names])
    for family in np.unique(families):
        total = spread[families == family].sum()
        if total > 0:
            scaled[:, families == family] *= np.sqrt(len(scaled) / total)
    return scaled


def _split(strata: list[IntArray], scaled: Float64Array, num_strata: int) -> list[IntArray]:
    """Splits the stratum with the largest sum of squares until there are `num_strata`."""
    pending = [(_spread(scaled[stratum]), stratum) for stratum in strata]
    while len(pending) < num_strata:
        worst = max(range(len(pending)), key=lambda i: float(pending[i][0].sum()))
        spread, stratum = pending[worst]
        if spread.sum() <= 1e-12 * len(scaled):
            break
        low, high = _cut(stratum, scaled[stratum, int(spread.argmax())])
        pending[worst] = (_spread(scaled[low]), low)
        pending.append((_spread(scaled[high]), high))
    return [stratum for _, stratum in pending]


def _spread(values: Float64Array) -> Float64Array:
    """Sum of squares about the mean, per measure."""
    return np.asarray(values.var(axis=0) * len(values), np.float64)


def _cut(stratum: IntArray, values: Float64Array) -> tuple[IntArray, IntArray]:
    """Splits at the value that leaves the least sum of squares within both parts."""
    order = np.argsort(values, kind="stable")
    sums = np.cumsum(values[order])
    left = np.arange(1, len(values))
    between = sums[:-1] ** 2 / left + (sums[-1] - sums[:-1]) ** 2 / (len(values) - left)
    at = int(between.argmax()) + 1
    return stratum[order[:at]], stratum[order[at:]]


def _representatives(strata: list[IntArray], scaled: Float64Array) -> IntArray:
    """One step of each stratum: near its mean, and together near the mean of all.

    Starts with the nearest; then lets each stratum exchange its own for the near one that brings
    the weighted mean of all closest to the truth.
    """
    near, chosen = [], []
    for stratum in strata:
        distance = ((scaled[stratum] - scaled[stratum].mean(axis=0)) ** 2).sum(axis=1)
        candidates = stratum[np.argsort(distance, kind="stable")[:NUM_CANDIDATES]]
        near.append(candidates)
        chosen.append(int(candidates[0]))
    weights = np.array([len(stratum) for stratum in strata]) / len(scaled)
    residual = weights @ scaled[chosen] - scaled.mean(axis=0)
    for _ in range(NUM_PASSES):
        for i, candidates in enumerate(near):
            residuals = residual + weights[i] * (scaled[candidates] - scaled[chosen[i]])
            best = int((residuals**2).sum(axis=1).argmin())
            residual = residuals[best]
            chosen[i] = int(candidates[best])
    return np.asarray(chosen)
