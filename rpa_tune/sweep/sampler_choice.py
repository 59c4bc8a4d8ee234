"""Makes the sampler that a plan names, and says which versions decide what it asks."""

from collections.abc import Mapping, Sequence
from importlib import metadata
from typing import Any

from rpa_tune.candidate import Evaluation
from rpa_tune.space.space import Space
from rpa_tune.sweep.sampler import AbstractSampler, ExhaustiveSampler, RandomSampler, Search
from rpa_tune.sweep.sampler_kriging import KrigingSampler

# Kriging looks at every config of a pool for every question; above this TPE is quicker.
MAX_KRIGING_POOL = 20_000
# Samplers whose questions are another project's: with one seed optuna 4.9.0 and 5.0.0 ask others.
_DECIDED_BY = {"tpe": ("optuna",), "gp": ("optuna", "torch")}


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
        kind = _choose(len(pool), search)
    if kind == "exhaustive":
        return ExhaustiveSampler(pool)
    if kind == "random":
        return RandomSampler(pool, num_seeds=num_seeds, search=search)
    if kind == "kriging":
        return KrigingSampler(space, pool, below, num_seeds=num_seeds, search=search)
    # Here, because optuna takes a second to import.
    from rpa_tune.sweep.sampler_optuna import OptunaSampler

    return OptunaSampler(kind, space, pool, num_seeds=num_seeds, search=search)


def sampler_identity(search: Search, num_configs: int) -> dict[str, str]:
    """What has to be alike for one search to go on as another: `kind`, and versions by package.

    Args:
      search: Of the study.
      num_configs: Configs that can exist.
    """
    kind = _choose(num_configs, search) if search.sampler == "auto" else search.sampler
    identity = {"kind": kind}
    for package in _DECIDED_BY.get(kind, ()):
        try:
            identity[package] = metadata.version(package)
        except metadata.PackageNotFoundError:  # making the sampler says so
            continue
    return identity


def _choose(num_configs: int, search: Search) -> str:
    """The sampler that `auto` means for so many configs."""
    if num_configs <= search.simulate:
        return "exhaustive"
    return "kriging" if num_configs <= MAX_KRIGING_POOL else "tpe"
