"""Progress of a sweep on stderr: live bars, plain lines, or one JSON event a line."""

import json
import math
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

from rpa_kernels.family import config_to_dict
from rpa_tune.candidate import Correctness, Evaluation, Fidelity
from rpa_tune.sweep.result import StudyResult
from rpa_tune.sweep.study import Study
from rpa_tune.sweep.tally import Tally
from rpa_tune.sweep.watch import (
    Answered,
    Event,
    StudyFinished,
    StudyStarted,
    SweepStarted,
    Watch,
    WaveStarted,
)

EVENTS = "rpa-events/1"
_OVERALL_EVERY_S = 30.0


class CountingWatch(Watch):
    """Keeps a tally; what shows it builds on this."""

    def __init__(self) -> None:
        """Starts the clock."""
        self.tally = Tally()

    def tell(self, event: Event) -> None:
        """Counts it."""
        self.tally.count(event)


class PlainWatch(CountingWatch):
    """One line when something happened that a log should keep, and now and then the overall."""

    def __init__(self, console: Console) -> None:
        """Writes to `console`."""
        super().__init__()
        self._console = console
        self._overall_at_s = _OVERALL_EVERY_S

    def tell(self, event: Event) -> None:
        """Says what a log should keep."""
        super().tell(event)
        match event:
            case StudyStarted(study=study, space=space):
                feasible = f"{len(space.configs):,} of {space.num_points:,} configs are feasible"
                self._say(f"{study.name}: {feasible}")
            case WaveStarted(study=study):
                known = f", {event.num_known:,} already stored" if event.num_known else ""
                asked = f"{event.fidelity.name.lower()} {event.num:,} candidates"
                self._say(f"{study.name}: {asked}{known}")
            case Answered():
                self._answered(event.study, event.evaluation)
            case StudyFinished(result=result):
                self._say(
                    f"{result.study.name}: {result.verdict}, {result.num_asked:,} new results; "
                    f"{self.tally}"
                )

    def _answered(self, study: Study, evaluation: Evaluation) -> None:
        time_us, score = evaluation.time_us, self.tally.scores[study.name]
        if evaluation.ok and evaluation.fidelity is Correctness.INTERPRETED:
            self._say(f"{study.name}: verified: {evaluation.metrics.get('how', '')}")
        else:
            found = f"{time_us:.1f} us" if time_us else f"{evaluation.status}: {evaluation.detail}"
            self._say(f"{study.name}: {found}; {score}")
        if self.tally.elapsed_s >= self._overall_at_s:
            self._overall_at_s = self.tally.elapsed_s + _OVERALL_EVERY_S
            self._say(str(self.tally))

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

    def tell(self, event: Event) -> None:
        """Moves the bars."""
        super().tell(event)
        match event:
            case StudyStarted(study=study):
                self._bars[study.name] = self._progress.add_task(study.name, total=0, score="")
            case WaveStarted():
                self._lengthen(event)
            case Answered(study=study):
                score = self.tally.scores[study.name].brief()
                self._progress.update(self._bars[study.name], advance=1, score=score)
                self._show_overall()
            case StudyFinished(result=result):
                self._take_away(result)

    def _lengthen(self, wave: WaveStarted) -> None:
        """Lengthens a study's bar by a wave; of bounds, no answers are told."""
        name = wave.study.name
        if wave.fidelity is not Fidelity.ANALYTICAL:
            self._asked[name] = self._asked.get(name, 0) + wave.num
        self._progress.update(
            self._bars[name],
            total=self._asked.get(name, 0),
            description=f"{name} {wave.fidelity.name.lower()}",
        )
        self._progress.advance(self._bars[name], wave.num_known)
        self._show_overall()

    def _take_away(self, result: StudyResult) -> None:
        """Takes a study's bar away and leaves a line with the verdict above."""
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

    def tell(self, event: Event) -> None:
        """Writes it."""
        super().tell(event)
        match event:
            case SweepStarted(studies=studies):
                names = [study.name for study in studies]
                self.emit("sweep_started", schema=EVENTS, studies=names)
            case StudyStarted(study=study, space=space):
                self.emit("study_started", study=study.name, grid=space.num_points,
                          feasible=len(space.configs))  # fmt: skip
            case WaveStarted():
                self.emit("wave_started", study=event.study.name,
                          fidelity=event.fidelity.name.lower(), num=event.num,
                          num_known=event.num_known)  # fmt: skip
            case Answered():
                self._answered(event.study, event.evaluation)
            case StudyFinished(result=result):
                self._finished(result)

    def _answered(self, study: Study, evaluation: Evaluation) -> None:
        score = self.tally.scores[study.name]
        self.emit(
            "answered",
            study=study.name,
            fidelity=evaluation.fidelity.name.lower(),
            status=evaluation.status.value,
            detail=evaluation.detail,
            config=config_to_dict(evaluation.candidate.config),
            time_us=evaluation.time_us,
            best_us=score.best_us,
            heuristic_us=score.heuristic_us,
            **self._overall(),
        )

    def _finished(self, result: StudyResult) -> None:
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
