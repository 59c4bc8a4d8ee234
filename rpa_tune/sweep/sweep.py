"""The main loop: `run_study` climbs the ladder for one study, `run` does so for all.

Everything that decides what happens next is a function of the answers, so a sweep that was
stopped anywhere goes on to the same result: questions it had answers to are answered by the
store.
"""

import queue
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from rpa_kernels.infeasible import Infeasible
from rpa_tune.candidate import Correctness, Evaluation, Fidelity
from rpa_tune.decide.promote import Decision, decide
from rpa_tune.space.space import Space
from rpa_tune.store.doubt import MOST_ALIKE, fail_alike
from rpa_tune.store.journal import Journal
from rpa_tune.sweep.agreement import compare
from rpa_tune.sweep.lineup import Place, line_up
from rpa_tune.sweep.oracle import Evaluators, Oracle
from rpa_tune.sweep.result import StudyResult
from rpa_tune.sweep.rungs import Finalists, Stop, dominated, not_asked, timeless
from rpa_tune.sweep.sampler import AbstractSampler, Search
from rpa_tune.sweep.sampler_choice import make_sampler
from rpa_tune.sweep.seeds import Winner, decided, neighbour_seeds
from rpa_tune.sweep.study import Study
from rpa_tune.sweep.watch import StudyFinished, StudyStarted, SweepStarted, Watch

if TYPE_CHECKING:
    from rpa_tune.sweep.exchange import Exchange


