"""When requests arrive: as in the trace, at random, in bursts, all at once, or one per answer."""

import dataclasses
import enum
import math
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
        None for `trace` where there are times, else for `at_once`. Whatever it is, a turn of a
        conversation waits until the turn before has been answered.
      request_rate: Requests per second on average.
      burstiness: `gamma` only: the shape of the gaps. 1 is Poisson, less is burstier.
      max_concurrency: Requests sent and not answered at once, at most; None for no limit.
    """

    process: Process | None = None
    request_rate: float | None = None
    burstiness: float = 1.0
    max_concurrency: int | None = None

    def __post_init__(self) -> None:
        """Refuses settings without a meaning.

        Raises:
          ValueError: With the setting and the rule.
        """
        if self.request_rate is not None and not 0 < self.request_rate < math.inf:
            raise ValueError(f"request_rate={self.request_rate} must be above 0 and finite")
        if not 0 < self.burstiness < math.inf:
            raise ValueError(f"burstiness={self.burstiness} must be above 0 and finite")
        if self.max_concurrency is not None and self.max_concurrency < 1:
            raise ValueError(f"max_concurrency={self.max_concurrency} must be at least 1")
        if self.process in (Process.POISSON, Process.GAMMA) and self.request_rate is None:
            raise ValueError(f"process={self.process.value} needs a request_rate")
        if self.process is Process.CLOSED_LOOP and self.max_concurrency is None:
            raise ValueError("process=closed_loop needs a max_concurrency")

    def share(self, ranks: int) -> tuple["Arrivals", int]:
        """What comes to one of several ranks, each of which gets whole requests.

        A rate and a limit are divided. Where there is no rate (a trace's own times, all at once)
        the requests are dealt out instead.

        Args:
          ranks: That share the requests.

        Returns:
          The arrivals of one rank, and of how many conversations one is its own.

        Source: tpu-inference 0.32.0, core/sched/dp_scheduler.py gives each request to one rank.
        """
        rate, most = self.request_rate, self.max_concurrency
        one = dataclasses.replace(
            self,
            request_rate=rate / ranks if rate else None,
            max_concurrency=-(-most // ranks) if most else None,
        )
        return one, 1 if rate or self.process is Process.CLOSED_LOOP else ranks

    def apply(self, requests: Sequence[Request], *, seed: int) -> tuple[Request, ...]:
        """The same requests in the same order, arriving as this process says.

        Waits between turns of a conversation shrink with the times of a trace.
        """
        given = np.array([r.arrival_s for r in requests])
        times = self._times_s(given, seed)
        scale = self._scale(given)
        return tuple(
            dataclasses.replace(request, arrival_s=float(time), wait_s=request.wait_s * scale)
            for request, time in zip(requests, times, strict=True)
        )

    def _scale(self, given: Float64Array) -> float:
        """By how much times of a trace are stretched."""
        if self.process not in (None, Process.TRACE) or not self.request_rate or given[-1] <= 0:
            return 1.0
        return (len(given) - 1) / float(given[-1]) / self.request_rate

    def _times_s(self, given: Float64Array, seed: int) -> Float64Array:
        if self.process in (Process.AT_ONCE, Process.CLOSED_LOOP):
            return np.zeros(len(given))
        if self.process in (None, Process.TRACE):
            return np.asarray(given * self._scale(given))
        shape = 1.0 if self.process is Process.POISSON else self.burstiness
        mean_s = 1.0 / (self.request_rate or 1.0)
        gaps = np.random.default_rng(seed).gamma(shape, mean_s / shape, len(given))
        times: Float64Array = np.cumsum(gaps) - gaps[0]
        return times
