"""Answers from evaluations made before, so that search is tested with no compiler and no chip."""

from collections.abc import Iterable, Iterator

from rpa_tune.candidate import Candidate, Evaluation, Fidelity
from rpa_tune.evaluate.evaluator import AbstractEvaluator
from rpa_tune.workload.workload import Workload


class ReplayEvaluator(AbstractEvaluator):
    """Gives the recorded answers back, and counts how many were asked for."""

    def __init__(self, evaluations: Iterable[Evaluation], fidelity: Fidelity) -> None:
        """Keeps the last answer of `fidelity` for each candidate.

        Args:
          evaluations: For example those of a store.
          fidelity: Others are left out.
        """
        self._fidelity = fidelity
        self._answers = {e.candidate.digest: e for e in evaluations if e.fidelity is fidelity}
        self.num_asked = 0

    @property
    def fidelity(self) -> Fidelity:
        """That of the recorded answers."""
        return self._fidelity

    def evaluate_all(
        self, candidates: Iterable[Candidate], workload: Workload
    ) -> Iterator[Evaluation]:
        """The recorded answers in the order given; see `AbstractEvaluator`.

        Raises:
          KeyError: A candidate was never evaluated.
        """
        for candidate in candidates:
            if candidate.workload != workload.digest:
                raise ValueError(
                    f"candidate is for workload {candidate.workload}, not {workload.digest}"
                )
            self.num_asked += 1
            if candidate.digest not in self._answers:
                raise KeyError(
                    f"no {self._fidelity.name} answer recorded for {candidate.to_dict()}"
                )
            yield self._answers[candidate.digest]

    def close(self) -> None:
        """Nothing is held."""
