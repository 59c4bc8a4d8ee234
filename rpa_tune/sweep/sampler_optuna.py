"""Optuna's TPE over a pool: the only file that imports optuna.

Seeds come first, then what TPE proposes. Only members of the pool are asked for: the pool is what
can exist, TPE proposes points of the axes, and a point that is not in the pool, or was asked for
before, is passed over.
"""

import warnings
from collections.abc import Sequence
from typing import Any

import optuna

from rpa_tune.candidate import Evaluation
from rpa_tune.objective import yardstick
from rpa_tune.space.space import Space
from rpa_tune.sweep.sampler import AbstractSampler, Search

# Proposals to draw for one question before the next of the pool is taken instead.
_MAX_DRAWS = 64


class TpeSampler(AbstractSampler):
    """Seeds first, then tree-structured Parzen estimators."""

    def __init__(
        self, space: Space, pool: Sequence[Any], *, num_seeds: int, search: Search
    ) -> None:
        """Asks nothing yet; see `sampler.make_sampler` for the arguments."""
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self._space = space
        self._waiting = list(pool)
        self._num_seeds = num_seeds
        self._num_left = search.simulate
        self._wave = search.wave
        self._objective = search.objective
        self._answers: list[Evaluation] = []
        self._distributions: dict[str, optuna.distributions.BaseDistribution] = {
            axis.name: optuna.distributions.IntDistribution(0, len(axis.values) - 1)
            for axis in space.axes
        }
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            self._tpe = optuna.samplers.TPESampler(
                seed=search.seed, multivariate=True, n_startup_trials=search.wave
            )

    def ask(self) -> list[Any]:
        """The next wave."""
        study = self._study()
        asked: list[Any] = []
        while len(asked) < min(self._wave, self._num_left) and self._waiting:
            config = self._waiting[0] if self._num_seeds > 0 else self._propose(study)
            self._num_seeds -= 1
            self._waiting.remove(config)
            asked.append(config)
        self._num_left -= len(asked)
        return asked

    def tell(self, evaluations: Sequence[Evaluation]) -> None:
        """Keeps the answers."""
        self._answers += evaluations

    def _study(self) -> optuna.Study:
        """All answers as trials; one without a time counts as failed.

        Made anew for every wave: a new answer can change what the old ones are compared with.
        """
        study = optuna.create_study(sampler=self._tpe)
        measure = yardstick(self._answers, self._objective)
        for answer in self._answers:
            params = self._indices(answer.candidate.config)
            if params is None:  # a seed from outside the axes teaches TPE nothing
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

    def _propose(self, study: optuna.Study) -> Any:
        """A waiting config that TPE likes, or the first one when it finds none."""
        waiting = set(self._waiting)
        for _ in range(_MAX_DRAWS):
            trial = study.ask(self._distributions)
            point = {axis.name: axis.values[trial.params[axis.name]] for axis in self._space.axes}
            study.tell(trial, state=optuna.trial.TrialState.FAIL)
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
