"""What parent and worker of the measured evaluator say to each other, and what is noise. No jax."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from rpa_kernels.batch import Batch
from rpa_tune.candidate import Candidate, Status

NOISY_SPREAD = 0.05  # interquartile range over median above which a round is repeated
THROTTLED_DRIFT = 0.03  # last third over first third above which a round is repeated


@dataclass(frozen=True, kw_only=True, slots=True)
class MeasureTask:
    """Candidates to time side by side.

    Attributes:
      candidates: For one chip and one problem's workload.
      batches: All launch the candidates' family.
      check_batches: What each must get right first; they fit the problem.
      num_repeats: Timed launches of a round.
      max_rounds: Rounds at most, if the first are noisy.
      launcher: `module:function` from (candidate, batch) to a `Launch`.
      platform: `tpu`, or `cpu` to try everything but the chip.
    """

    candidates: tuple[Candidate, ...]
    batches: tuple[Batch, ...]
    check_batches: tuple[Batch, ...]
    num_repeats: int
    max_rounds: int
    launcher: str
    platform: str


@dataclass(frozen=True, kw_only=True, slots=True)
class BatchSamples:
    """Device times of one candidate on one batch.

    Attributes:
      rounds_ns: Every sample of every round, in launch order.
      is_steady: Whether the last round was neither noisy nor throttled.
    """

    rounds_ns: tuple[tuple[float, ...], ...]
    is_steady: bool

    @property
    def time_us(self) -> float:
        """Median of the last round: earlier ones were repeated for a reason."""
        return statistics.median(self.rounds_ns[-1]) * 1e-3


@dataclass(frozen=True, kw_only=True, slots=True)
class Measurement:
    """What was found about one candidate.

    Attributes:
      status: OK, COMPILE_FAILED, OUT_OF_MEMORY, RUN_FAILED or WRONG_ANSWER.
      detail: One line; empty when OK.
      samples: One entry a batch when OK.
      error_of_tolerance: Largest error as a share of what it may be, over the batches that were
        checked; None when there is no answer.
    """

    status: Status
    detail: str = ""
    samples: tuple[BatchSamples, ...] = ()
    error_of_tolerance: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class MeasureAnswer:
    """What the worker found.

    Attributes:
      wrong_device: Why this machine cannot measure at all; empty when it can.
      device: Kind, platform, number, topology and flags.
      measurements: One per candidate.
    """

    wrong_device: str = ""
    device: dict[str, Any] = field(default_factory=dict)
    measurements: tuple[Measurement, ...] = ()


def is_steady(times_ns: Sequence[float]) -> bool:
    """Whether samples neither scatter nor drift."""
    if len(times_ns) < 4:
        return True
    third = max(1, len(times_ns) // 3)
    drift = statistics.median(times_ns[-third:]) / statistics.median(times_ns[:third]) - 1
    return spread(times_ns) <= NOISY_SPREAD and drift <= THROTTLED_DRIFT


def spread(times_ns: Sequence[float]) -> float:
    """Interquartile range over median."""
    if len(times_ns) < 2:
        return 0.0
    quarter, median, three = statistics.quantiles(times_ns, n=4)
    return (three - quarter) / median
