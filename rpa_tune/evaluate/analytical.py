"""Account ÷ chip rates: a lower bound in microseconds, with its terms. Compiles nothing.

Bounds leave out what only a schedule shows (vector work, dependencies, pipeline fill), so they
rank configs of one family poorly when those decide; they are for pruning and for sanity.
"""

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass

from rpa_kernels.batch import Batch
from rpa_kernels.cores import Core
from rpa_tune.candidate import Candidate, Evaluation, Fidelity, Status
from rpa_tune.evaluate.evaluator import (
    AbstractEvaluator,
    batches_and_weights,
    find_obstacle,
    largest,
    launch_cores,
    mean_traffic,
    refuse,
    utilization,
    weighted_mean,
)
from rpa_tune.families import load_family, slots
from rpa_tune.hw.chip import Chip, load_chip
from rpa_tune.llo.machine import Machine, load_machine
from rpa_tune.provenance import provenance
from rpa_tune.workload.workload import Workload

# What the bound rests on in the simulator's machine, for naming guesses.
_PARAMETERS = ("launch_us", "read_bytes_per_s", "write_bytes_per_s", "read_fixed_cycles")


@dataclass(frozen=True, kw_only=True, slots=True)
class Terms:
    """Least time of one launch in each resource, in microseconds.

    Attributes:
      hbm_us: Bytes over usable bandwidth, the longer direction.
      copies_us: Both directions with the fixed cost of every copy, shared evenly between the two
        engines: the busier one cannot take less.
      mxu_us: FLOPs, padding included, over the peak rate.
      fixed_us: Launch.
    """

    hbm_us: float
    copies_us: float
    mxu_us: float
    fixed_us: float

    @property
    def total_us(self) -> float:
        """Copies and matmuls overlap at best; the launch does not."""
        return self.fixed_us + max(self.hbm_us, self.copies_us, self.mxu_us)

    @property
    def bound_by(self) -> str:
        """The longest term."""
        return largest({name.removesuffix("_us"): us for name, us in asdict(self).items()})


def compute_terms(candidate: Candidate, batch: Batch, chip: Chip, machine: Machine) -> Terms:
    """The terms of one batch, on the core that takes longest."""
    terms = (_core_terms(candidate, batch, chip, machine, c) for c in launch_cores(candidate))
    return max(terms, key=lambda terms: terms.total_us)


def _core_terms(
    candidate: Candidate, batch: Batch, chip: Chip, machine: Machine, core: Core
) -> Terms:
    family, problem, config = load_family(candidate.family), candidate.problem, candidate.config
    moved = family.traffic(problem, config, batch, core)
    flops = family.mxu_flops(problem, config, batch, chip.target, core)
    read_s = moved.read_bytes / machine.value("read_bytes_per_s")
    write_s = moved.write_bytes / machine.value("write_bytes_per_s")
    issue_s = moved.num_copies * machine.value("read_fixed_cycles") / chip.clock_hz
    return Terms(
        hbm_us=1e6 * max(read_s, write_s),
        copies_us=1e6 * (read_s + write_s + issue_s) / 2,
        mxu_us=1e6 * flops / _peak_flops_per_s(candidate, chip),
        fixed_us=machine.value("launch_us"),
    )


def _num_steps(candidate: Candidate, batch: Batch) -> int:
    """KV-block steps of all cores."""
    family, problem, config = load_family(candidate.family), candidate.problem, candidate.config
    return sum(family.num_steps(problem, config, batch, c) for c in launch_cores(candidate))


def _peak_flops_per_s(candidate: Candidate, chip: Chip) -> float:
    """Fastest rate at which the MXUs may multiply this problem's dtypes."""
    fp8 = chip.numbers["fp8_flops_per_s"].value
    if candidate.problem.kv_dtype.startswith("float8") and fp8:
        return max(fp8, chip.bf16_flops_per_s)
    return chip.bf16_flops_per_s


class AnalyticalEvaluator(AbstractEvaluator):
    """Lower bounds from the families' accounts; thousands a second."""

    @property
    def fidelity(self) -> Fidelity:
        """ANALYTICAL."""
        return Fidelity.ANALYTICAL

    def evaluate_all(
        self, candidates: Iterable[Candidate], workload: Workload
    ) -> Iterator[Evaluation]:
        """One bound per candidate, in the order given; see `AbstractEvaluator`."""
        for candidate in candidates:
            if obstacle := find_obstacle(candidate, workload):
                yield refuse(candidate, self.fidelity, obstacle)
            else:
                yield _evaluate(candidate, workload.for_family(*slots(candidate.family)))

    def close(self) -> None:
        """Nothing is held."""


def _evaluate(candidate: Candidate, workload: Workload) -> Evaluation:
    family, chip = load_family(candidate.family), load_chip(candidate.chip)
    machine = load_machine(candidate.chip)
    batches, weights = batches_and_weights(workload)
    terms = [compute_terms(candidate, batch, chip, machine) for batch in batches]
    batch_us = tuple(t.total_us for t in terms)
    time_us = weighted_mean(batch_us, weights)
    mean = Terms(
        hbm_us=weighted_mean([t.hbm_us for t in terms], weights),
        copies_us=weighted_mean([t.copies_us for t in terms], weights),
        mxu_us=weighted_mean([t.mxu_us for t in terms], weights),
        fixed_us=weighted_mean([t.fixed_us for t in terms], weights),
    )
    return Evaluation(
        candidate=candidate,
        fidelity=Fidelity.ANALYTICAL,
        status=Status.OK,
        time_us=time_us,
        batch_us=batch_us,
        metrics={
            **asdict(mean),
            "bound_by": mean.bound_by,
            "num_steps": weighted_mean(
                [_num_steps(candidate, batch) for batch in batches], weights
            ),
            **utilization(candidate, workload, time_us),
            **mean_traffic(candidate, workload),
            "vmem_bytes": family.scratch_bytes(candidate.problem, candidate.config, chip.target),
            "smem_bytes": family.smem_bytes(candidate.problem, candidate.config),
            "guesses": [n for n in _PARAMETERS if machine.numbers[n].confidence == "guess"],
        },
        provenance=provenance(candidate.family),
    )
