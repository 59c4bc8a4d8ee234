"""What of a run is tuned: a bar for each study, or for those of a model and a family."""

import re
from collections.abc import Iterator, Sequence
from typing import Any

from rpa_tune.report.study import StudyView
from rpa_tune.report.words import VERDICTS

# More lines than this are no chart: studies of a model and a family then share one.
MAX_LINES = 80
_REST = re.compile(r"\d+ more")  # in the place of names, where a study has many


def coverage_rows(
    views: Sequence[StudyView], table: Sequence[dict[str, Any]]
) -> list[dict[str, Any]]:
    """A row for each study and each line of the chart that it is in.

    A study that asks the same as others has all their names, and a bar in the line of each: what
    is grouped on one chip may be apart on another.

    Args:
      views: The studies.
      table: Their rows in the table of the run.
    """
    rows = [each for view, row in zip(views, table, strict=True) for each in _rows(view, row)]
    if len({row["what"] for row in rows}) > MAX_LINES:
        rows = [row | {"what": row["brief"]} for row in rows]
    once = {(row["what"], row["study"]): row for row in rows}
    kept = [{k: v for k, v in row.items() if k != "brief"} for row in once.values()]
    return sorted(kept, key=lambda row: row["what"])


def _rows(view: StudyView, row: dict[str, Any]) -> Iterator[dict[str, Any]]:
    chip = view.candidate.chip.name if view.candidate else view.name.split("/")[0]
    store = row["study"].removesuffix(view.name)  # empty, where there is one
    verdict = row["verdict"]
    for full in view.name.split(" and "):
        if _REST.fullmatch(full):
            continue
        name = full.removeprefix(f"{chip}/")
        parts = name.split("/")
        yield {
            "chip": chip,
            "what": f"{store}{name}",
            "brief": " ".join([parts[0], parts[-1]] if len(parts) > 1 else parts),
            "study": row["study"],
            "verdict": verdict,
            "at": VERDICTS.index(verdict) if verdict in VERDICTS else len(VERDICTS),
            "speedup": row["speed-up"],
            "evaluated": len(view.answers),
        }
