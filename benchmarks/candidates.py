"""What benchmarks of ours ask: configs of a family on one problem, those that can exist."""

from collections.abc import Iterable
from typing import Any

from rpa_kernels.problem import Problem
from rpa_tune.candidate import Candidate
from rpa_tune.families.family import Family
from rpa_tune.hw.chip import Chip
from rpa_tune.workload.workload import Workload


def fitting(
    family: Family, problem: Problem, chip: Chip, workload: Workload, configs: Iterable[Any]
) -> list[Candidate]:
    """The configs that fit the chip, as candidates, in their order."""
    return [
        Candidate(
            family=family, problem=problem, config=config, chip=chip, workload=workload.digest
        )
        for config in configs
        if family.check(problem, config, chip.target) is None
    ]
