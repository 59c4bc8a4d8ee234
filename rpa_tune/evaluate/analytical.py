"""Account ÷ chip rates: a lower bound in microseconds, with its terms. Compiles nothing.

Bounds leave out what only a schedule shows (vector work, dependencies, pipeline fill), so they
rank configs of one family poorly when those decide; they are for pruning and for sanity.
"""

import functools
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

from rpa_kernels.family import Traffic
from rpa_kernels.problem import Problem
from rpa_tune.candidate import Candidate, Evaluation, Fidelity, Status
from rpa_tune.evaluate.account import account_of
from rpa_tune.evaluate.evaluator import AbstractEvaluator, find_obstacle, largest, refuse
from rpa_tune.families.family import Family
from rpa_tune.hw.chip import Chip
from rpa_tune.llo.machine import load_machine
from rpa_tune.provenance import provenance
from rpa_tune.workload.workload import Workload

# What the bound rests on in the simulator's machine, for naming guesses.
_PARAMETERS = (
    "launch_us", "read_linear_bytes_per_s", "write_linear_bytes_per_s", "read_fixed_cycles",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class Terms:
    """Least time of one launch in each resource, in microseconds.

    Attributes:
      hbm_us: Bytes over usable bandwidth, the longer direction.
      copies_us: Both directions with the fixed cost of every copy, shared evenly between the queues
        of copies: the busier one cannot take less.
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


@dataclass(frozen=True, kw_only=True, slots=True)
class PeakRates:
    """What a chip can do at best, for the dtypes of one problem.

    Attributes:
      read_bytes_per_s: HBM to VMEM.
      write_bytes_per_s: VMEM to HBM.
      copy_s: Fixed cost of a copy.
      num_queues: Queues of copies: 1 where reads and writes share it.
      flops_per_s: Peak of the MXUs of one core.
      launch_us: Before a kernel begins.
    """

    read_bytes_per_s: float
    write_bytes_per_s: float
    copy_s: float
    num_queues: int
    flops_per_s: float
    launch_us: float

    def terms(self, moved: Traffic, flops: int) -> Terms:
        """The terms of one core."""
        read_s = moved.read_bytes / self.read_bytes_per_s
        write_s = moved.write_bytes / self.write_bytes_per_s
        issue_s = moved.num_copies * self.copy_s
        return Terms(
            hbm_us=1e6 * max(read_s, write_s),
            copies_us=1e6 * (read_s + write_s + issue_s) / self.num_queues,
            mxu_us=1e6 * flops / self.flops_per_s,
            fixed_us=self.launch_us,
        )


def rates_of(problem: Problem, chip: Chip) -> PeakRates:
    """The rates of a chip."""
    machine = load_machine(chip.name)

    def fastest(direction: str) -> float:
        """An account does not say which copies are strided: a bound takes the quicker kind."""
        kinds = ("linear", "strided")
        return max(machine.value(f"{direction}_{kind}_bytes_per_s") for kind in kinds)

    return PeakRates(
        read_bytes_per_s=fastest("read"),
        write_bytes_per_s=fastest("write"),
        num_queues=int(machine.value("copy_queues")),
        copy_s=machine.value("read_fixed_cycles") / chip.clock_hz,
        flops_per_s=_peak_flops_per_s(problem, chip),
        launch_us=machine.value("launch_us"),
    )


def _peak_flops_per_s(problem: Problem, chip: Chip) -> float:
    """Fastest rate at which the MXUs may multiply this problem's dtypes."""
    fp8 = chip.numbers["fp8_flops_per_s"].value
    if problem.kv_dtype.startswith("float8") and fp8:
        return max(fp8, chip.bf16_flops_per_s)
    return chip.bf16_flops_per_s


class AnalyticalEvaluator(AbstractEvaluator):
    """Lower bounds from the families' accounts."""

    @property
    def fidelity(self) -> Fidelity:
        """ANALYTICAL."""
        return Fidelity.ANALYTICAL

    def evaluate_all(
        self, candidates: Iterable[Candidate], workload: Workload
    ) -> Iterator[Evaluation]:
        """One bound per candidate, in the order given; see `AbstractEvaluator`."""

        @functools.cache
        def of_family(family: Family) -> tuple[Workload, dict[str, Any]]:
            return workload.for_family(*family.slots), provenance(family.digest)

        for candidate in candidates:
            if obstacle := find_obstacle(candidate, workload):
                yield refuse(candidate, self.fidelity, obstacle)
            else:
                yield _evaluate(candidate, *of_family(candidate.family))

    def close(self) -> None:
        """Nothing is held."""


def _evaluate(candidate: Candidate, own: Workload, stamp: dict[str, Any]) -> Evaluation:
    config, account = candidate.config, account_of(candidate, own)
    rates = rates_of(candidate.problem, candidate.chip)
    terms = [  # of each batch, on the core that takes longest
        max(map(rates.terms, moved, flops), key=lambda terms: terms.total_us)
        for moved, flops in zip(account.traffic(config), account.mxu_flops(config), strict=True)
    ]
    batch_us = tuple(t.total_us for t in terms)
    time_us = account.mean(batch_us)
    mean = Terms(
        hbm_us=account.mean([t.hbm_us for t in terms]),
        copies_us=account.mean([t.copies_us for t in terms]),
        mxu_us=account.mean([t.mxu_us for t in terms]),
        fixed_us=rates.launch_us,
    )
    numbers = load_machine(candidate.chip.name).numbers
    return Evaluation(
        candidate=candidate,
        fidelity=Fidelity.ANALYTICAL,
        status=Status.OK,
        time_us=time_us,
        batch_us=batch_us,
        metrics={
            **asdict(mean),
            "bound_by": mean.bound_by,
            "num_steps": account.mean([sum(cores) for cores in account.num_steps(config)]),
            **account.utilization(time_us),
            **account.mean_traffic(config),
            **account.memory(config),
            "guesses": [name for name in _PARAMETERS if numbers[name].confidence == "guess"],
        },
        provenance=stamp,
    )
