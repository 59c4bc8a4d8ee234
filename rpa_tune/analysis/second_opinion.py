"""What the compiler's own cost model says of a candidate, beside our simulator."""

from dataclasses import dataclass
from typing import Any

from rpa_tune.analysis.question import Question
from rpa_tune.candidate import Status
from rpa_tune.compile.pool import WorkerPool
from rpa_tune.compile.static_profile import (
    TASK,
    Operation,
    StaticProfile,
    profile_environment,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class SecondOpinion:
    """The compiler's estimates, in microseconds at the chip's nominal clock.

    Attributes:
      profile: As the compiler wrote it; see there for what it does not follow.
      clock_hz: Of a TensorCore.
    """

    profile: StaticProfile
    clock_hz: float

    @property
    def around_us(self) -> float | None:
        """XLA's operations around the kernel, one after the other; None without a profile."""
        if self.profile.status is not Status.OK:
            return None
        return self.profile.around_cycles / self.clock_hz * 1e6

    def us(self, operation: Operation) -> float:
        """Of all executions of an operation."""
        return operation.cycles * operation.count / self.clock_hz * 1e6

    def to_dict(self) -> dict[str, Any]:
        """The JSON form."""
        profile, kernel = self.profile, self.profile.kernel
        return {
            "status": profile.status.value,
            "detail": profile.detail,
            "around_us": self.around_us,
            "around": [
                {"name": one.name, "count": one.count, "us": self.us(one)} for one in profile.around
            ],
            "kernel_us": self.us(kernel) if kernel else None,
            "kernel_instructions": profile.kernel_instructions,
        }


def second_opinion(question: Question, *, deadline_s: float) -> SecondOpinion:
    """Compiles a candidate once more, with the compiler's estimates written down.

    Args:
      question: Its workload plays no part: the program's shapes are static.
      deadline_s: Time limit, seconds.

    Raises:
      RpaTuneError: Workers cannot be started at all.
    """
    candidate = question.candidate
    with WorkerPool(num_workers=1, deadline_s=deadline_s, environment=profile_environment) as pool:
        (reply,) = pool.map_unordered(TASK, [candidate])
    if reply.failure is not None:
        profile = StaticProfile(status=Status.COMPILE_FAILED, detail=reply.failure.detail)
    else:
        profile = reply.value
    return SecondOpinion(profile=profile, clock_hz=candidate.chip.clock_hz)
