"""The evaluator interface, and what its implementations share: checks and the answer's form.

An evaluator never raises for a bad config: that is a `Status`. What it does raise is a bug or a
broken tool.
"""

import abc
import functools
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from rpa_kernels.problem import Problem
from rpa_tune.candidate import Candidate, Evaluation, Method, Status
from rpa_tune.compile.pool import Failure, FailureKind
from rpa_tune.families.family import Family
from rpa_tune.hw.chip import Chip
from rpa_tune.provenance import provenance
from rpa_tune.workload.workload import Workload

# What a task is doing while the compiler, not the kernel, is at fault.
_COMPILE_PHASES = ("start", "lower", "compile")


class AbstractEvaluator(abc.ABC):
    """Answers how long candidates take on a workload."""

    @property
    @abc.abstractmethod
    def fidelity(self) -> Method:
        """How the answers are got."""

    @abc.abstractmethod
    def evaluate_all(
        self, candidates: Iterable[Candidate], workload: Workload
    ) -> Iterator[Evaluation]:
        """One answer per candidate, in the order in which they finish.

        Candidates are taken when there is room for them. Leaving the iterator early abandons
        what is running.

        Args:
          candidates: All with `workload.digest` as their workload.
          workload: What they are judged on; each sees the batches that launch its family.

        Raises:
          ValueError: A candidate names another workload.
        """

    def prepare(self, chips: Iterable[Chip]) -> None:
        """Finds out, before anything is asked, whether there can be an answer at all.

        Does nothing by default.

        Args:
          chips: Those of the candidates to come.

        Raises:
          RpaTuneError: There can be none; says why, and what to do.
        """
        del chips

    @abc.abstractmethod
    def close(self) -> None:
        """Frees what the evaluator holds; it is of no use afterwards."""


def find_obstacle(candidate: Candidate, workload: Workload) -> str:
    """Why a candidate cannot exist or cannot run its batches; empty when it can.

    Raises:
      ValueError: The candidate names another workload.
    """
    if candidate.workload != workload.digest:
        raise ValueError(f"candidate is for workload {candidate.workload}, not {workload.digest}")
    family = candidate.family
    if family.unavailable:
        return family.unavailable
    blocked = family.check(candidate.problem, candidate.config, candidate.chip.target)
    if blocked is not None:
        return str(blocked)
    return _misfit(candidate.family, candidate.problem, workload)


@functools.lru_cache(maxsize=64)  # the same for all candidates of a study
def _misfit(family: Family, problem: Problem, workload: Workload) -> str:
    """Why a workload's batches cannot be launched; empty when they can."""
    batches = [wb.batch for wb in workload.batches if any(map(wb.batch.family_seqs, family.slots))]
    if not batches:
        return f"workload {workload.name!r} never launches family {family.name!r}"
    misfits = [reason for batch in batches if (reason := batch.misfit(problem))]
    return f"workload does not fit the problem: {misfits[0]}" if misfits else ""


def refuse(candidate: Candidate, fidelity: Method, obstacle: str) -> Evaluation:
    """The answer for a candidate that `find_obstacle` objects to."""
    return Evaluation(
        candidate=candidate,
        fidelity=fidelity,
        status=Status.INFEASIBLE,
        detail=obstacle,
        provenance=provenance(candidate.family.digest),
    )


def status_of_failure(failure: Failure) -> Status:
    """The status of a task that gave no answer, from what it was doing when it failed."""
    compiling = failure.phase in _COMPILE_PHASES
    if failure.kind is FailureKind.DEADLINE:
        return Status.COMPILE_TIMEOUT if compiling else Status.RUN_TIMEOUT
    if failure.kind is FailureKind.EXCEPTION:
        return Status.COMPILE_FAILED if compiling else Status.RUN_FAILED
    return Status.CRASHED


def largest(shares: Mapping[str, float]) -> str:
    """The name with the largest share."""
    return max(shares, key=lambda name: shares[name])


def plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """Without the entries that are None, which JSON readers would have to guard against."""
    return {name: value for name, value in values.items() if value is not None}
