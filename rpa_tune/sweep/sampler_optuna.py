"""Optuna's TPE over a pool: the only file that imports optuna.

Seeds come first, then what TPE proposes. Only members of the pool are asked for: TPE proposes
points of the axes, and a point that is not in the pool, or was asked for before, is passed over.
"""

import warnings
from collections.abc import Sequence
from typing import Any

import optuna

from rpa_tune.candidate import Evaluation
from rpa_tune.space.space import Space
from rpa_tune.sweep.sampler import AbstractSampler, Search

# Proposals to draw for one question before the next of the pool is taken instead.
_MAX_DRAWS = 64


class TpeSampler(AbstractSampler):
    """Seeds first, then tree-structured Parzen estimators."""

    def __init__(
        self, space: Space, pool: Sequence[Any], *, num_seeds: int, search: Search
    ) -> None:
        """Starts a study in memory; see `sampler.make_sampler` for the arguments."""
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self._space = space
        self._waiting = list(pool)
        self._num_seeds = num_seeds
        self._num_left = search.simulate
        self._wave = search.wave
        self._distributions: dict[str, optuna.distributions.BaseDistribution] = {
            axis.name: optuna.distributions.IntDistribution(0, len(axis.values) - 1)
            for axis in space.axes
        }
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            self._study = optuna.create_study(
                sampler=optuna.samplers.TPESampler(
                    seed=search.seed, multivariate=True, n_startup_trials=search.wave
                )
            )

    def ask(self) -> list[Any]:
        """The next wave."""
        asked: list[Any] = []
        while len(asked) < min(self._wave, self._num_left) and self._waiting:
            config = self._waiting[0] if self._num_seeds > 0 else self._propose()
            self._num_seeds -= 1
            self._waiting.remove(config)
            asked.append(config)
        self._num_left -= len(asked)
        return asked

    def tell(self, evaluations: Sequence[Evaluation]) -> None:
        """Feeds the answers to Optuna; one without a time counts as failed."""
        for evaluation in evaluations:
            params = self._indices(evaluation.candidate.config)
            if params is None:  # a seed from outside the axes teaches TPE nothing
                continue
            state = optuna.trial.TrialState.COMPLETE if evaluation.ok else (
                optuna.trial.TrialState.FAIL
            )  # fmt: skip
            self._study.add_trial(
                optuna.trial.create_trial(
                    state=state,
                    params=params,
                    distributions=self._distributions,
                    value=evaluation.time_us,
                )
            )

    def _propose(self) -> Any:
        """A waiting config that TPE likes, or the first one when it finds none."""
        waiting = set(self._waiting)
        for _ in range(_MAX_DRAWS):
            trial = self._study.ask(self._distributions)
            point = {axis.name: axis.values[trial.params[axis.name]] for axis in self._space.axes}
            self._study.tell(trial, state=optuna.trial.TrialState.FAIL)
            config = type(self._waiting[0])(**point)
            if config in waiting:
                return config
        return self._waiting[0]

    def _indices(self, config: Any) -> dict[str, int] | None:
        indices = {}
        for axis in self._space.axes:
            value = getattr(config, axis.name)
            if value not in axis.values:
                return None
            indices[axis.name] = axis.values.index(value)
        return indices
