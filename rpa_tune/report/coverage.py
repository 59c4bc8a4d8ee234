"""What of a run is tuned: a bar for each study, or for those of a model and a family."""

from collections.abc import Sequence
from typing import Any

from rpa_tune.report.gains import model_of
from rpa_tune.report.study import StudyView
from rpa_tune.report.words import VERDICTS

# More lines than this are no chart: studies of a model and a family then share one.
MAX_LINES = 80


def coverage_rows(
    views: Sequence[StudyView], table: Sequence[dict[str, Any]]
) -> list[dict[str, Any]]:
    """A row for each study, with the line of the chart that it is in.

    Args:
      views: The studies.
      table: Their rows in the table of the run.
    """
    rows = [_row(view, row) for view, row in zip(views, table, strict=True)]
    if len({row["what"] for row in rows}) > MAX_LINES:
        for view, row in zip(views, rows, strict=True):
            # Studies that share a row have all their names, the first in front.
            family = view.name.split(" and ")[0].rsplit("/", 1)[-1]
            row["what"] = f"{model_of(view)} {family}".strip()
    return sorted(rows, key=lambda row: row["what"])


def _row(view: StudyView, row: dict[str, Any]) -> dict[str, Any]:
    chip = view.candidate.chip.name if view.candidate else view.name.split("/")[0]
    verdict = row["verdict"]
    return {
        "chip": chip,
        "what": row["study"].replace(f"{chip}/", "", 1),
        "study": row["study"],
        "verdict": verdict,
        "at": VERDICTS.index(verdict) if verdict in VERDICTS else len(VERDICTS),
        "speedup": row["speed-up"],
        "evaluated": len(view.answers),
    }
