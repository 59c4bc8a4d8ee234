"""Kriging over a pool of configs: a Gaussian process on the logarithm of time.

Made for a few dozen dear answers over a few thousand configs whose cheap lower bounds are known.
The process sees a config as its place on the axes and the logarithm of its bound, and learns from
the answers how much the bound is worth. A config whose bound is above the best answer is never
asked for. It ends when no config is worth its compile: the gain expected of each is below
`Search.least_gain_pct`. Nothing is random: the same answers give the same waves.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from rpa_tune.candidate import Evaluation
from rpa_tune.decide.objective import yardstick
from rpa_tune.space.space import Space
from rpa_tune.sweep.sampler import AbstractSampler, Search

Array = npt.NDArray[np.float64]

# Hyperparameters are the most likely of a small grid: length scale of the axes (in units of a
# whole axis), and share of the variance that is a straight line.
_LENGTHS = (0.3, 0.6, 1.2)
_LINEAR_SHARES = (0.2, 0.8)
# Variance of an answer that no config explains, as a share of the whole. Simulated times are
# exact; this stands for roughness finer than an axis can show, and keeps the algebra stable.
_NOISE = 1e-3
# Configs of the first wave are this far apart where the space allows: half of one axis.
_APART = 0.5


class KrigingSampler(AbstractSampler):
    """Seeds and their surroundings first, then where the most is to be gained."""

    def __init__(
        self,
        space: Space,
        pool: Sequence[Any],
        below: Mapping[Any, Evaluation],
        *,
        num_seeds: int,
        search: Search,
    ) -> None:
        """Places the pool; see `sampler.make_sampler`. Configs may lack a bound."""
        self._pool = list(pool)
        self._index = {config: i for i, config in enumerate(self._pool)}
        self._below = below
        bounds = {config: answer.time_us for config, answer in below.items() if answer.time_us}
        middle = float(np.median(list(bounds.values()))) if bounds else 1.0
        self._bounds = np.array([bounds.get(config, middle) for config in self._pool])
        log_bounds = np.log(self._bounds)
        spread = float(log_bounds.std()) or 1.0
        places = np.array([space.coordinates(config) for config in self._pool])
        self._points = np.column_stack([places, (log_bounds - log_bounds.mean()) / (4 * spread)])
        self._num_left = search.simulate
        self._num_seeds = num_seeds
        self._wave = search.wave
        self._least_gain = search.least_gain_pct / 100  # of a time, so in its logarithm too
        self._open = np.ones(len(self._pool), bool)
        self._objective = search.objective
        self._asked: list[int] = []
        self._answers: list[Evaluation] = []

    def ask(self) -> list[Any]:
        """The next wave."""
        size = min(self._wave, self._num_left)
        chosen = self._first_wave(size) if not self._asked else self._best_wave(size)
        self._num_left -= len(chosen)
        self._asked += chosen
        return [self._pool[i] for i in chosen]

    def tell(self, evaluations: Sequence[Evaluation]) -> None:
        """Keeps the answers."""
        self._answers += evaluations

    def _first_wave(self, size: int) -> list[int]:
        """As many seeds as fit, the least bound, then configs apart from those but near the first.

        The first seed is the heuristic. Far corners of a space are seldom good and often slow
        to compile, so a spread over all of it would waste a small budget.
        """
        chosen = list(range(min(self._num_seeds, size)))
        chosen += [int(np.argmin(self._bounds))]
        chosen = list(dict.fromkeys(chosen))[:size]
        axes = self._points[:, :-1]
        far = np.linalg.norm(axes - axes[0], axis=1) if self._num_seeds else np.zeros(len(axes))
        while len(chosen) < min(size, len(self._pool)):
            gaps = np.linalg.norm(axes[:, None] - axes[None, chosen], axis=-1).min(axis=1)
            score = np.minimum(gaps, _APART) - far
            score[chosen] = -np.inf
            chosen.append(int(np.argmax(score)))
        self._open[chosen] = False
        return chosen

    def _close_slower(self) -> None:
        """Never asks for what is proven to be no better than the best answer."""
        measure = yardstick(self._answers, self._objective)
        best = min((measure.loss(a) for a in self._answers if a.ok), default=np.inf)
        for config, bound in self._below.items():
            if config in self._index and measure.loss(bound) >= best:
                self._open[self._index[config]] = False

    def _losses(self) -> dict[int, float]:
        """Logarithms of what is to be least; one without a time is as bad as the worst.

        Of all answers at once: an answer can change what another one is compared with.
        """
        measure = yardstick(self._answers, self._objective)
        losses = {
            self._index[answer.candidate.config]: float(np.log(measure.loss(answer)))
            for answer in self._answers
            if answer.ok
        }
        worst = max(losses.values(), default=np.nan)
        # Keep away from what failed, but not at any price.
        failed = [self._index[a.candidate.config] for a in self._answers if not a.ok]
        return losses | dict.fromkeys(failed, worst)

    def _best_wave(self, size: int) -> list[int]:
        """Greatest expected gain, one by one, each taken to turn out as expected.

        Empty when the greatest is too little.
        """
        losses = self._losses()
        asked = list(losses)
        times = np.array(list(losses.values()))
        if not len(times) or np.isnan(times).all():
            return self._spread(size)
        self._close_slower()
        mean, scale = float(times.mean()), float(times.std()) or 1.0
        known, values = list(asked), list((times - mean) / scale)
        kernel = _most_likely_kernel(self._points[known], np.array(values))
        chosen: list[int] = []
        while len(chosen) < size and self._open.any():
            open_ones = np.flatnonzero(self._open)
            process = _Process(kernel, self._points[known], np.array(values))
            expected, deviation = process.predict(self._points[open_ones])
            gain = _expected_gain(expected, deviation, best=min(values))
            best = int(np.argmax(gain))
            if not chosen and gain[best] * scale < self._least_gain:
                break
            chosen.append(int(open_ones[best]))
            known.append(chosen[-1])
            values.append(float(expected[best]))
            self._open[chosen[-1]] = False
        return chosen

    def _spread(self, size: int) -> list[int]:
        """While nothing works: the smallest bounds that are left."""
        order = np.argsort(np.where(self._open, self._bounds, np.inf), kind="stable")
        chosen = [int(i) for i in order[:size] if self._open[i]]
        self._open[chosen] = False
        return chosen


class _Kernel:
    """Covariance of two configs: a straight line plus a smooth deviation from it."""

    def __init__(self, length: float, linear: float) -> None:
        self._length, self._linear = length, linear

    def __call__(self, a: Array, b: Array) -> Array:
        """[len(a), len(b)]."""
        away = np.linalg.norm(a[:, None] - b[None], axis=-1) * np.sqrt(5.0) / self._length
        smooth = (1 + away + away**2 / 3) * np.exp(-away)  # Matern 5/2
        line = 0.5 + (a - 0.5) @ (b - 0.5).T * (4.0 / a.shape[1])
        result: Array = self._linear * line + (1 - self._linear) * smooth
        return result

    def variance(self, points: Array) -> Array:
        """Covariance of each config with itself."""
        line = 0.5 + ((points - 0.5) ** 2).sum(axis=1) * (4.0 / points.shape[1])
        result: Array = self._linear * line + (1 - self._linear)
        return result


class _Process:
    """A Gaussian process that knows some answers; its mean is estimated with them.

    The mean is that of generalised least squares: answers near each other count as hardly more
    than one, or a cluster around the best config would pull the mean towards itself, and make all
    that is far from it look as good.
    """

    def __init__(self, kernel: _Kernel, points: Array, values: Array) -> None:
        self._kernel, self._points = kernel, points
        self._factor = np.linalg.cholesky(kernel(points, points) + _NOISE * np.eye(len(points)))
        ones = np.linalg.solve(self._factor, np.ones(len(points)))
        white = np.linalg.solve(self._factor, values)
        self._mean = float(ones @ white) / float(ones @ ones)
        self._white = white - self._mean * ones
        # Answers that are all alike still leave what is far less certain than what is near.
        self._scale = max(float(self._white @ self._white) / len(values), 1e-12)

    def log_likelihood(self) -> float:
        """Of the answers, up to a constant, under the likeliest mean and variance."""
        misfit = 0.5 * len(self._white) * np.log(self._scale)
        return float(-misfit - np.log(np.diag(self._factor)).sum())

    def predict(self, at: Array) -> tuple[Array, Array]:
        """Expected values at other points, and their standard deviations."""
        cross = np.linalg.solve(self._factor, self._kernel(self._points, at))
        unexplained = np.maximum(self._kernel.variance(at) - (cross**2).sum(axis=0), 1e-12)
        return self._mean + cross.T @ self._white, np.sqrt(unexplained * self._scale)


def _most_likely_kernel(points: Array, values: Array) -> _Kernel:
    """The kernel of the grid under which the values are most likely; the first of equals."""
    kernels = [_Kernel(length, share) for share in _LINEAR_SHARES for length in _LENGTHS]
    return max(kernels, key=lambda kernel: _Process(kernel, points, values).log_likelihood())


def _expected_gain(mean: Array, deviation: Array, *, best: float) -> Array:
    """Expected improvement below `best` under a normal distribution."""
    z = (best - mean) / deviation
    density = np.exp(-0.5 * z**2) / np.sqrt(2 * np.pi)
    # Abramowitz and Stegun 7.1.26: the error function to 1.5e-7, without scipy.
    t = 1 / (1 + 0.3275911 * np.abs(z) / np.sqrt(2))
    series = t * (0.254829592 + t * (-0.284496736 + t * (1.421413741 + t * (
        -1.453152027 + t * 1.061405429))))  # fmt: skip
    tail = 0.5 * series * np.exp(-0.5 * z**2)
    below = np.where(z > 0, 1 - tail, tail)
    gain: Array = (best - mean) * below + deviation * density
    return gain
