"""How far a sweep is: counts, rate, time left, and each study's best against its heuristic."""

import time
from collections.abc import Sequence
from typing import Any

from rpa_tune.candidate import Evaluation, Fidelity
from rpa_tune.space.space import Space
from rpa_tune.sweep.study import Study
from rpa_tune.sweep.watch import (
    Answered,
    Event,
    StudyFinished,
    StudyStarted,
    SweepStarted,
    WaveStarted,
)


class Score:
    """The best time of a study so far, against the heuristic's."""

    def __init__(self, study: Study) -> None:
        """Knows no time yet."""
        self._heuristic: Any = study.heuristic()
        self._fidelity = Fidelity.ANALYTICAL
        self.best_us: float | None = None
        self.heuristic_us: float | None = None

    def add(self, evaluation: Evaluation) -> None:
        """Takes note of a time; a measured one ends simulated ones."""
        if evaluation.time_us is None:
            return
        if evaluation.rung > self._fidelity:
            self._fidelity = evaluation.rung
            self.best_us = self.heuristic_us = None
        if self.best_us is None or evaluation.time_us < self.best_us:
            self.best_us = evaluation.time_us
        if evaluation.candidate.config == self._heuristic:
            self.heuristic_us = evaluation.time_us

    def brief(self) -> str:
        """For a bar: the best time and what it gains; empty without a time."""
        if self.best_us is None:
            return ""
        text = f"{self.best_us:,.1f} us"
        if self.heuristic_us is not None:
            text += f", {self.heuristic_us / self.best_us:.2f}x"
        return text

    def __str__(self) -> str:
        """For people; empty without a time."""
        if self.best_us is None:
            return ""
        text = f"best {self.best_us:.1f} us"
        if self.heuristic_us is not None:
            text += f" ({self.heuristic_us / self.best_us:.2f}x the heuristic)"
        return text


class Tally:
    """Counts of a run; bounds are not reported to it."""

    def __init__(self) -> None:
        """Starts the clock."""
        self._started = time.monotonic()
        self._left: dict[str, int] = {}  # evaluations to come, by unfinished study
        self.scores: dict[str, Score] = {}
        self.num_studies = 0
        self.num_finished = 0
        self.num_new = 0

    def count(self, event: Event) -> None:
        """Something happened."""
        match event:
            case SweepStarted():
                self._start(event.studies)
            case StudyStarted():
                self._start_study(event.study, event.space)
            case WaveStarted():
                self._start_wave(event)
            case Answered():
                self._add(event.study, event.evaluation)
            case StudyFinished():
                self.num_finished += 1
                self._left.pop(event.result.study.name, None)

    def _start(self, studies: Sequence[Study]) -> None:
        """Each study simulates and checks as many as it may."""
        self.num_studies = len(studies)
        self._left = {s.name: s.search.simulate + s.search.configs for s in studies}

    def _start_study(self, study: Study, space: Space) -> None:
        """The space may be smaller than what the study may simulate."""
        self.scores[study.name] = Score(study)
        most = min(study.search.simulate, len(space.configs)) + study.search.configs
        self._left[study.name] = most

    def _start_wave(self, wave: WaveStarted) -> None:
        """What the store knows costs nothing. How many are measured is known only now."""
        if wave.fidelity is Fidelity.MEASURED:
            name = wave.study.name
            self._left[name] = self._left.get(name, 0) + wave.num
        self._take(wave.study, wave.num_known)

    def _add(self, study: Study, evaluation: Evaluation) -> None:
        self.scores[study.name].add(evaluation)
        self.num_new += 1
        self._take(study, 1)

    @property
    def elapsed_s(self) -> float:
        """Since the start."""
        return time.monotonic() - self._started

    @property
    def rate_per_s(self) -> float:
        """New evaluations a second, over the whole run."""
        return self.num_new / max(self.elapsed_s, 1e-9)

    @property
    def num_left(self) -> int:
        """Evaluations still to come, at most."""
        return sum(self._left.values())

    @property
    def left_s(self) -> float | None:
        """Time left at the rate so far; None before the first answer."""
        return self.num_left / self.rate_per_s if self.num_new else None

    def __str__(self) -> str:
        """For people."""
        left = "" if self.left_s is None else f", about {self.left_s:.0f} s left"
        return (
            f"{self.num_finished} of {self.num_studies} studies, {self.num_new} evaluations, "
            f"{60 * self.rate_per_s:.0f} a minute{left}"
        )

    def _take(self, study: Study, num: int) -> None:
        self._left[study.name] = max(0, self._left.get(study.name, 0) - num)
