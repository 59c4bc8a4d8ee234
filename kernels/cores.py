"""Divides a launch among the TensorCores that one device drives (megacore). No jax.

A sequence of a decode launch, or a query block of the others, belongs to one core. Cores then
share nothing but HBM, and no core reads there what another writes: new K and V come from their
operand, each is written to the cache by the core of its query, and what a kernel reads from the
cache was there before. So no core waits for another.

The division is metadata of a batch. XLA computes it ahead of the kernel, from arrays that are the
same for all layers of a model, and the account and the simulator compute it with numpy from the
same code: `xp` is `numpy` or `jax.numpy`.
"""

from dataclasses import dataclass
from typing import Any

Array = Any


@dataclass(frozen=True, kw_only=True, slots=True)
class Core:
    """One of the cores that share a launch."""

    index: int = 0
    count: int = 1


ONLY_CORE = Core()


def cores_of(count: int) -> tuple[Core, ...]:
    """All cores of a launch on `count` cores."""
    return tuple(Core(index=index, count=count) for index in range(count))


def balance(costs: Array, num_cores: int, xp: Any) -> Array:
    """Divides a row of work into runs of nearly equal cost, one for each core.

    Args:
      costs: int32[n], positive, then zero where there is no more work.
      num_cores: How many runs.
      xp: `numpy` or `jax.numpy`.

    Returns:
      int32[num_cores + 1]: where each run starts, and where the work ends.
    """
    ends = xp.cumsum(costs)
    # A piece goes to the run that its middle falls in.
    middles = num_cores * (2 * ends - costs)
    limits = 2 * ends[-1] * xp.arange(num_cores + 1)
    is_before = (middles[None, :] <= limits[:, None]) & (costs[None, :] > 0)
    return xp.sum(is_before, axis=1).astype(xp.int32)
