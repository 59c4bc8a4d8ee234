"""Orders the stages of independent chains so that their latencies overlap. No jax.

A matrix product returns a couple of hundred cycles after it is issued. A chain (qk, softmax, pv)
waits for that twice; laying several chains out with their stages staggered lets the compiler's
scheduler fill one chain's wait with the others' work.

Decode lays out all chains of a compute block at once (`staggered`). The blockwise kernel loops over
passes that follow each other without draining (`pass_order`).
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple


class Stage(NamedTuple):
    """When one stage of the chains comes: that of chain c in turn `c + delay`.

    Attributes:
      name: What it is called in the order.
      chains: Those that have the stage. In a loop of passes, ones before 0 are of the pass before,
        ones past the end of the pass after.
      delay: Turns behind the chain's number; below 0 for a stage that comes ahead.
    """

    name: Any
    chains: range
    delay: int


def turns(*stages: Stage) -> Iterator[list[tuple[Any, int]]]:
    """What comes in each turn: names of stages, in the order given, and the chain of each."""
    first = min(stage.chains.start + stage.delay for stage in stages)
    end = max(stage.chains.stop + stage.delay for stage in stages)
    for turn in range(first, end):
        chains = ((stage, turn - stage.delay) for stage in stages)
        yield [(stage.name, chain) for stage, chain in chains if chain in stage.chains]


def staggered(count: int, stages: tuple[Callable[[int, Any], Any], ...], lag: int) -> None:
    """Runs `stages` for chains 0 to `count - 1`; stage k of chain i comes in turn i + k * lag.

    Args:
      count: Chains.
      stages: Each takes the chain and the result of its previous stage (None for the first).
      lag: Turns between two stages of a chain; 0 runs chain after chain.
    """
    order = [Stage(stage, range(count), k * lag) for k, stage in enumerate(stages)]
    carried: dict[int, Any] = {}
    # Later stages first: they free what earlier chains hold before new ones are begun.
    for turn in turns(*(reversed(order) if lag else order)):
        for stage, chain in turn:
            carried[chain] = stage(chain, carried.pop(chain, None))


def pass_order(
    width: int, *, lag: int, num_slots: int, num_masks: int, delays_pv: bool
) -> list[tuple[str, int]]:
    """Stages of one pass of a loop of passes, each of chains 0 to `width - 1`, in their order.

    A pass begins when qk of its first `lag` chains is done, and does that of the next pass's. With
    `delays_pv` its last chain's pv is left to the next pass, too.

    Args:
      width: Chains of a pass.
      lag: Chains from the one in qk back to the one in softmax.
      num_slots: Chains whose scores are held at once: chain c of a pass is in slot `c % num_slots`.
      num_masks: Masks to make, each in the turn of the first chain that needs it.
      delays_pv: Whether pv comes one turn later, and before the turn's other stages.

    Returns:
      ("mask", "qk", "softmax" or "pv", chain): chain -1 is the last of the pass before, `width` and
      up are the first of the pass after.
    """
    mask = Stage("mask", range(num_masks), 0)
    softmax = Stage("softmax", range(width), 0)
    qk = Stage("qk", range(lag, width + lag), -lag)
    if delays_pv:
        stages = [Stage("pv", range(-1, width - 1), 1), mask, qk, softmax]
    else:
        stages = [mask, qk, softmax, Stage("pv", range(width), lag - 1)]
    order = []
    for turn in turns(*stages):
        at = dict(turn)
        shares_slot = "qk" in at and at["qk"] % width % num_slots == at["softmax"] % num_slots
        if shares_slot:  # it has to be read before it is written
            i = turn.index(("qk", at["qk"]))
            turn[i : i + 2] = reversed(turn[i : i + 2])
        order += turn
    return order
