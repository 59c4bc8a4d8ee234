"""One kernel's time beside its prediction, as a check's file has it. No jax.

A time of a rehearsal has another name than a measured one, besides the mark at the head of the
file: who overlooks the one does not find the other.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rpa_tune.candidate import Candidate
from rpa_tune.workload.workload import Workload


@dataclass(frozen=True, kw_only=True, slots=True)
class Prediction:
    """What the simulator says of one launch, compiled on this host for the chip.

    Attributes:
      time_us: Microseconds.
      interval_us: Where nine of ten sets of parameters lie.
      schedule_digest: Of what was simulated; `calibrate` compares it with what it compiles.
      bound_by: What it waits for most.
    """

    time_us: float
    interval_us: tuple[float, float]
    schedule_digest: str
    bound_by: str

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        return {
            "time_us": self.time_us,
            "interval_us": list(self.interval_us),
            "schedule_digest": self.schedule_digest,
            "bound_by": self.bound_by,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Prediction":
        """Reads the JSON form.

        Raises:
          ValueError, KeyError, TypeError: The data is none.
        """
        low, high = (_time(us, "interval_us") for us in data["interval_us"])
        return cls(
            time_us=_time(data["time_us"], "time_us"),
            interval_us=(low, high),
            schedule_digest=str(data["schedule_digest"]),
            bound_by=str(data["bound_by"]),
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class KernelTimes:
    """One kernel beside its prediction. Times are device time of one launch, in microseconds.

    Attributes:
      candidate: Family, problem, config, chip.
      workload: The one batch that was launched.
      measured_us: On the chip; None in a rehearsal.
      rehearsed_us: What a CPU took for the float32 reference; None on a chip. It says nothing.
      simulated: The prediction; None when this host could not make one.
      spread: Interquartile range of the samples over their median.
      is_steady: Whether the samples neither scatter nor drift.
      samples_ns: Every sample of every round.
    """

    candidate: Candidate
    workload: Workload
    measured_us: float | None
    rehearsed_us: float | None
    simulated: Prediction | None
    spread: float
    is_steady: bool
    samples_ns: tuple[tuple[float, ...], ...]

    @property
    def error(self) -> float | None:
        """Simulated over measured, minus one; None where one of them is missing."""
        if self.measured_us is None or self.simulated is None:
            return None
        return self.simulated.time_us / self.measured_us - 1

    @property
    def is_inside(self) -> bool | None:
        """Whether the interval holds the measured time; None where one of them is missing."""
        if self.measured_us is None or self.simulated is None:
            return None
        low, high = self.simulated.interval_us
        return low <= self.measured_us <= high

    def to_dict(self) -> dict[str, Any]:
        """JSON form; of the two times only the one that there is."""
        time = (
            {"rehearsed_us": self.rehearsed_us}
            if self.measured_us is None
            else {"measured_us": self.measured_us, "error": self.error, "is_inside": self.is_inside}
        )
        return {
            **time,
            "spread": self.spread,
            "is_steady": self.is_steady,
            "samples_ns": [list(one) for one in self.samples_ns],
            "simulated": None if self.simulated is None else self.simulated.to_dict(),
            "candidate": self.candidate.to_dict(),
            "workload": self.workload.to_dict(),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "KernelTimes":
        """Reads the JSON form.

        Raises:
          ValueError, KeyError, TypeError: The data is none.
        """
        workload = Workload.from_dict(data["workload"])
        candidate = Candidate.from_dict(data["candidate"])
        if candidate.workload != workload.digest or len(workload.batches) != 1:
            raise ValueError("the workload is not the candidate's one batch")
        predicted = data["simulated"]
        return cls(
            candidate=candidate,
            workload=workload,
            measured_us=_time_or_none(data, "measured_us"),
            rehearsed_us=_time_or_none(data, "rehearsed_us"),
            simulated=None if predicted is None else Prediction.from_dict(predicted),
            spread=float(data["spread"]),
            is_steady=data["is_steady"] is True,
            samples_ns=tuple(tuple(map(float, one)) for one in data["samples_ns"]),
        )


def _time(value: object, name: str) -> float:
    if type(value) not in (int, float) or not 0 < value < 1e12:  # type: ignore[operator]
        raise ValueError(f"{name}={value!r:.40} must be a number above zero")
    return float(value)  # type: ignore[arg-type]


def _time_or_none(data: Mapping[str, Any], name: str) -> float | None:
    return _time(data[name], name) if name in data else None
