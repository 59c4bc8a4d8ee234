"""The main loop: `run_study` climbs the ladder for one study, `run` does so for all.

Everything that decides what happens next is a function of the answers, so a sweep that was
stopped anywhere goes on to the same result: questions it had answers to are answered by the
store.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from rpa_kernels.infeasible import Infeasible
from rpa_tune.candidate import Candidate, Evaluation, Fidelity
from rpa_tune.evaluate.evaluator import AbstractEvaluator
from rpa_tune.evaluate.interpreted import stand_in
from rpa_tune.families import load_family, public_family
from rpa_tune.promote import Decision, decide, make_row
from rpa_tune.provenance import provenance
from rpa_tune.space.space import Space
from rpa_tune.store.codec import stamp_of
from rpa_tune.store.journal import MAX_ATTEMPTS, Journal
from rpa_tune.sweep.rungs import Stop, dominated, not_asked, timeless
from rpa_tune.sweep.sampler import AbstractSampler, make_sampler
from rpa_tune.sweep.seeds import neighbour_seeds
from rpa_tune.sweep.study import Study
from rpa_tune.sweep.watch import Watch
from rpa_tune.tables.row import TableRow

Evaluators = Mapping[Fidelity, AbstractEvaluator]


class BudgetSpentError(Exception):
    """The time is up; everything answered so far is in the store."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StudyResult:
    """What came out of one study.

    Attributes:
      study: What was searched.
      space: Where.
      decision: What a table should say, or None when nothing has a time.
      answers: Answers of the highest fidelity, in the order they were asked for.
      stops: Candidates that were left behind on the way, with reasons.
      num_asked: Evaluations that the store did not know.
      verified: How the row's configs were compared with the reference; empty when they were not.
    """

    study: Study
    space: Space
    decision: Decision | None
    answers: tuple[Evaluation, ...]
    stops: tuple[Stop, ...]
    num_asked: int
    verified: str = ""

    def row(self) -> TableRow | None:
        """The table row, or None without a decision."""
        if self.decision is None:
            return None
        return make_row(
            self.decision,
            self.answers,
            self.study.workload,
            max_configs=self.study.search.configs,
            verified=self.verified,
        )


