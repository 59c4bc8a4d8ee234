"""Progress of a sweep on the terminal: a live bar, or plain lines when nobody is watching."""

import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from rpa_tune.candidate import Evaluation, Fidelity
from rpa_tune.space.space import Space
from rpa_tune.sweep.study import Study
from rpa_tune.sweep.sweep import StudyResult
from rpa_tune.sweep.watch import Watch


class _Score:
    """The best time of a study so far, against the heuristic's."""

    def __init__(self, study: Study) -> None:
        self._heuristic = study.heuristic()
        self._best_us: float | None = None
        self._heuristic_us: float | None = None

    def add(self, evaluation: Evaluation) -> None:
        if evaluation.fidelity is Fidelity.ANALYTICAL or evaluation.time_us is None:
            return
        if self._best_us is None or evaluation.time_us < self._best_us:
            self._best_us = evaluation.time_us
        if evaluation.candidate.config == self._heuristic:
            self._heuristic_us = evaluation.time_us

    def __str__(self) -> str:
        if self._best_us is None:
            return ""
        text = f"best {self._best_us:.1f} us"
        if self._heuristic_us is not None:
            text += f" ({self._heuristic_us / self._best_us:.2f}x the heuristic)"
        return text


class PlainWatch(Watch):
    """One line when something happened that a log should keep."""

    def __init__(self, console: Console) -> None:
        """Writes to `console`."""
        self._console = console
        self._started = time.monotonic()
        self._done = 0
        self._score: _Score | None = None

    def study_started(self, study: Study, space: Space) -> None:
        """Says how large the space is."""
        self._score = _Score(study)
        self._say(f"{study.name}: {len(space.configs):,} of {space.num_points:,} configs can exist")

    def wave_started(self, study: Study, fidelity: Fidelity, num: int, num_known: int) -> None:
        """Says what is asked."""
        known = f", {num_known:,} known" if num_known else ""
        self._say(f"{study.name}: {fidelity.name.lower()} {num:,} candidates{known}")

    def answered(self, study: Study, evaluation: Evaluation) -> None:
        """Says what a dear evaluation found."""
        self._done += 1
        if self._score is None or evaluation.fidelity is Fidelity.ANALYTICAL:
            return
        self._score.add(evaluation)
        time_us = evaluation.time_us
        if evaluation.ok and evaluation.fidelity is Fidelity.INTERPRETED:
            self._say(f"{study.name}: right: {evaluation.metrics.get('how', '')}")
            return
        found = f"{time_us:.1f} us" if time_us else f"{evaluation.status}: {evaluation.detail}"
        self._say(f"{study.name}: {found}; {self._score}")

    def study_finished(self, result: StudyResult) -> None:
        """Says what was decided."""
        verdict = result.decision.verdict if result.decision else "no config works"
        self._say(f"{result.study.name}: {verdict}, {result.num_asked:,} new answers")

    def _say(self, text: str) -> None:
        elapsed = time.monotonic() - self._started
        self._console.print(f"[{elapsed:6.1f} s] {text}", markup=False, highlight=False,
                            soft_wrap=True)  # fmt: skip


class RichWatch(Watch):
    """A bar for each study."""

    def __init__(self, console: Console) -> None:
        """Draws on `console`."""
        self._progress = Progress(
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(),
            TimeRemainingColumn(), TextColumn("{task.fields[score]}"), console=console,
        )  # fmt: skip
        self._task = self._progress.add_task("", total=0, visible=False, score="")
        self._score: _Score | None = None

    def __enter__(self) -> Self:
        """Starts drawing."""
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stops drawing."""
        self._progress.stop()

    def study_started(self, study: Study, space: Space) -> None:
        """Adds a bar."""
        self._score = _Score(study)
        self._task = self._progress.add_task(study.name, total=0, score="")

    def wave_started(self, study: Study, fidelity: Fidelity, num: int, num_known: int) -> None:
        """Lengthens the bar by the wave."""
        task = self._progress.tasks[self._task]
        self._progress.update(
            self._task,
            total=(task.total or 0) + num,
            description=f"{study.name} {fidelity.name.lower()}",
        )
        self._progress.advance(self._task, num_known)

    def answered(self, study: Study, evaluation: Evaluation) -> None:
        """Advances the bar."""
        if self._score is not None:
            self._score.add(evaluation)
        self._progress.update(self._task, advance=1, score=str(self._score or ""))

    def study_finished(self, result: StudyResult) -> None:
        """Fills the bar and leaves the verdict beside it."""
        verdict = result.decision.verdict if result.decision else "no config works"
        self._progress.update(self._task, description=f"{result.study.name} {verdict}")
