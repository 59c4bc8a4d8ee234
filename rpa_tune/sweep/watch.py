"""What a sweep tells its surroundings while it runs: records, and who is told them.

The default listens to nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from rpa_tune.candidate import Evaluation, Method
from rpa_tune.space.space import Space
from rpa_tune.sweep.result import StudyResult
from rpa_tune.sweep.study import Study


@dataclass(frozen=True, kw_only=True, slots=True)
class SweepStarted:
    """The studies of this run are known."""

    studies: Sequence[Study]


@dataclass(frozen=True, kw_only=True, slots=True)
class StudyStarted:
    """A study begins; its space is known."""

    study: Study
    space: Space


@dataclass(frozen=True, kw_only=True, slots=True)
class WaveStarted:
    """Candidates are asked.

    Attributes:
      study: Theirs.
      fidelity: How they are answered.
      num: How many.
      num_known: How many of them the store knows.
    """

    study: Study
    fidelity: Method
    num: int
    num_known: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Answered:
    """An evaluator answered, and the answer is in the store. Bounds are not told."""

    study: Study
    evaluation: Evaluation


@dataclass(frozen=True, kw_only=True, slots=True)
class StudyFinished:
    """A study is decided."""

    result: StudyResult


Event = SweepStarted | StudyStarted | WaveStarted | Answered | StudyFinished


class Watch:
    """Is told every event of a running sweep, inside its `with`, by one thread at a time."""

    def __enter__(self) -> Self:
        """The sweep begins."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """The sweep has ended."""

    def tell(self, event: Event) -> None:
        """Something happened."""
