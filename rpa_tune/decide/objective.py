"""What "better" means: one loss for each answer, lower is better.

`expected_time` is the mean over the workload's steps. `worst_regret` is how many times slower than
the best known config a config is on the step where it does worst: for who must keep every step
fast rather than the sum of them.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rpa_tune.candidate import Evaluation

EXPECTED_TIME = "expected_time"
WORST_REGRET = "worst_regret"
OBJECTIVES = (EXPECTED_TIME, WORST_REGRET)


@dataclass(frozen=True, kw_only=True, slots=True)
class Yardstick:
    """How answers to one problem are compared; losses of two yardsticks are not comparable.

    Attributes:
      objective: One of `OBJECTIVES`.
      best_us: Least known time of each batch, in the order of `Evaluation.batch_us`.
    """

    objective: str
    best_us: tuple[float, ...]

    def loss(self, answer: Evaluation) -> float:
        """The loss of an answer; of a lower bound, a lower bound.

        Raises:
          ValueError: The answer has no time.
        """
        if answer.time_us is None:
            raise ValueError(f"no time: {answer.status.value} {answer.detail}")
        return self.of_times(answer.time_us, answer.batch_us)

    def of_times(self, time_us: float, batch_us: Sequence[float]) -> float:
        """The loss of an expected time and the times of the batches that it is the mean of.

        Returns:
          Microseconds; for `worst_regret` a ratio to the best known, from 1.
        """
        if self.objective == EXPECTED_TIME:
            return time_us
        return max(us / best for us, best in zip(batch_us, self.best_us, strict=True))

    def show(self, loss: float) -> str:
        """A loss with its unit."""
        return f"{loss:.1f} us" if self.objective == EXPECTED_TIME else f"{loss:.3f}x the best"


def yardstick(answers: Iterable[Evaluation], objective: str) -> Yardstick:
    """The yardstick that a set of answers makes; those without a time are left out."""
    timed = [answer.batch_us for answer in answers if answer.ok]
    return Yardstick(
        objective=objective,
        best_us=tuple(min(column) for column in zip(*timed, strict=True)),
    )
