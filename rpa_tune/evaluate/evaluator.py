"""The evaluator interface, and what its implementations share: checks, means, the answer's form.

An evaluator never raises for a bad config: that is a `Status`. What it does raise is a bug or a
broken tool.
"""

import abc
import functools
import operator
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from rpa_kernels.batch import Batch
from rpa_kernels.cores import Core, cores_of
from rpa_kernels.family import Traffic
from rpa_tune.candidate import Candidate, Evaluation, Fidelity, Status
from rpa_tune.compile.pool import Failure, FailureKind
from rpa_tune.families import load_family, slots
from rpa_tune.hw.chip import load_chip
from rpa_tune.provenance import provenance
from rpa_tune.workload.workload import Workload

# What a task is doing while the compiler, not the kernel, is at fault.
_COMPILE_PHASES = ("start", "lower", "compile")


class AbstractEvaluator(abc.ABC):
    """Answers how long candidates take on a workload."""

    @property
    @abc.abstractmethod
    def fidelity(self) -> Fidelity:
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
    blocked = candidate.config.check(candidate.problem, load_chip(candidate.chip).target)
    if blocked is not None:
        return str(blocked)
    served = slots(candidate.family)
    batches = [wb.batch for wb in workload.batches if any(map(wb.batch.family_seqs, served))]
    if not batches:
        return f"workload {workload.name!r} never launches family {candidate.family!r}"
    misfits = [reason for batch in batches if (reason := batch.misfit(candidate.problem))]
    return f"workload does not fit the problem: {misfits[0]}" if misfits else ""


def refuse(candidate: Candidate, fidelity: Fidelity, obstacle: str) -> Evaluation:
    """The answer for a candidate that `find_obstacle` objects to."""
    return Evaluation(
        candidate=candidate,
        fidelity=fidelity,
        status=Status.INFEASIBLE,
        detail=obstacle,
        provenance=provenance(candidate.family),
    )


def status_of_failure(failure: Failure) -> Status:
    """The status of a task that gave no answer, from what it was doing when it failed."""
    compiling = failure.phase in _COMPILE_PHASES
    if failure.kind is FailureKind.DEADLINE:
        return Status.COMPILE_TIMEOUT if compiling else Status.RUN_TIMEOUT
    if failure.kind is FailureKind.EXCEPTION:
        return Status.COMPILE_FAILED if compiling else Status.RUN_FAILED
    return Status.CRASHED


def weighted_mean(values: Sequence[float], weights: Sequence[float]) -> float:
    """Mean of per-batch figures over launches."""
    return sum(v * w for v, w in zip(values, weights, strict=True)) / sum(weights)


def mean_traffic(candidate: Candidate, workload: Workload) -> dict[str, float]:
    """Bytes and copies of one launch by the family's account, mean over the workload.

    Args:
      candidate: What is asked about.
      workload: Only batches that launch the candidate's family.
    """
    batches, weights = batches_and_weights(workload)
    counted = [traffic_of(candidate, batch) for batch in batches]
    return {
        "hbm_bytes": weighted_mean([t.total_bytes for t in counted], weights),
        "hbm_read_bytes": weighted_mean([t.read_bytes for t in counted], weights),
        "hbm_write_bytes": weighted_mean([t.write_bytes for t in counted], weights),
        "num_copies": weighted_mean([t.num_copies for t in counted], weights),
    }


def launch_cores(candidate: Candidate) -> tuple[Core, ...]:
    """The TensorCores that a launch uses: all of a device, but one for a public kernel."""
    splits = load_family(candidate.family).split is not None
    return cores_of(load_chip(candidate.chip).num_cores_per_device if splits else 1)


def traffic_of(candidate: Candidate, batch: Batch) -> Traffic:
    """What the family's account says the DMAs of all cores move for one batch."""
    family = load_family(candidate.family)
    problem, config = candidate.problem, candidate.config
    shares = [family.traffic(problem, config, batch, core) for core in launch_cores(candidate)]
    return functools.reduce(operator.add, shares)


def utilization(candidate: Candidate, workload: Workload, time_us: float) -> dict[str, float]:
    """MBU and MFU of a mean time over a workload.

    `mbu` is the bytes that no kernel could avoid moving, over what the nominal HBM bandwidth
    could move in that time. `mfu` is the attention's own FLOPs (causal positions only, both
    matmuls, 2 FLOPs a multiply-add), over what the MXUs could do at their bfloat16 peak. Both are
    ratios of means: total useful work over total time.

    Args:
      candidate: Its chip gives the rates, those of all TensorCores of a device.
      workload: Only batches that launch the candidate's family.
      time_us: Weighted mean time of one launch.
    """
    family, chip = load_family(candidate.family), load_chip(candidate.chip)
    cores = chip.num_cores_per_device
    batches, weights = batches_and_weights(workload)
    num_bytes = weighted_mean([family.useful_bytes(candidate.problem, b) for b in batches], weights)
    num_flops = weighted_mean([family.useful_flops(candidate.problem, b) for b in batches], weights)
    return {
        "mbu": num_bytes / (time_us * 1e-6) / (cores * chip.hbm_bytes_per_s),
        "mfu": num_flops / (time_us * 1e-6) / (cores * chip.bf16_flops_per_s),
    }


def batches_and_weights(workload: Workload) -> tuple[list[Batch], list[float]]:
    """The batches of a workload and their weights, apart."""
    return [wb.batch for wb in workload.batches], [wb.weight for wb in workload.batches]


def largest(shares: Mapping[str, float]) -> str:
    """The name with the largest share."""
    return max(shares, key=lambda name: shares[name])


def plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """Without the entries that are None, which JSON readers would have to guard against."""
    return {name: value for name, value in values.items() if value is not None}
