"""Which candidates of a pool are evaluated next.

A sampler is asked for a wave and told the answers to it, until it has no more questions. It sees
nothing else, so the same answers give the same waves: a sweep that was killed and started again
asks the same questions, and the store answers those that were asked before.
"""

import abc
from collections.abc import Sequence
from typing import Any

from rpa_tune.candidate import Evaluation
from rpa_tune.space.space import Space


class AbstractSampler(abc.ABC):
    """Asks for configs in waves."""

    @abc.abstractmethod
    def ask(self) -> list[Any]:
        """Configs to evaluate together, none of them asked for before; empty at the end."""

    @abc.abstractmethod
    def tell(self, evaluations: Sequence[Evaluation]) -> None:
        """The answers to the last wave, in its order; a config that was skipped has none."""


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


def make_sampler(
    space: Space, ranked: Sequence[Any], *, num: int, wave: int, seed: int
) -> AbstractSampler:
    """Exhaustive when the pool fits in `num`, else Optuna.

    Args:
      space: The axes of the configs.
      ranked: The pool, most promising first; the heuristic and other seeds lead.
      num: Configs to ask for in all.
      wave: Configs asked for together.
      seed: Of the random choices.
    """
    if len(ranked) <= num:
        return ExhaustiveSampler(ranked)
    from rpa_tune.sweep.sampler_optuna import TpeSampler

    return TpeSampler(space, ranked, num=num, wave=wave, seed=seed)
