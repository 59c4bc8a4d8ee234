"""What came out of one study, as its callers, the store and the tables want it."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING

from rpa_kernels.family import config_to_dict
from rpa_kernels.infeasible import Infeasible
from rpa_tune.candidate import Evaluation
from rpa_tune.decide.promote import Decision, make_row
from rpa_tune.space.space import Space
from rpa_tune.store.notes import Stopped, StudyNote
from rpa_tune.sweep.agreement import Agreement
from rpa_tune.sweep.rungs import Stop
from rpa_tune.sweep.study import Study
from rpa_tune.tables.key import beyond_key, tuning_key
from rpa_tune.tables.row import TableRow

NOTHING_WORKS = "no config works"
NO_COMPARISON = "the heuristic has no time"
if TYPE_CHECKING:
    import pandas as pd


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
      agreement: Measured against simulated; None when nothing was measured.
      simulated_best: What the simulator thought best of those that were measured; None when
        nothing was, or had a simulated time.
      gave_up: Why the study ended before it had asked all it could; empty if it did not. The next
        run asks again.
      bounds_us: `StudyNote.bounds_us`.
    """

    study: Study
    space: Space
    decision: Decision | None
    answers: tuple[Evaluation, ...]
    stops: tuple[Stop, ...]
    num_asked: int
    verified: str = ""
    agreement: Agreement | None = None
    simulated_best: Evaluation | None = None
    gave_up: str = ""
    bounds_us: Mapping[str, float] = field(default_factory=dict)

    @property
    def verdict(self) -> str:
        """`tuned` or `heuristic`, or why there is no row."""
        if self.decision is not None:
            return self.decision.verdict
        timed = not self.gave_up and any(answer.ok for answer in self.answers)
        return NO_COMPARISON if timed else NOTHING_WORKS

    def note(self) -> StudyNote:
        """What the store keeps of it beside the answers."""
        row = self.row()
        return StudyNote(
            name=self.study.name,
            study=self.study.digest,
            verdict=self.decision.verdict if self.decision else "",
            stopped=tuple(
                Stopped(reason=s.reason, detail=s.detail, config=config_to_dict(s.candidate.config))
                for s in self.stops
            ),
            agreement=asdict(self.agreement) if self.agreement else None,
            row=None if row is None else row.to_dict(),
            bounds_us=self.bounds_us,
        )

    def to_frame(self) -> "pd.DataFrame":
        """All candidates as a pandas data frame, with what became of them.

        Returns:
          A row a candidate, the answered ones first; columns are those of
          `report.frame.study_frame`. The bounds of the others are not in it.
        """
        from rpa_tune.report.frame import study_frame

        row, heuristic = self.row(), self.study.heuristic()
        return study_frame(
            self.answers,
            [(stop.candidate, stop.reason, stop.detail) for stop in self.stops],
            name=self.study.name,
            heuristic=None if isinstance(heuristic, Infeasible) else config_to_dict(heuristic),
            chosen=() if row is None else row.configs,
        )

    def rows(self) -> list[TableRow]:
        """The table row, and the same for each problem that the study fills; none if no decision.

        A config that does not fit such a problem is none of its row's, so that row is left out.
        """
        row, study = self.row(), self.study
        if row is None:
            return []
        configs = [study.family.config_from_dict(fields) for fields in row.configs]
        found = [row]
        for problem in study.fills:
            check = study.family.check
            if all(check(problem, config, study.chip.target) is None for config in configs):
                key = tuning_key(problem, study.chip.name, study.family.name)
                evidence = replace(row.evidence, problem=beyond_key(study.problem, key))
                found.append(replace(row, key=key, evidence=evidence))
        return found

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