@dataclass(kw_only=True, slots=True)
class Sweep:
    """What all studies of a run share.

    Attributes:
      evaluators: By fidelity; the studies climb them in rising order. An interpreting one is no
        rung: it says whether what is about to be promoted is right. Without it nobody asks.
      journal: The store, open for writing.
      watch: Who is told.
      deadline: `time.monotonic()` at which the budget is spent, or None.
      num_asked: Evaluations made so far.
      decisions: Of the studies finished so far.
    """

    evaluators: Evaluators
    journal: Journal
    watch: Watch
    deadline: float | None = None
    num_asked: int = 0
    decisions: list[Decision] = field(default_factory=list)

    def run(self, studies: Sequence[Study]) -> Iterator[StudyResult]:
        """Runs the studies in turn; each result is final when it is yielded.

        Raises:
          BudgetSpentError: The budget ran out; the studies not yet yielded can be resumed.
        """
        for study in studies:
            result = self.run_study(study)
            if result.decision is not None:
                self.decisions.append(result.decision)
            self.watch.study_finished(result)
            yield result

    def run_study(self, study: Study) -> StudyResult:
        """Climbs the ladder: many cheap answers, few dear ones."""
        space, first_asked = study.space(), self.num_asked
        self.watch.study_started(study, space)
        heuristic = study.heuristic()
        seeds = [] if isinstance(heuristic, Infeasible) else [heuristic]
        seeds += neighbour_seeds(study, self.decisions)
        pool = [study.candidate(config) for config in dict.fromkeys([*seeds, *space.configs])]
        answers: list[Evaluation] = []
        stops: list[Stop] = []
        bounds: dict[Any, float] = {}
        for fidelity in sorted(set(self.evaluators) - {Fidelity.INTERPRETED}):
            # Analytical answers cost microseconds: every config gets one. The others are chosen.
            sampler = make_sampler(
                "exhaustive" if fidelity is Fidelity.ANALYTICAL else study.search.sampler,
                space,
                [candidate.config for candidate in pool],
                bounds,
                num_seeds=len(seeds),
                search=study.search,
            )
            answers, skipped = self._ask(study, space, sampler, fidelity)
            stops += [*skipped, *timeless(answers), *not_asked(pool, answers, skipped, bounds)]
            bounds = {a.candidate.config: a.time_us for a in answers if a.time_us is not None}
            pool = [candidate for candidate in pool if candidate.config in bounds]
            seeds = [config for config in seeds if config in bounds]
        result = self._verified(
            StudyResult(
                study=study,
                space=space,
                decision=_decide(answers, heuristic),
                answers=tuple(answers),
                stops=tuple(stops),
                num_asked=0,
            ),
            heuristic,
        )
        return replace(result, num_asked=self.num_asked - first_asked)

    def _verified(self, result: StudyResult, heuristic: Any) -> StudyResult:
        """The result once every config of its row is right; a wrong one makes way for the next.

        What could not be checked (a timeout, a crash) is not promoted either.
        """
        if Fidelity.INTERPRETED not in self.evaluators or public_family(result.study.family):
            return result  # a public kernel is not ours to verify; its row says so
        family = load_family(result.study.family)
        while row := result.row():
            configs = [family.config_from_dict(fields) for fields in row.configs]
            checks = {config: self._check(config, result.study) for config in configs}
            wrong = {config: check for config, check in checks.items() if not check.ok}
            if not wrong:
                how = dict.fromkeys(str(check.metrics.get("how", "")) for check in checks.values())
                return replace(result, verified="; ".join(how))
            answers = tuple(_struck_out(a, wrong.get(a.candidate.config)) for a in result.answers)
            struck = [a for a in answers if a.candidate.config in wrong]
            result = replace(
                result,
                decision=_decide(answers, heuristic),
                answers=answers,
                stops=(*result.stops, *timeless(struck)),
            )
        return result

    def _check(self, config: Any, study: Study) -> Evaluation:
        """The interpreter's answer about one config."""
        candidate, workload = stand_in(study.candidate(config))
        stood_in = replace(study, problem=candidate.problem, workload=workload)
        return self._evaluate([candidate], stood_in, Fidelity.INTERPRETED)[0]

    def _ask(
        self, study: Study, space: Space, sampler: AbstractSampler, fidelity: Fidelity
    ) -> tuple[list[Evaluation], list[Stop]]:
        """Puts a sampler's questions to the store, and what it does not know to an evaluator."""
        answers: list[Evaluation] = []
        skipped: list[Stop] = []
        while wave := [study.candidate(config) for config in sampler.ask()]:
            stops = {c.digest: stop for c in wave if (stop := dominated(c, answers, space.axes))}
            told = self._evaluate([c for c in wave if c.digest not in stops], study, fidelity)
            skipped += stops.values()
            answers += told
            sampler.tell(told)
        return answers, skipped

    def _evaluate(
        self, wave: Sequence[Candidate], study: Study, fidelity: Fidelity
    ) -> list[Evaluation]:
        """Answers to a wave, in its order; every new one is stored as soon as it is there."""
        stamp = stamp_of(provenance(study.family))
        found = (self.journal.find(c, fidelity, stamp) for c in wave)
        answers = {answer.candidate.digest: answer for answer in found if answer}
        self.watch.wave_started(study, fidelity, len(wave), len(answers))
        todo = [c for c in wave if c.digest not in answers]
        for _ in range(MAX_ATTEMPTS):
            if not todo:
                break
            self._check_budget()
            for evaluation in self.evaluators[fidelity].evaluate_all(todo, study.workload):
                self.journal.append(evaluation)
                answers[evaluation.candidate.digest] = evaluation
                self.num_asked += 1
                self.watch.answered(study, evaluation)
                self._check_budget()
            todo = [c for c in todo if self.journal.find(c, fidelity, stamp) is None]
        return [answers[c.digest] for c in wave]

    def _check_budget(self) -> None:
        if self.deadline is not None and time.monotonic() > self.deadline:
            raise BudgetSpentError


def _decide(answers: Sequence[Evaluation], heuristic: Any) -> Decision | None:
    return decide(answers, next((a for a in answers if a.candidate.config == heuristic), None))


def _struck_out(answer: Evaluation, wrong: Evaluation | None) -> Evaluation:
    """An answer without its time, if the interpreter objects to the config."""
    if wrong is None:
        return answer
    return replace(answer, status=wrong.status, detail=wrong.detail, time_us=None, batch_us=())
