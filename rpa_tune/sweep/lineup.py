"""Which study runs where, and after which others: a function of the plan alone.

A study starts from the winners of others (`seeds.py`), so it has to wait for them. The r-th study
of a family waits for the first half of those before it: the second for one, the third for one, the
fifth for two. So the number of studies that can run side by side doubles with every generation,
and what each of them asks depends neither on how many do, nor on which is quicker.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from rpa_tune.families.family import Family
from rpa_tune.sweep.study import Study


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """A study's place in a run.

    Attributes:
      index: Position in the plan.
      shard: Which of the shards has it, from 1.
      teachers: Positions of the studies whose winners it starts from; all of its own shard.
    """

    index: int
    shard: int
    teachers: tuple[int, ...]


def num_side_by_side(num_workers: int) -> int:
    """Studies to have open at once, so that workers find work.

    A study may have but one task to give: the slowest of a wave, or the check of a winner. So many
    open studies use 97 % of 16 cores, a third of them 52 % (simulated, benchmarks/sweep_cost.py).
    """
    return 1 + num_workers


def line_up(studies: Sequence[Study], num_shards: int = 1) -> list[Place]:
    """A place for every study, in the order of the plan.

    Families are dealt out one by one, because their studies differ in cost.

    Args:
      studies: Those of a plan.
      num_shards: Runs that share the work without seeing each other's answers.
    """
    by_family: dict[Family, list[int]] = {}
    for index, study in enumerate(studies):
        by_family.setdefault(study.family, []).append(index)
    places = []
    dealt = 0
    for indices in by_family.values():
        peers: dict[int, list[int]] = {}
        for index in indices:
            shard = dealt % num_shards + 1
            dealt += 1
            before = peers.setdefault(shard, [])
            teachers = tuple(before[: (len(before) + 1) // 2])
            before.append(index)
            places.append(Place(index=index, shard=shard, teachers=teachers))
    return sorted(places, key=lambda place: place.index)
