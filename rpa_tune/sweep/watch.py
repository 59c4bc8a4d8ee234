"""What a sweep tells its surroundings while it runs. The default listens to nothing."""

from collections.abc import Sequence
from types import TracebackType
from typing import Self

from rpa_tune.candidate import Evaluation, Fidelity
from rpa_tune.space.space import Space
from rpa_tune.sweep.result import StudyResult
from rpa_tune.sweep.study import Study


class Watch:
    """Callbacks of a running sweep, inside its `with`; replace those that matter."""

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

    def sweep_started(self, studies: Sequence[Study]) -> None:
        """The studies of this run are known."""

    def study_started(self, study: Study, space: Space) -> None:
        """A study begins; its space is known."""

    def wave_started(self, study: Study, fidelity: Fidelity, num: int, num_known: int) -> None:
        """`num` candidates are asked at `fidelity`; the store knows `num_known` of them."""

    def answered(self, study: Study, evaluation: Evaluation) -> None:
        """An evaluator answered, and the answer is in the store. Bounds are not told."""

    def study_finished(self, result: StudyResult) -> None:
        """A study is decided."""
