"""When requests arrive: as in the trace, at random, in bursts, all at once, or one per answer."""

import dataclasses
import enum
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from rpa_tune.workload.request import Request

Float64Array = npt.NDArray[np.float64]


class Process(enum.StrEnum):
    """How arrival times are made."""

    TRACE = "trace"
    POISSON = "poisson"
    GAMMA = "gamma"
    AT_ONCE = "at_once"
    CLOSED_LOOP = "closed_loop"


@dataclass(frozen=True, kw_only=True, slots=True)
class Arrivals:
    """An arrival process; rate, burstiness and concurrency as `vllm bench serve` names them.

    Attributes:
      process: `trace` keeps the given times, scaled to `request_rate` if there is one; `poisson`
        and `gamma` draw the gaps between requests; `at_once` has all of them at time 0;
        `closed_loop` is `max_concurrency` users, each sending its next request when answered.
      request_rate: Requests per second on average.
      burstiness: `gamma` only: the shape of the gaps. 1 is Poisson, less is burstier.
      max_concurrency: Requests sent and not answered at once, at most; None for no limit.
    """

    process: Process = Process.TRACE
    request_rate: float | None = None
    burstiness: float = 1.0
    max_concurrency: int | None = None

    def __post_init__(self) -> None:
        """Refuses settings without a meaning.

        Raises:
          ValueError: With the setting and the rule.
        """
        if self.request_rate is not None and not self.request_rate > 0:
            raise ValueError(f"request_rate={self.request_rate} must be above 0")
        if not self.burstiness > 0:
            raise ValueError(f"burstiness={self.burstiness} must be above 0")
        if self.max_concurrency is not None and self.max_concurrency < 1:
            raise ValueError(f"max_concurrency={self.max_concurrency} must be at least 1")
        if self.process in (Process.POISSON, Process.GAMMA) and self.request_rate is None:
            raise ValueError(f"process={self.process.value} needs a request_rate")
        if self.process is Process.CLOSED_LOOP and self.max_concurrency is None:
            raise ValueError("process=closed_loop needs a max_concurrency")

    def apply(self, requests: Sequence[Request], *, seed: int) -> tuple[Request, ...]:
        """The same requests in the same order, arriving as this process says."""
        times = self._times_s(np.array([r.arrival_s for r in requests]), seed)
        return tuple(
            dataclasses.replace(request, arrival_s=float(time))
            for request, time in zip(requests, times, strict=True)
        )

    def _times_s(self, given: Float64Array, seed: int) -> Float64Array:
        if self.process in (Process.AT_ONCE, Process.CLOSED_LOOP):
            return np.zeros(len(given))
        if self.process is Process.TRACE:
            if self.request_rate is None or given[-1] <= 0:
                return given
            scale = (len(given) - 1) / float(given[-1]) / self.request_rate
            return np.asarray(given * scale)
        shape = 1.0 if self.process is Process.POISSON else self.burstiness
        mean_s = 1.0 / (self.request_rate or 1.0)
        gaps = np.random.default_rng(seed).gamma(shape, mean_s / shape, len(given))
        times: Float64Array = np.cumsum(gaps) - gaps[0]
        return times
