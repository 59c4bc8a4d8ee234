"""Makes the sampler that a plan names."""

from collections.abc import Mapping, Sequence
from typing import Any

from rpa_tune.candidate import Evaluation
from rpa_tune.space.space import Space
from rpa_tune.sweep.sampler import AbstractSampler, ExhaustiveSampler, RandomSampler, Search
from rpa_tune.sweep.sampler_kriging import KrigingSampler

# Kriging looks at every config of a pool for every question; above this TPE is quicker.
MAX_KRIGING_POOL = 20_000


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
        return KrigingSampler(space, pool, below, num_seeds=num_seeds, search=search)
    # Here, because optuna takes a second to import.
    from rpa_tune.sweep.sampler_optuna import OptunaSampler

    return OptunaSampler(kind, space, pool, num_seeds=num_seeds, search=search)
