"""What a report says, as plain JSON values: charts with their questions, studies, a run.

`html.py` makes a page of it; `page/page.js` draws it and decides nothing.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rpa_tune.errors import UsageError
from rpa_tune.models.padding import padding_note
from rpa_tune.report import charts, rows
from rpa_tune.report.compare import compare
from rpa_tune.report.coverage import coverage_rows
from rpa_tune.report.gains import MEND_PCT, gains
from rpa_tune.report.html import pack
from rpa_tune.report.story import why
from rpa_tune.report.study import MAX_CELLS, StudyView, load_studies
from rpa_tune.report.words import STATES
from rpa_tune.sweep.agreement import Agreement

Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class Chart:
    """One kind of chart.

    Attributes:
      id: Its name in the document.
      question: What it answers.
      note: How to read it.
      empty: What is said in its place where there are no rows.
      spec: Vega-Lite, without rows.
    """

    id: str
    question: str
    note: str
    empty: str
    spec: Callable[[], Mapping[str, Any]]

    def to_dict(self) -> Row:
        """JSON form."""
        return {
            "id": self.id, "question": self.question, "note": self.note, "empty": self.empty,
            "spec": self.spec(),
        }  # fmt: skip


_STATES_TEXT = "; ".join(f"{name}: {meaning}" for name, meaning in STATES.items())
NO_ANSWER = "No config has a time yet."
STUDY_CHARTS = (
    Chart(
        id="space",
        question="Which configs are fast, which cannot exist, and what was tried in which order?",
        note=f"A cell is a config. A number says which answer it was. {_STATES_TEXT}. The reason "
        "of a cell is shown where the pointer is. The menus above the chart choose the two axes; "
        "every combination of the others is a panel, the fastest first.",
        empty=NO_ANSWER,
        spec=dict,  # each study has its own axes
    ),
    Chart(
        id="causes",
        question="Where does the time of the best configs go?",
        note="The fastest configs, and the heuristic's if it is none of them. Each bar is a "
        "launch, the mean over the workload, by what each cycle was spent on.",
        empty="No answer says where its cycles went.",
        spec=charts.causes,
    ),
    Chart(
        id="importance",
        question="Which axes matter?",
        note="The share of each axis in what tells the fastest tenth of the answers from all, as "
        "Optuna computes it (PED-ANOVA). Of few answers it is a hint.",
        empty="Fewer than four configs have a time: too few to say.",
        spec=charts.importance,
    ),
    Chart(
        id="sensitivity",
        question="What does each value of an axis cost at best?",
        note="The best time of a config that has the value, whatever its other fields.",
        empty=NO_ANSWER,
        spec=charts.sensitivity,
    ),
    Chart(
        id="parallel",
        question="What do fast configs have in common?",
        note="A line is a config, through its value on each axis; the winner's is thick.",
        empty=NO_ANSWER,
        spec=charts.parallel,
    ),
    Chart(
        id="batches",
        question="Which config is best for which batch, and which one does the row's rule pick?",
        note="Time of each batch of the workload over the best known time of that batch, for the "
        "winners, the heuristic and the next best. A point is filled where the rule picks the "
        "config.",
        empty=NO_ANSWER,
        spec=charts.batches,
    ),
    Chart(
        id="progress",
        question="Was there more to find, and would more search have found it?",
        note="A point is an answer in the order they came; the line is the best so far. A tick is "
        "the config's own lower bound, the dashed line the least of the whole space: nothing is "
        "faster. Stores of older versions have no bounds.",
        empty=NO_ANSWER,
        spec=charts.progress,
    ),
)
RUN_CHARTS = (
    Chart(
        id="coverage",
        question="What is tuned, and what is missing?",
        note="A bar is a study, or the studies of a model and a family where there are many. One "
        "that several models share is in the line of each that its name says. "
        "Tuned: its row beats the heuristic by more than the error. "
        "Heuristic: nothing does, and the row keeps the heuristic's config.",
        empty="The store has no studies.",
        spec=charts.coverage,
    ),
    Chart(
        id="gains",
        question="Where does the heuristic lose, by chip, model and family?",
        note=f"A point is a study. The bar is what the evaluator's error leaves open. Beyond "
        f"the dashed line ({MEND_PCT:g} %) the heuristic is to be mended; rpa-tune report --gains "
        "lists those.",
        empty="No study has a time of the heuristic and of another config.",
        spec=charts.gains,
    ),
    Chart(
        id="measured",
        question="How far are predicted times from measured ones?",
        note="A point is a config that was measured. On the dashed line a prediction is exact; the "
        "bar is the interval that was 90 % sure.",
        empty="Nothing was measured: all times are simulated.",
        spec=charts.measured,
    ),
)
COMPARED = Chart(
    id="compared",
    question="What do both winners spend their time on?",
    note="The first config of each row, by what each cycle was spent on.",
    empty="One of them has no time.",
    spec=charts.compared,
)
TABLE = {
    "question": "How much faster than the heuristic is each study's row, and is that more than the "
    "error?",
    "note": "The largest speed-up comes first. A click on a head sorts, on a row shows its study. "
    "The interval is where nine of ten sets of the simulator's parameters put the time.",
}


def load_all(stores: Sequence[Path]) -> list[StudyView]:
    """The studies of all stores, a store after the other.

    Raises:
      UsageError: None of them has any.
      StoreError: One is missing, or no store.
    """
    names = _names(stores)
    views = [view for store, name in names.items() for view in load_studies(store, name)]
    if not views:
        raise UsageError(
            "nothing to report: no study is planned or answered",
            where=", ".join(map(str, stores)),
            hint="rpa-tune sweep quickstart makes a store in .rpa-tune",
        )
    return views


def _names(stores: Sequence[Path]) -> dict[Path, str]:
    """A name for each store: as much of its path as tells it from the others."""
    paths = list(dict.fromkeys(stores))
    for num_parts in range(1, max(len(path.parts) for path in paths) + 1):
        names = [str(Path(*path.parts[-num_parts:])) for path in paths]
        if len(set(names)) == len(names):
            break
    return dict(zip(paths, names, strict=True))


def make_document(views: Sequence[StudyView], *, title: str) -> Row:
    """The document of a run.

    Args:
      views: Its studies; those of several stores are named with their store.
      title: Of the page.
    """
    is_several = len({view.store for view in views}) > 1
    labels = [f"{view.store}: {view.name}" if is_several else view.name for view in views]
    table = [
        _table_row(view, label, i)
        for i, (view, label) in enumerate(zip(views, labels, strict=True))
    ]
    shown = (*STUDY_CHARTS, *RUN_CHARTS, COMPARED)
    first, *others = _by_store(views)
    studies = [_study(view, label) for view, label in zip(views, labels, strict=True)]
    specs = _listed_once(studies)
    return {
        "schema": "rpa-report/1",
        "title": title,
        "about": _about(views),
        "charts": {chart.id: chart.to_dict() for chart in shown},
        "study_charts": [chart.id for chart in STUDY_CHARTS],
        "run_charts": [chart.id for chart in RUN_CHARTS],
        "table": {**TABLE, "rows": pack(sorted(table, key=_by_speedup))},
        "run": {
            "coverage": pack(coverage_rows(views, table)),
            "gains": pack([asdict(gain) for gain in gains(views)]),
            "measured": pack([row for view in views for row in _measured_rows(view)]),
        },
        "compare": [compare(first, other) for other in others],
        "first": _most_telling(views),
        "specs": specs,
        "studies": studies,
    }


def _listed_once(studies: Sequence[Row]) -> list[Row]:
    """The charts that depend on a study's axes, in whose place their numbers are put.

    Most studies of a run have the axes of another one.
    """
    numbers: dict[str, int] = {}
    specs: list[Row] = []
    for study in studies:
        for chart, spec in study["specs"].items():
            text = json.dumps(spec, sort_keys=True)
            if text not in numbers:
                numbers[text] = len(specs)
                specs.append(spec)
            study["specs"][chart] = numbers[text]
    return specs


def _by_store(views: Sequence[StudyView]) -> list[list[StudyView]]:
    """The studies of each store, in the order of the stores."""
    stores: dict[str, list[StudyView]] = {}
    for view in views:
        stores.setdefault(view.store, []).append(view)
    return list(stores.values())


def _most_telling(views: Sequence[StudyView]) -> int:
    """The study to begin with: the one with the largest gain."""
    gains = [_speedup(view) or 0.0 for view in views]
    return gains.index(max(gains))


def _about(views: Sequence[StudyView]) -> str:
    """Where the figures come from."""
    found: dict[str, list[str]] = {}
    for view in views:
        for answer in view.answers:
            for name in ("jax", "libtpu"):
                found.setdefault(name, []).append(str(answer.provenance.get(name)))
    versions = ", ".join(
        f"{name} {' and '.join(sorted(set(each)))}" for name, each in found.items()
    )
    is_measured = any(view.measured for view in views)
    times = "Times are simulated and measured" if is_measured else "All times are simulated"
    stores = ", ".join(dict.fromkeys(view.store for view in views))
    return f"{times}. {len(views):,} studies of {stores}; {versions or 'no answers'}."


def _speedup(view: StudyView) -> float | None:
    if view.heuristic is None or not view.time_us:
        return None
    return round((view.heuristic.time_us or 0.0) / view.time_us, 4)


def _by_speedup(row: Mapping[str, Any]) -> tuple[bool, float]:
    """The largest speed-up first; what has no time last."""
    return row["time, us"] is None, -(row["speed-up"] or 0.0)


def _table_row(view: StudyView, label: str, index: int) -> Row:
    winner = view.winners[0] if view.winners else None
    low, high = (winner.metrics.get("interval_us") if winner else None) or (None, None)
    best = view.decision.best if view.decision else None
    known = view.heuristic.time_us if view.heuristic else None
    return {
        "study": label,
        "verdict": view.verdict,
        "time, us": rows.rounded(view.time_us),
        "from": rows.rounded(low),
        "to": rows.rounded(high),
        "heuristic, us": rows.rounded(known),
        "speed-up": _speedup(view),
        "best found": rows.rounded(known / best.time_us)
        if known and best and best.time_us
        else None,
        "bound by": str(winner.metrics.get("bound_by", "")) if winner else "",
        "times are": winner.fidelity.name.lower() if winner else "",
        "config": "; ".join(rows.config_text(e.candidate.config) for e in view.winners),
        "verified": ((view.note.row or {}).get("evidence", {}) if view.note else {}).get(
            "verified", ""
        ),
        "_study": index,
    }


def _measured_rows(view: StudyView) -> list[Row]:
    found = []
    for config, answer in view.measured.items():
        predicted = view.simulated.get(config)
        if not answer.ok or predicted is None or not predicted.ok:
            continue
        measured_us, simulated_us = answer.time_us or 0.0, predicted.time_us or 1.0
        low, high = predicted.metrics.get("interval_us") or (None, None)
        found.append(
            {
                "study": view.name,
                "config": rows.config_text(config),
                "simulated_us": rows.rounded(simulated_us),
                "measured_us": rows.rounded(measured_us),
                "low_us": rows.rounded(low),
                "high_us": rows.rounded(high),
                "ratio": round(measured_us / simulated_us, 4),
                "inside": _is_inside(measured_us, predicted.metrics.get("interval_us")),
            }
        )
    return found


def _is_inside(measured_us: float, span: Sequence[float] | None) -> bool:
    return span is not None and span[0] <= measured_us <= span[1]


def _study(view: StudyView, label: str) -> Row:
    """What the page shows of one study."""
    axes = {axis.name: list(axis.values) for axis in view.axes}
    importance = rows.importance_rows(view)
    space = rows.space_rows(view)
    across, down = _first_axes(axes, importance)
    varying = tuple(name for name, values in axes.items() if len(values) > 1)
    return {
        "label": label,
        "why": why(view),
        "facts": _facts(view),
        "rows": {
            "space": pack(space),
            "causes": pack(rows.cause_rows(view)),
            "importance": pack(importance),
            "sensitivity": pack(rows.marginal_rows(view)),
            "parallel": pack(rows.parallel_rows(view)),
            "batches": pack(rows.batch_rows(view)),
            "progress": pack(rows.answer_rows(view)),
        },
        "specs": {"space": charts.space(tuple(axes), varying, across, down) if space else {}},
    }


def _first_axes(axes: Mapping[str, Sequence[int]], importance: Sequence[Row]) -> tuple[str, str]:
    """The two axes that matter most, or else those with most values."""
    ranked = [row["axis"] for row in sorted(importance, key=lambda row: -row["importance"])]
    ranked += sorted((n for n in axes if n not in ranked), key=lambda name: -len(axes[name]))
    return (ranked[0], ranked[min(1, len(ranked) - 1)]) if ranked else ("", "")


def _facts(view: StudyView) -> list[str]:
    """What is known of a study beside its charts, a sentence each."""
    facts = [f"{view.title}."] if view.title != view.name else []
    if view.candidate and (padding := padding_note(view.candidate.problem)):
        facts.append(f"{padding}.")
    workload = view.plan.workload if view.plan else {}
    if workload:
        num, source = len(workload["batches"]), workload["source"]
        facts.append(f"Workload {workload['name']}: {num} batches; {source}.")
    if view.plan:
        sampler = view.plan.sampler.get("kind", "unknown")
        objective = f", objective {view.plan.objective}" if view.plan.objective else ""
        facts.append(f"Sampler {sampler}{objective}.")
    if rule := rows.rule_text(view):
        facts.append(f"The row's rule: {rule}.")
    if view.num_points > MAX_CELLS:
        facts.append(
            f"The grid has {view.num_points:,} points: only those that were asked are drawn."
        )
    if view.plan is None or not view.plan.axes:
        facts.append(
            "The store does not say what was searched: the axes are the family's of today."
        )
    if view.note and view.note.agreement:
        facts.append(f"{Agreement(**view.note.agreement)}.")
    return facts
