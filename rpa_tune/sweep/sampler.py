"""Which candidates of a pool are evaluated next.

A sampler is asked for a wave and told the answers to it, until it has no more questions. It sees
nothing else, so the same answers give the same waves: a sweep that was killed and started again
asks the same questions, and the store answers those that were asked before.
"""

import abc
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rpa_tune.candidate import Evaluation
from rpa_tune.objective import EXPECTED_TIME
from rpa_tune.space.space import Space

SAMPLERS = ("auto", "exhaustive", "kriging", "tpe", "gp", "random")
# Kriging looks at every config of a pool for every question; above this TPE is quicker.
MAX_KRIGING_POOL = 20_000


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
      simulate: Candidates of one study that reach the simulator.
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
    measure: int = 4
    wave: int = 8
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
        """See `make_sampler`."""
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


def make_sampler(
    kind: str,
    space: Space,
    pool: Sequence[Any],
    below: Mapping[Any, Evaluation],
    *,
    num_seeds: int,
    search: Search,
) -> AbstractSampler:
    """The sampler that a plan names; `auto` goes by the size of the pool.

    Args:
      kind: One of `SAMPLERS`.
      space: The axes of the configs.
      pool: What may be asked for; the heuristic and other seeds lead.
      below: Config -> its answer on the rung below, a lower bound; may lack some.
      num_seeds: How many of the pool are seeds.
      search: How many to ask for, how many together, and the seed of random choices.
    """
    if kind == "auto":
        if len(pool) <= search.simulate:
            kind = "exhaustive"
        else:
            kind = "kriging" if len(pool) <= MAX_KRIGING_POOL else "tpe"
    if kind == "exhaustive":
        return ExhaustiveSampler(pool)
    if kind == "random":
        return RandomSampler(pool, num_seeds=num_seeds, search=search)
    if kind == "kriging":
        from rpa_tune.sweep.sampler_kriging import KrigingSampler

        return KrigingSampler(space, pool, below, num_seeds=num_seeds, search=search)
    from rpa_tune.sweep.sampler_optuna import OptunaSampler

    return OptunaSampler(kind, space, pool, num_seeds=num_seeds, search=search)
