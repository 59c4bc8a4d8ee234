"""Answers to candidates: from the store, or from an evaluator, and then into the store.

Bounds are the exception: they are computed sooner than read, so no store keeps them.

Studies that run side by side in threads share one oracle. It lets one of them at a time touch the
store and the watch, and asks nothing twice: a study waits for what another one is asking. With an
exchange, it waits for what another run is asking, too.
"""

import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from rpa_tune.candidate import Candidate, Correctness, Evaluation, Fidelity, Method
from rpa_tune.evaluate.evaluator import AbstractEvaluator
from rpa_tune.evaluate.interpreted import stand_in
from rpa_tune.provenance import provenance
from rpa_tune.store.codec import stamp_of
from rpa_tune.store.doubt import MAX_ATTEMPTS
from rpa_tune.store.journal import Journal
from rpa_tune.store.notes import StudyNote, StudyPlan
from rpa_tune.sweep.study import Study
from rpa_tune.sweep.watch import Answered, Event, Watch, WaveStarted

if TYPE_CHECKING:
    from rpa_tune.sweep.exchange import Exchange

Evaluators = Mapping[Method, AbstractEvaluator]


class BudgetSpentError(Exception):
    """The time is up; everything answered so far is in the store."""


class StoppedError(Exception):
    """The sweep is being ended from outside; everything answered so far is in the store."""


class Oracle:
    """What every study of a run asks."""

    def __init__(
        self,
        *,
        evaluators: Evaluators,
        journal: Journal,
        watch: Watch,
        deadline: float | None = None,
        exchange: "Exchange | None" = None,
    ) -> None:
        """Asks nothing yet.

        Args:
          evaluators: By fidelity.
          journal: The store, open for writing.
          watch: Who is told.
          deadline: `time.monotonic()` at which the budget is spent, or None.
          exchange: Shares the work with other runs; None when there are none.
        """
        self._exchange = exchange
        self.evaluators = evaluators
        self.watch = watch
        self.num_asked = 0
        self._num_asked_by: dict[str, int] = {}
        self._journal = journal
        self._deadline = deadline
        self._is_stopped = False
        self._monitor = threading.Condition(threading.RLock())
        self._being_asked: set[tuple[str, Method]] = set()

    def ask(self, wave: Sequence[Candidate], study: Study, fidelity: Method) -> list[Evaluation]:
        """Answers to a wave, in its order; every new one is stored as soon as it is there.

        Args:
          wave: Candidates of the study.
          study: Names the workload that they are judged on.
          fidelity: Which evaluator answers.

        Raises:
          BudgetSpentError: The budget ran out.
          StoppedError: `stop` was called.
        """
        if fidelity is Fidelity.ANALYTICAL:
            return self._bounds(wave, study)
        stamp = stamp_of(provenance(study.family.digest), fidelity)
        keys = {(candidate.digest, fidelity) for candidate in wave}
        with self._monitor:
            while keys & self._being_asked:
                self._monitor.wait()
                self._check()
            found = (self._journal.find(c, fidelity, stamp) for c in wave)
            answers = {answer.candidate.digest: answer for answer in found if answer}
            self.watch.tell(
                WaveStarted(study=study, fidelity=fidelity, num=len(wave), num_known=len(answers))
            )
            self._being_asked |= keys
        try:
            todo = [c for c in wave if c.digest not in answers]
            for _ in range(MAX_ATTEMPTS):
                if not todo:
                    break
                self._check()
                for evaluation, is_new in self._evaluate(todo, study, fidelity, stamp):
                    answers[evaluation.candidate.digest] = evaluation
                    self._keep(evaluation, study, is_new)
                with self._monitor:
                    todo = [c for c in todo if self._journal.find(c, fidelity, stamp) is None]
        finally:
            with self._monitor:
                self._being_asked -= keys
                self._monitor.notify_all()
        return [answers[c.digest] for c in wave]

    def verify(self, config: Any, study: Study) -> Evaluation:
        """The interpreter's answer about a config of a study, got on its stand-in.

        Raises:
          BudgetSpentError, StoppedError: See `ask`.
        """
        candidate, workload = stand_in(study.candidate(config))
        stood_in = replace(study, problem=candidate.problem, workload=workload)
        return self.ask([candidate], stood_in, Correctness.INTERPRETED)[0]

    def num_asked_by(self, study: Study) -> int:
        """Evaluations that a study cost."""
        with self._monitor:
            return self._num_asked_by.get(study.name, 0)

    def note(self, note: StudyPlan | StudyNote) -> None:
        """Stores what is planned for a study, or what it came to."""
        with self._monitor:
            self._journal.append_note(note)

    def tell(self, event: Event) -> None:
        """Has the watch told, one thread at a time."""
        with self._monitor:
            self.watch.tell(event)

    def stop(self) -> None:
        """Makes every study end at its next answer, and frees what the evaluators hold."""
        with self._monitor:
            self._is_stopped = True
            self._monitor.notify_all()
        for evaluator in self.evaluators.values():
            evaluator.close()

    def _bounds(self, wave: Sequence[Candidate], study: Study) -> list[Evaluation]:
        """Lower bounds of a wave, in its order."""
        self.tell(
            WaveStarted(study=study, fidelity=Fidelity.ANALYTICAL, num=len(wave), num_known=0)
        )
        bounds = {}
        for bound in self.evaluators[Fidelity.ANALYTICAL].evaluate_all(wave, study.workload):
            bounds[bound.candidate] = bound
            self._check()
        return [bounds[candidate] for candidate in wave]

    def _evaluate(
        self, todo: Sequence[Candidate], study: Study, fidelity: Method, stamp: Sequence[str]
    ) -> Iterator[tuple[Evaluation, bool]]:
        """Answers, and whether this run found them."""
        evaluator = self.evaluators[fidelity]
        if self._exchange is None:
            for evaluation in evaluator.evaluate_all(todo, study.workload):
                yield evaluation, True
            return
        yield from self._exchange.share(
            todo,
            lambda mine: evaluator.evaluate_all(mine, study.workload),
            study=study,
            fidelity=fidelity,
            stamp=stamp,
            check=self._check,
        )

    def _keep(self, evaluation: Evaluation, study: Study, is_new: bool) -> None:
        with self._monitor:
            self._journal.append(evaluation)
            self.num_asked += is_new
            self._num_asked_by[study.name] = self._num_asked_by.get(study.name, 0) + is_new
            self.watch.tell(Answered(study=study, evaluation=evaluation))
            self._check()

    def _check(self) -> None:
        if self._is_stopped:
            raise StoppedError
        if self._deadline is not None and time.monotonic() > self._deadline:
            raise BudgetSpentError
