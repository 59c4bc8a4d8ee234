"""The config when no row matches: the family's own default, or why nothing can run."""

from typing import Any

from rpa_kernels import load_family
from rpa_kernels.infeasible import Infeasible
from rpa_kernels.problem import Problem
from rpa_kernels.target import Target


def heuristic(family: str, problem: Problem, target: Target) -> Any | Infeasible:
    """The default config of `family`, checked against its own limits.

    Returns:
      A config that fits, or the limit that no config of the heuristic's form can meet.
    """
    record = load_family(family)
    config = record.default_config(problem, target)
    if isinstance(config, Infeasible):
        return config
    blocked = record.check(problem, config, target)
    return config if blocked is None else blocked
