"""Optuna's samplers over a pool.

Seeds come first, then what Optuna proposes. Only members of the pool are asked for: the pool is
what can exist, Optuna proposes points of the axes, and the nearest config that was not asked for
yet stands for a point.
"""

import importlib.util
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import optuna

from rpa_tune.candidate import Evaluation
from rpa_tune.decide.objective import yardstick
from rpa_tune.errors import UsageError
from rpa_tune.space.space import Space
from rpa_tune.sweep.sampler import AbstractSampler, Search


class OptunaSampler(AbstractSampler):
    """Seeds first, then tree-structured Parzen estimators, or Optuna's Gaussian process."""

    def __init__(
        self, kind: str, space: Space, pool: Sequence[Any], *, num_seeds: int, search: Search
    ) -> None:
        """Asks nothing yet; see `sampler.make_sampler` for the arguments.

        Raises:
          UsageError: `kind` is `gp`, and PyTorch is not installed.
        """
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self._space = space
        self._pool = list(pool)
        self._places = np.array([space.coordinates(config) for config in self._pool])
        self._is_open = np.ones(len(self._pool), bool)
        self._num_seeds = num_seeds
        self._num_left = search.simulate
        self._wave = search.wave
        self._objective = search.objective
        self._answers: list[Evaluation] = []
        self._distributions: dict[str, optuna.distributions.BaseDistribution] = {
            axis.name: optuna.distributions.IntDistribution(0, len(axis.values) - 1)
            for axis in space.axes
        }
        self._proposer = _proposer(kind, search)

    def ask(self) -> list[Any]:
        """The next wave."""
        study = self._study()
        asked: list[Any] = []
        while len(asked) < min(self._wave, self._num_left) and self._is_open.any():
            index = self._seed() if self._num_seeds > 0 else self._propose(study)
            self._is_open[index] = False
            asked.append(self._pool[index])
        self._num_left -= len(asked)
        return asked

    def tell(self, evaluations: Sequence[Evaluation]) -> None:
        """Keeps the answers."""
        self._answers += evaluations

    def _study(self) -> optuna.Study:
        """All answers as trials; one without a time counts as failed.

        Made anew for every wave: a new answer can change what the old ones are compared with.
        """
        study = optuna.create_study(sampler=self._proposer)
        measure = yardstick(self._answers, self._objective)
        for answer in self._answers:
            params = self._indices(answer.candidate.config)
            if params is None:  # a seed from outside the axes teaches nothing
                continue
            state = optuna.trial.TrialState.COMPLETE if answer.ok else optuna.trial.TrialState.FAIL
            study.add_trial(
                optuna.trial.create_trial(
                    state=state,
                    params=params,
                    distributions=self._distributions,
                    value=measure.loss(answer) if answer.ok else None,
                )
            )
        return study

    def _seed(self) -> int:
        self._num_seeds -= 1
        return int(np.argmax(self._is_open))

    def _propose(self, study: optuna.Study) -> int:
        """The open config nearest to a point that Optuna likes."""
        trial = study.ask(self._distributions)
        point = [axis.position(axis.values[trial.params[axis.name]]) for axis in self._space.axes]
        away = np.linalg.norm(self._places - point, axis=1)
        return int(np.argmin(np.where(self._is_open, away, np.inf)))

    def _indices(self, config: Any) -> dict[str, int] | None:
        indices = {}
        for axis in self._space.axes:
            value = getattr(config, axis.name)
            if value not in axis.values:
                return None
            indices[axis.name] = axis.values.index(value)
        return indices


def _proposer(kind: str, search: Search) -> optuna.samplers.BaseSampler:
    """Optuna's sampler; the first wave is drawn, as far as it is not made of seeds."""
    if kind == "gp" and importlib.util.find_spec("torch") is None:
        raise UsageError(
            "search.sampler gp is Optuna's Gaussian process, which needs PyTorch",
            hint="pip install torch, or use kriging, which is a Gaussian process as well",
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        if kind == "gp":
            return optuna.samplers.GPSampler(
                seed=search.seed, n_startup_trials=search.wave, deterministic_objective=True
            )
        return optuna.samplers.TPESampler(
            seed=search.seed, multivariate=True, n_startup_trials=search.wave
        )
