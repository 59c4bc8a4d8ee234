"""Orders the stages of independent chains so that their latencies overlap.

A matrix product returns a couple of hundred cycles after it is issued. A chain (scores, softmax,
p @ V) waits for that twice; laying several chains out with their stages staggered lets the
compiler's scheduler fill one chain's wait with the others' work.
"""

from collections.abc import Callable
from typing import Any


def staggered(count: int, stages: tuple[Callable[[int, Any], Any], ...], lag: int) -> None:
    """Runs `stages` for chains 0 to `count - 1`; stage k of chain i comes in round i + k * lag.

    Args:
      count: Chains.
      stages: Each takes the chain and the result of its previous stage (None for the first).
      lag: Rounds between two stages of a chain; 0 runs chain after chain.
    """
    carried: dict[int, Any] = {}
    for turn in range(count + lag * (len(stages) - 1)):
        # Later stages first: they free what earlier chains hold before new ones are begun.
        for k in reversed(range(len(stages))) if lag else range(len(stages)):
            chain = turn - k * lag
            if 0 <= chain < count:
                carried[chain] = stages[k](chain, carried.pop(chain, None))
