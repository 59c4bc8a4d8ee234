"""One study of a store, as a report wants it: who was asked, who won, what could not exist."""

import functools
import itertools
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rpa_kernels.family import config_to_dict
from rpa_tune.candidate import Candidate, Evaluation, Fidelity
from rpa_tune.decide.objective import EXPECTED_TIME
from rpa_tune.decide.promote import ERROR_PCT, Decision, decide
from rpa_tune.space.axis import Axis
from rpa_tune.space.space import build_axes
from rpa_tune.store.notes import StudyNote, StudyPlan
from rpa_tune.sweep.status import by_study, of_planned_versions, read_status

# A grid beyond this is not drawn cell by cell: the page would be of grey cells only.
MAX_CELLS = 20_000
_NUMBER = re.compile(r"\d[\d,]*(\.\d+)?")
# Why a candidate was left behind that is no failure.
_STATES = {"bounded": "bounded", "dominated": "bounded", "not chosen": "not asked"}


@dataclass(frozen=True, kw_only=True)
class StudyView:
    """What a store says of one study, by the versions that were planned last.

    Attributes:
      store: Name of the store's file.
      digest: `Candidate.study`.
      plan: None in a store that does not say what was planned.
      note: What it came to; None before its end.
      answers: In the order they were asked for.
    """

    store: str
    digest: str
    plan: StudyPlan | None
    note: StudyNote | None
    answers: tuple[Evaluation, ...]

    @property
    def name(self) -> str:
        """In its plan, or else what it is about."""
        return self.plan.name if self.plan else self.title

    @functools.cached_property
    def candidate(self) -> Candidate | None:
        """Any of its candidates; None before the first answer."""
        return self.answers[0].candidate if self.answers else None

    @property
    def title(self) -> str:
        """What it is about."""
        return self.candidate.title if self.candidate else self.name

    @functools.cached_property
    def simulated(self) -> dict[Any, Evaluation]:
        """Config -> its simulated answer, in the order they were asked for."""
        return self._by_config(Fidelity.SIMULATED)

    @functools.cached_property
    def measured(self) -> dict[Any, Evaluation]:
        """Config -> its measured answer."""
        return self._by_config(Fidelity.MEASURED)

    def _by_config(self, method: Fidelity) -> dict[Any, Evaluation]:
        return {e.candidate.config: e for e in self.answers if e.fidelity is method}

    @functools.cached_property
    def judged(self) -> dict[Any, Evaluation]:
        """Config -> its answer of the highest fidelity with times: who won is said by these."""
        found = self.measured if any(e.ok for e in self.measured.values()) else self.simulated
        return {config: e for config, e in found.items() if e.ok}

    @functools.cached_property
    def explored(self) -> dict[Any, Evaluation]:
        """Config -> its simulated answer with a time; measured ones where none is simulated.

        What the shape of the space is read from: only a few finalists are ever measured.
        """
        return {c: e for c, e in self.simulated.items() if e.ok} or self.judged

    @functools.cached_property
    def heuristic(self) -> Evaluation | None:
        """The answer to the heuristic's config; None without one."""
        fields = self.plan.heuristic if self.plan else None
        return next((e for c, e in self.judged.items() if config_to_dict(c) == fields), None)

    @functools.cached_property
    def decision(self) -> Decision | None:
        """What follows from the answers so far; None where nothing has a time to compare with."""
        objective = (self.plan.objective if self.plan else "") or EXPECTED_TIME
        return decide(list(self.judged.values()), self.heuristic, objective=objective)

    @functools.cached_property
    def winners(self) -> tuple[Evaluation, ...]:
        """The answers to the configs of its row; before its end, to the best so far."""
        if self.note and self.note.row:
            wanted = self.note.row["configs"]
            found = {str(config_to_dict(c)): e for c, e in self.judged.items()}
            return tuple(found[str(c)] for c in wanted if str(c) in found)
        return (self.decision.chosen,) if self.decision else ()

    @property
    def is_over(self) -> bool:
        """Whether the sweep has ended it."""
        return self.note is not None

    @property
    def verdict(self) -> str:
        """`tuned`, `heuristic`, `no row`, or `running` and `not begun` before its end."""
        if self.note is not None:
            return self.note.verdict or "no row"
        return "running" if self.answers else "not begun"

    @property
    def time_us(self) -> float | None:
        """Expected time of a launch with its row, microseconds."""
        evidence = (self.note.row or {}).get("evidence", {}) if self.note else {}
        if self.winners and "time_us" in evidence:
            return float(evidence["time_us"])
        return self.winners[0].time_us if self.winners else None

    @property
    def error_pct(self) -> float:
        """What two times may differ by without being different, percent."""
        return self.decision.error_pct if self.decision else ERROR_PCT[Fidelity.SIMULATED]

    @functools.cached_property
    def axes(self) -> tuple[Axis, ...]:
        """What was searched; of a store that does not say so, the family's axes of today."""
        candidate = self.candidate
        if self.plan and self.plan.axes:
            values: Mapping[str, Any] = self.plan.axes
        elif candidate is not None:
            problem, target = candidate.problem, candidate.chip.target
            values = {a.name: a.values for a in build_axes(candidate.family, problem, target)}
        else:
            return ()
        asked = [asdict(e.candidate.config) for e in self.answers]
        return tuple(
            Axis(name=n, values=tuple(sorted({*v, *(fields[n] for fields in asked)})))
            for n, v in values.items()
        )

    @property
    def num_points(self) -> int:
        """Points of the grid of its axes."""
        return math.prod(len(axis.values) for axis in self.axes)

    def cells(self) -> Iterator[tuple[Any, str, str]]:
        """(config, state, why) of every point of the grid; states are those of `words.STATES`.

        Empty for a grid of more than `MAX_CELLS`.
        """
        candidate = self.candidate
        if candidate is None or self.num_points > MAX_CELLS:
            return
        family, problem, target = candidate.family, candidate.problem, candidate.chip.target
        answers = {**self.simulated, **self.measured}
        names = [axis.name for axis in self.axes]
        stopped = self.note.stopped if self.note else ()
        defaults = {name: family.config_type.__dataclass_fields__[name].default for name in names}
        stops = {tuple(stop.config.get(n, defaults[n]) for n in names): stop for stop in stopped}
        for point in itertools.product(*(axis.values for axis in self.axes)):
            config = family.config_type(**dict(zip(names, point, strict=True)))
            answer, stop = answers.get(config), stops.get(point)
            if answer is not None and answer.ok:
                yield config, "answered", ""
            elif answer is not None:
                yield config, "failed", f"{answer.status.value}: {answer.detail}"
            elif bad := family.check(problem, config, target):
                yield config, "infeasible", roughly(str(bad))
            elif stop is not None:
                yield config, _STATES.get(stop.reason, "failed"), roughly(stop.detail)
            else:
                yield config, "not asked", "not asked so far"


@functools.lru_cache(maxsize=4096)
def roughly(text: str) -> str:
    """A text with numbers of three digits at most, so that many cells share one."""

    def round_off(match: re.Match[str]) -> str:
        value = float(match[0].replace(",", ""))
        if value < 1000:
            return f"{value:.3g}"
        return f"{round(value, 2 - math.floor(math.log10(value))):,.0f}"

    return _NUMBER.sub(round_off, text)


def load_studies(path: Path, name: str = "") -> list[StudyView]:
    """The studies of a store and its shards, in the order they were planned or first answered.

    Args:
      path: The store.
      name: What it is called; the file's name if empty.

    Raises:
      StoreError: No such store, or not a store.
    """
    found = read_status(path)
    plans, notes = found.plans, found.notes
    # Checks are of smaller problems, and say nothing of a time.
    groups = by_study(e for e in found.evaluations if isinstance(e.fidelity, Fidelity))
    return [
        StudyView(
            store=name or path.name,
            digest=study,
            plan=plans.get(study),
            note=notes.get(study),
            answers=tuple(of_planned_versions(groups.get(study, ()), plans.get(study))),
        )
        for study in dict.fromkeys([*plans, *groups])
    ]
