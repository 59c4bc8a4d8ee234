"""Which candidates of a pool are evaluated next.

A sampler is asked for a wave and told the answers to it, until it has no more questions. It sees
nothing else, so the same answers give the same waves: a sweep that was killed and started again
asks the same questions, and the store answers those that were asked before.
"""

import abc
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rpa_tune.candidate import Evaluation
from rpa_tune.decide.objective import EXPECTED_TIME

SAMPLERS = ("auto", "exhaustive", "kriging", "tpe", "gp", "random")


class AbstractSampler(abc.ABC):
    """Asks for configs in waves."""

    @abc.abstractmethod
    def ask(self) -> list[Any]:
        """Configs to evaluate together, none of them asked for before; empty at the end."""

    @abc.abstractmethod
    def tell(self, evaluations: Sequence[Evaluation]) -> None:
        """The answers to the last wave, in its order; a config that was skipped has none."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Search:
    """How hard to look.

    Attributes:
      objective: What is to be least, one of `objective.OBJECTIVES`.
      simulate: Candidates of one study that reach the simulator, at most.
      least_gain_pct: Kriging ends before that when it expects of no candidate that it is faster
        than the best by so much, in percent of its time; 0 goes on to the end.
      measure: Candidates of those that get a measured time, where there is a TPU; the heuristic
        is measured beside them. 0 measures nothing.
      wave: Candidates that are chosen together, before the answers to them are known.
      configs: Most configs of one table row; a serving engine compiles them all.
      sampler: One of `SAMPLERS`.
      deadline_s: Longest compile and simulation of one candidate.
      seed: Of random choices.
    """

    objective: str = EXPECTED_TIME
    simulate: int = 20
    least_gain_pct: float = 0.3
    measure: int = 4
    wave: int = 4
    configs: int = 2
    sampler: str = "auto"
    deadline_s: float = 120.0
    seed: int = 0


class ExhaustiveSampler(AbstractSampler):
    """Every config, most promising first, in one wave."""

    def __init__(self, configs: Sequence[Any]) -> None:
        """Takes the configs in the order they are to be asked for."""
        self._configs = list(configs)

    def ask(self) -> list[Any]:
        """All of them, once."""
        configs, self._configs = self._configs, []
        return configs

    def tell(self, evaluations: Sequence[Evaluation]) -> None:
        """Nothing to learn."""


class RandomSampler(AbstractSampler):
    """The seeds, then any; what a smarter sampler has to beat."""

    def __init__(self, pool: Sequence[Any], *, num_seeds: int, search: Search) -> None:
        """See `sampler_choice.make_sampler`."""
        rest = list(pool[num_seeds:])
        random.Random(search.seed).shuffle(rest)
        self._waiting = [*pool[:num_seeds], *rest][: search.simulate]
        self._wave = search.wave

    def ask(self) -> list[Any]:
        """The next wave."""
        wave, self._waiting = self._waiting[: self._wave], self._waiting[self._wave :]
        return wave

    def tell(self, evaluations: Sequence[Evaluation]) -> None:
        """Nothing to learn."""