@dataclass(kw_only=True, slots=True)
class Sweep:
    """What all studies of a run share.

    Attributes:
      evaluators: By fidelity: an analytical and a simulating one, and a measuring one where there
        is a TPU. An interpreting one is no rung: it says whether what is about to be promoted is
        right. Without it nothing is verified.
      chip_here: The chip that the measuring evaluator has; studies of others are not measured.
      journal: The store, open for writing.
      watch: Who is told.
      deadline: `time.monotonic()` at which the budget is spent, or None.
      num_together: Studies that run side by side.
      num_shards: Runs that the studies are dealt out to; see `lineup.py`.
      winners: Configs that won before this run; searches start from those of their neighbours.
      exchange: Shares every study with other runs; None when there are none. Closed by its owner.
      oracle: Who answers, and remembers.
    """

    evaluators: Evaluators
    journal: Journal
    watch: Watch
    deadline: float | None = None
    num_together: int = 1
    num_shards: int = 1
    winners: Sequence[Winner] = ()
    chip_here: str = ""
    exchange: "Exchange | None" = None
    oracle: Oracle = field(init=False)

    def __post_init__(self) -> None:
        """Makes the oracle that the studies share."""
        self.oracle = Oracle(
            evaluators=self.evaluators,
            journal=self.journal,
            watch=self.watch,
            deadline=self.deadline,
            exchange=self.exchange,
        )

    @property
    def num_asked(self) -> int:
        """Evaluations made so far."""
        return self.oracle.num_asked

    def run(self, studies: Sequence[Study], *, shard: int = 0) -> Iterator[StudyResult]:
        """Runs the studies side by side; each result is final when it is yielded.

        What a study asks is a function of the plan and of the answers, whatever else is running.
        When it ends early, by an error or because no more results are wanted, the evaluators are
        closed.

        Args:
          studies: All of a plan.
          shard: Run those of this shard only; 0 for all.

        Raises:
          BudgetSpentError: The budget ran out; the studies not yet yielded can be resumed.
        """
        places = [p for p in line_up(studies, self.num_shards) if shard in (0, p.shard)]
        mine = [studies[place.index] for place in places]
        self.oracle.tell(SweepStarted(studies=mine))
        for place in places:
            self.oracle.note(studies[place.index].note())
        decisions: dict[int, Decision | None] = {}
        ended: queue.SimpleQueue[tuple[int, StudyResult | BaseException]] = queue.SimpleQueue()
        threads: dict[int, threading.Thread] = {}

        def work(place: Place) -> None:
            found = [decisions[teacher] for teacher in place.teachers]
            outcome: StudyResult | BaseException
            try:
                outcome = self.run_study(studies[place.index], [d for d in found if d])
            except BaseException as error:
                outcome = error
            ended.put((place.index, outcome))

        try:
            while places or threads:
                ready = [p for p in places if all(t in decisions for t in p.teachers)]
                if self.exchange is not None:
                    self.exchange.shuffle(ready)
                for place in ready[: self.num_together - len(threads)]:
                    places.remove(place)
                    threads[place.index] = threading.Thread(target=work, args=(place,))
                    threads[place.index].start()
                index, outcome = ended.get()
                threads.pop(index).join()
                if isinstance(outcome, BaseException):
                    raise outcome
                decisions[index] = outcome.decision
                self._note_end(outcome)
                yield outcome
        finally:
            if threads:
                self.oracle.stop()
            for thread in threads.values():
                thread.join()

    def _note_end(self, result: StudyResult) -> None:
        """Stores what a study came to, and has the watch told."""
        self.oracle.note(result.note())
        self.oracle.tell(StudyFinished(result=result))

    def run_study(self, study: Study, decisions: Sequence[Decision] = ()) -> StudyResult:
        """Climbs the ladder: many cheap answers, few dear ones.

        Args:
          study: What to search.
          decisions: Of studies whose winners it starts from.
        """
        space = study.space()
        self.oracle.tell(StudyStarted(study=study, space=space))
        heuristic = study.heuristic()
        seeds = [] if isinstance(heuristic, Infeasible) else [heuristic]
        seeds += neighbour_seeds(study, [*decided(decisions), *self.winners])
        found = self._search(study, space, seeds)
        answers, stops, gave_up = found.answers, found.stops, found.gave_up
        result = StudyResult(
            study=study,
            space=space,
            decision=_decide(answers, heuristic, study.search),
            answers=tuple(answers),
            stops=tuple(stops),
            num_asked=0,
            gave_up=gave_up,
            bounds_us=found.bounds_us,
        )
        if self._is_measured(study):
            result = self._measured(result, heuristic)
        result = self._verified(result, heuristic)
        return replace(result, num_asked=self.oracle.num_asked_by(study))

    def _search(self, study: Study, space: Space, seeds: Sequence[Any]) -> "_Found":
        """Bounds all of a space, and simulates some."""
        pool = [study.candidate(config) for config in dict.fromkeys([*seeds, *space.configs])]
        answers: list[Evaluation] = []
        stops: list[Stop] = []
        below: dict[Any, Evaluation] = {}
        bounds: dict[str, float] = {}
        gave_up = ""
        for fidelity in (Fidelity.ANALYTICAL, Fidelity.SIMULATED):
            num_seeds = sum(candidate.config in seeds for candidate in pool)
            sampler = make_sampler(
                _sampler_kind(fidelity, study.search), space, [c.config for c in pool], below,
                num_seeds=num_seeds, search=study.search,
            )  # fmt: skip
            answers, skipped, gave_up = self._ask(study, space, sampler, fidelity)
            stops += [*skipped, *timeless(answers)]
            stops += not_asked(
                pool, answers, skipped, below, objective=study.search.objective, gave_up=gave_up
            )
            below = {answer.candidate.config: answer for answer in answers if answer.ok}
            pool = [candidate for candidate in pool if candidate.config in below]
            if fidelity is Fidelity.ANALYTICAL:
                bounds = {a.candidate.digest: a.time_us or 0.0 for a in below.values()}
        asked = {answer.candidate.digest for answer in answers}
        bounds_us = {digest: us for digest, us in bounds.items() if digest in asked}
        if bounds:
            bounds_us["least"] = min(bounds.values())
        return _Found(answers=answers, stops=stops, gave_up=gave_up, bounds_us=bounds_us)

    def _is_measured(self, study: Study) -> bool:
        """Whether a study's finalists are measured: where its chip is, if they can be launched."""
        is_here = Fidelity.MEASURED in self.evaluators and study.chip.name == self.chip_here
        return is_here and study.search.measure > 0 and study.family.is_launched

    def _measured(self, result: StudyResult, heuristic: Any) -> StudyResult:
        """The result by what the device says about the finalists.

        A config that fails there is never promoted, and neither is one that was not measured.
        """
        study = result.study
        finalists = Finalists(result.answers, study.search, always=[heuristic])
        answers, skipped, gave_up = self._ask(study, result.space, finalists, Fidelity.MEASURED)
        simulated = {answer.candidate.config: answer for answer in result.answers if answer.ok}
        left = finalists.left_behind()
        if gave_up:
            pool = [answer.candidate for answer in simulated.values()]
            objective = study.search.objective
            left = not_asked(pool, answers, skipped, {}, objective=objective, gave_up=gave_up)
        return replace(
            result,
            decision=_decide(answers, heuristic, study.search),
            answers=tuple(answers),
            stops=(*result.stops, *skipped, *timeless(answers), *left),
            agreement=compare(simulated, answers, study.search.objective),
            simulated_best=finalists.best,
            gave_up=result.gave_up or gave_up,
        )

    def _verified(self, result: StudyResult, heuristic: Any) -> StudyResult:
        """The result once every config of its row is right; a wrong one makes way for the next.

        What could not be checked (a timeout, a crash) is not promoted either.
        """
        family = result.study.family
        if Correctness.INTERPRETED not in self.evaluators or family.unverified:
            return result  # its row says so
        asked: dict[Any, Evaluation] = {}
        while row := result.row():
            configs = [family.config_from_dict(fields) for fields in row.configs]
            checks = {config: self.oracle.verify(config, result.study) for config in configs}
            asked |= checks
            if gave_up := _why_give_up(list(asked.values())):
                stops = (*result.stops, *timeless(list(asked.values())))
                return replace(result, decision=None, stops=stops, gave_up=gave_up)
            wrong = {config: check for config, check in checks.items() if not check.ok}
            if not wrong:
                how = dict.fromkeys(str(check.metrics.get("how", "")) for check in checks.values())
                return replace(result, verified="; ".join(how))
            answers = tuple(_struck_out(a, wrong.get(a.candidate.config)) for a in result.answers)
            struck = [a for a in answers if a.candidate.config in wrong]
            result = replace(
                result,
                decision=_decide(answers, heuristic, result.study.search),
                answers=answers,
                stops=(*result.stops, *timeless(struck)),
            )
        return result

    def _ask(
        self, study: Study, space: Space, sampler: AbstractSampler, fidelity: Fidelity
    ) -> tuple[list[Evaluation], list[Stop], str]:
        """Puts a sampler's questions to the store, and what it does not know to an evaluator.

        Returns:
          The answers, why some were not asked for, and why it gave up, if it did. The first to be
          simulated, with the heuristic at their head, go ahead of the rest of their wave.
        """
        answers: list[Evaluation] = []
        skipped: list[Stop] = []
        while wave := [study.candidate(config) for config in sampler.ask()]:
            stops = {c.digest: stop for c in wave if (stop := dominated(c, answers, space.axes))}
            skipped += stops.values()
            todo = [c for c in wave if c.digest not in stops]
            told: list[Evaluation] = []
            while todo:
                # Bounds cost nothing, and who is measured takes turns with the others of a wave.
                is_start = fidelity is Fidelity.SIMULATED and len(answers) < MOST_ALIKE
                size = MOST_ALIKE - len(answers) if is_start else len(todo)
                part, todo = todo[:size], todo[size:]
                new = self.oracle.ask(part, study, fidelity)
                told += new
                answers += new
                if gave_up := _why_give_up(answers):
                    return answers, skipped, gave_up
            sampler.tell(told)
        return answers, skipped, ""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Found:
    """What a search came to.

    Attributes:
      answers: Simulated.
      stops: Why others have none.
      gave_up: Why it ended early; empty if it did not.
      bounds_us: `StudyNote.bounds_us`.
    """

    answers: list[Evaluation]
    stops: list[Stop]
    gave_up: str
    bounds_us: dict[str, float]


def _sampler_kind(fidelity: Fidelity, search: Search) -> str:
    """Only who is simulated is searched for: every config gets its bound."""
    return search.sampler if fidelity is Fidelity.SIMULATED else "exhaustive"


def _why_give_up(answers: Sequence[Evaluation]) -> str:
    """Why it is no use to ask more: as many answers as that takes, and one reason for all."""
    if len(answers) < MOST_ALIKE or not fail_alike(answers):
        return ""
    return f"the first {len(answers)} all failed with the same error; the next run retries"


def _decide(answers: Sequence[Evaluation], heuristic: Any, search: Search) -> Decision | None:
    known = next((a for a in answers if a.candidate.config == heuristic), None)
    return decide(answers, known, objective=search.objective)


def _struck_out(answer: Evaluation, wrong: Evaluation | None) -> Evaluation:
    """An answer without its time, if the interpreter objects to the config."""
    if wrong is None:
        return answer
    return replace(answer, status=wrong.status, detail=wrong.detail, time_us=None, batch_us=())
