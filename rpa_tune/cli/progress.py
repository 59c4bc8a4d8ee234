"""Progress of a sweep on stderr: live bars, plain lines, or one JSON event a line."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from types import TracebackType
from typing import Any, Self

import click
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Column

from rpa_tune.candidate import Evaluation, Fidelity
from rpa_tune.space.space import Space
from rpa_tune.sweep.result import StudyResult
from rpa_tune.sweep.study import Study
from rpa_tune.sweep.tally import Tally
from rpa_tune.sweep.watch import Watch

EVENTS = "rpa-events/1"
_OVERALL_EVERY_S = 30.0


class CountingWatch(Watch):
    """Keeps a tally; what shows it builds on this."""

    def __init__(self) -> None:
        """Starts the clock."""
        self.tally = Tally()

    def sweep_started(self, studies: Sequence[Study]) -> None:
        """Counts them."""
        self.tally.start(studies)

    def study_started(self, study: Study, space: Space) -> None:
        """Counts what is to come."""
        self.tally.start_study(study, space)

    def wave_started(self, study: Study, fidelity: Fidelity, num: int, num_known: int) -> None:
        """Counts what is known."""
        self.tally.start_wave(study, num, num_known, fidelity)

    def answered(self, study: Study, evaluation: Evaluation) -> None:
        """Counts it."""
        self.tally.add(study, evaluation)

    def study_finished(self, result: StudyResult) -> None:
        """Counts it."""
        self.tally.finish_study(result.study)


class PlainWatch(CountingWatch):
    """One line when something happened that a log should keep, and now and then the overall."""

    def __init__(self, console: Console) -> None:
        """Writes to `console`."""
        super().__init__()
        self._console = console
        self._overall_at_s = _OVERALL_EVERY_S

    def study_started(self, study: Study, space: Space) -> None:
        """Says how large the space is."""
        super().study_started(study, space)
        self._say(
            f"{study.name}: {len(space.configs):,} of {space.num_points:,} configs are feasible"
        )

    def wave_started(self, study: Study, fidelity: Fidelity, num: int, num_known: int) -> None:
        """Says what is asked."""
        super().wave_started(study, fidelity, num, num_known)
        known = f", {num_known:,} already stored" if num_known else ""
        self._say(f"{study.name}: {fidelity.name.lower()} {num:,} candidates{known}")

    def answered(self, study: Study, evaluation: Evaluation) -> None:
        """Says what it found."""
        super().answered(study, evaluation)
        time_us, score = evaluation.time_us, self.tally.scores[study.name]
        if evaluation.ok and evaluation.fidelity is Fidelity.INTERPRETED:
            self._say(f"{study.name}: verified: {evaluation.metrics.get('how', '')}")
        else:
            found = f"{time_us:.1f} us" if time_us else f"{evaluation.status}: {evaluation.detail}"
            self._say(f"{study.name}: {found}; {score}")
        if self.tally.elapsed_s >= self._overall_at_s:
            self._overall_at_s = self.tally.elapsed_s + _OVERALL_EVERY_S
            self._say(str(self.tally))

    def study_finished(self, result: StudyResult) -> None:
        """Says what was decided."""
        super().study_finished(result)
        self._say(
            f"{result.study.name}: {result.verdict}, {result.num_asked:,} new results; {self.tally}"
        )

    def _say(self, text: str) -> None:
        self._console.print(f"[{self.tally.elapsed_s:6.1f} s] {text}", markup=False,
                            highlight=False, soft_wrap=True)  # fmt: skip


class RichWatch(CountingWatch):
    """A bar for the sweep and one for each study that is running."""

    def __init__(self, console: Console) -> None:
        """Draws on `console`."""
        super().__init__()
        # Of 80 characters names get what figures leave, and are wrapped rather than cropped.
        self._progress = Progress(
            TextColumn("{task.description}", table_column=Column(overflow="fold")),
            BarColumn(bar_width=12, table_column=Column(no_wrap=True)),
            MofNCompleteColumn(table_column=Column(no_wrap=True)),
            TimeRemainingColumn(table_column=Column(no_wrap=True)),
            TextColumn("{task.fields[score]}"),
            console=console,
        )
        self._overall = self._progress.add_task("sweep", total=0, score="")
        self._bars: dict[str, TaskID] = {}
        self._asked: dict[str, int] = {}

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
        super().study_started(study, space)
        self._bars[study.name] = self._progress.add_task(study.name, total=0, score="")

    def wave_started(self, study: Study, fidelity: Fidelity, num: int, num_known: int) -> None:
        """Lengthens the bar by the wave; of bounds, no answers are told."""
        super().wave_started(study, fidelity, num, num_known)
        bar = self._bars[study.name]
        if fidelity is not Fidelity.ANALYTICAL:
            self._asked[study.name] = self._asked.get(study.name, 0) + num
        total = self._asked.get(study.name, 0)
        self._progress.update(bar, total=total, description=f"{study.name} {fidelity.name.lower()}")
        self._progress.advance(bar, num_known)
        self._show_overall()

    def answered(self, study: Study, evaluation: Evaluation) -> None:
        """Advances the bars."""
        super().answered(study, evaluation)
        score = self.tally.scores[study.name]
        self._progress.update(self._bars[study.name], advance=1, score=score.brief())
        self._show_overall()

    def study_finished(self, result: StudyResult) -> None:
        """Takes the bar away and leaves a line with the verdict above."""
        super().study_finished(result)
        name = result.study.name
        self._progress.remove_task(self._bars.pop(name))
        score = self.tally.scores[name]
        self._progress.console.print(f"{name}: {result.verdict}; {score}", markup=False)
        self._show_overall()

    def _show_overall(self) -> None:
        done = self.tally.num_new
        self._progress.update(
            self._overall,
            completed=done,
            total=done + self.tally.num_left,
            score=f"{self.tally.num_finished}/{self.tally.num_studies} studies",
        )


class JsonWatch(CountingWatch):
    """One JSON object a line on stderr; docs/events.md names the fields."""

    def sweep_started(self, studies: Sequence[Study]) -> None:
        """`sweep_started`."""
        super().sweep_started(studies)
        self.emit("sweep_started", schema=EVENTS, studies=[study.name for study in studies])

    def study_started(self, study: Study, space: Space) -> None:
        """`study_started`."""
        super().study_started(study, space)
        self.emit(
            "study_started", study=study.name, grid=space.num_points, feasible=len(space.configs)
        )

    def wave_started(self, study: Study, fidelity: Fidelity, num: int, num_known: int) -> None:
        """`wave_started`."""
        super().wave_started(study, fidelity, num, num_known)
        self.emit("wave_started", study=study.name, fidelity=fidelity.name.lower(), num=num,
                  num_known=num_known)  # fmt: skip

    def answered(self, study: Study, evaluation: Evaluation) -> None:
        """`answered`."""
        super().answered(study, evaluation)
        score = self.tally.scores[study.name]
        self.emit(
            "answered",
            study=study.name,
            fidelity=evaluation.fidelity.name.lower(),
            status=evaluation.status.value,
            detail=evaluation.detail,
            config=asdict(evaluation.candidate.config),
            time_us=evaluation.time_us,
            best_us=score.best_us,
            heuristic_us=score.heuristic_us,
            **self._overall(),
        )

    def study_finished(self, result: StudyResult) -> None:
        """`study_finished`."""
        super().study_finished(result)
        score = self.tally.scores[result.study.name]
        self.emit(
            "study_finished",
            study=result.study.name,
            verdict=result.verdict,
            best_us=score.best_us,
            heuristic_us=score.heuristic_us,
            num_asked=result.num_asked,
            agreement=asdict(result.agreement) if result.agreement else None,
            **self._overall(),
        )

    def emit(self, event: str, **fields: Any) -> None:
        """Writes one event."""
        line = {"event": event, "elapsed_s": round(self.tally.elapsed_s, 3), **fields}
        click.echo(json.dumps(line, allow_nan=False), err=True)

    def _overall(self) -> dict[str, Any]:
        left_s = self.tally.left_s
        return {
            "studies_finished": self.tally.num_finished,
            "num_studies": self.tally.num_studies,
            "evaluations": self.tally.num_new,
            "evaluations_left": self.tally.num_left,
            "rate_per_s": round(self.tally.rate_per_s, 4),
            "left_s": None if left_s is None else math.ceil(left_s),
        }
