"""What each chart of a study shows: rows of plain JSON values, one list for each chart."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from rpa_kernels.family import config_to_dict
from rpa_tune.candidate import Evaluation
from rpa_tune.report.importance import importances
from rpa_tune.report.study import MAX_CELLS, StudyView
from rpa_tune.report.words import CAUSES
from rpa_tune.tables.row import ALWAYS_FIRST, Clause
from rpa_tune.tables.step import Lengths

Row = dict[str, Any]
MOST_STACKED = 12  # configs in the chart of causes
MOST_COMPARED = 4  # configs in the chart of batches
WINNER, HEURISTIC, TRIED = "winner", "heuristic", "tried"
BOTH = "winner, the heuristic"


def config_text(config: Any) -> str:
    """`bkv_sz=512 bq_sz=16`."""
    return " ".join(f"{name}={value}" for name, value in config_to_dict(config).items())


def role_of(view: StudyView, config: Any) -> str:
    """What a config is in its study."""
    is_winner = any(config == winner.candidate.config for winner in view.winners)
    is_heuristic = view.plan is not None and config_to_dict(config) == view.plan.heuristic
    if is_winner and is_heuristic:
        return BOTH
    return WINNER if is_winner else HEURISTIC if is_heuristic else TRIED


def space_rows(view: StudyView) -> list[Row]:
    """A row for each point of the grid: its axes, `state`, `why`, and what is known of its time.

    Of a grid that is too large to be drawn, the configs that were asked for.
    """
    orders = {config: number for number, config in enumerate(view.simulated, start=1)}
    answers = {**view.simulated, **view.measured}
    cells: Iterable[tuple[Any, str, str]] = view.cells()
    if view.num_points > MAX_CELLS:
        cells = (
            (c, "answered" if e.ok else "failed", "" if e.ok else f"{e.status.value}: {e.detail}")
            for c, e in answers.items()
        )
    rows = []
    for config, state, why in cells:
        answer = view.judged.get(config) or answers.get(config)
        rows.append(
            {axis.name: getattr(config, axis.name) for axis in view.axes}
            | {
                "state": state,
                "why": why,
                "time_us": rounded(answer.time_us) if answer else None,
                "order": orders.get(config),
                "role": role_of(view, config) if answer else "",
            }
        )
    return rows


def answer_rows(view: StudyView) -> list[Row]:
    """A row for each config that was simulated, in the order they were asked for."""
    bounds = view.note.bounds_us if view.note else {}
    best: float | None = None
    rows = []
    for number, (config, answer) in enumerate(view.simulated.items(), start=1):
        if answer.time_us is not None:
            best = answer.time_us if best is None else min(best, answer.time_us)
        low, high = answer.metrics.get("interval_us") or (None, None)
        measured = view.measured.get(config)
        rows.append(
            {
                "order": number,
                "config": config_text(config),
                "role": role_of(view, config),
                "time_us": rounded(answer.time_us),
                "best_us": rounded(best),
                "low_us": rounded(low),
                "high_us": rounded(high),
                "bound_us": rounded(bounds.get(answer.candidate.digest)),
                "least_us": rounded(bounds.get("least")),
                "measured_us": rounded(measured.time_us) if measured else None,
                "problem": "" if answer.ok else f"{answer.status.value}: {answer.detail}",
                "bound_by": str(answer.metrics.get("bound_by", "")),
                "mbu": answer.metrics.get("mbu"),
                "vmem_bytes": answer.metrics.get("vmem_bytes"),
            }
        )
    return rows


def marginal_rows(view: StudyView) -> list[Row]:
    """A row for each value of each axis that a config with a time has: the best of these times."""
    times = [(asdict(c), e.time_us or 0.0) for c, e in view.explored.items()]
    rows = []
    for axis in view.axes:
        for value in axis.values:
            having = [us for fields, us in times if fields[axis.name] == value]
            if having and len(axis.values) > 1:
                best = rounded(min(having))
                rows.append({"axis": axis.name, "value": value, "best_us": best,
                             "configs": len(having)})  # fmt: skip
    return rows


def importance_rows(view: StudyView) -> list[Row]:
    """A row for each axis: its importance."""
    found = importances(
        {axis.name: axis.values for axis in view.axes},
        [(asdict(config), e.time_us or 0.0) for config, e in view.explored.items()],
    )
    return [{"axis": name, "importance": round(share, 4)} for name, share in found.items()]


def parallel_rows(view: StudyView) -> list[Row]:
    """A row for each axis of each config with a time."""
    axes = [axis for axis in view.axes if len(axis.values) > 1]
    return [
        {
            "config": config_text(config),
            "role": role_of(view, config),
            "time_us": rounded(answer.time_us),
            "axis": axis.name,
            "value": getattr(config, axis.name),
            "place": round(axis.position(getattr(config, axis.name)), 4),
        }
        for config, answer in view.explored.items()
        for axis in axes
    ]


def cause_rows(view: StudyView) -> list[Row]:
    """A row for each cause of each of the best configs, and of the heuristic: cycles and us."""
    ranked = sorted(view.simulated.values(), key=lambda e: e.time_us or float("inf"))
    shown = [e for e in ranked if e.ok][:MOST_STACKED]
    known = view.simulated.get(view.heuristic.candidate.config) if view.heuristic else None
    if known is not None and known not in shown:
        shown[-1] = known
    return [row for rank, e in enumerate(shown, start=1) for row in causes_of(e, view, rank)]


def causes_of(answer: Evaluation, view: StudyView, rank: int) -> list[Row]:
    """A row for each cause of one config."""
    cycles = answer.metrics.get("cycles_by_owner") or {}
    total = sum(cycles.values()) or 1
    time_us = answer.time_us or 0.0
    config = answer.candidate.config
    return [
        {
            "rank": rank,
            "config": config_text(config),
            "role": role_of(view, config),
            "cause": cause,
            "cycles": cycles[cause],
            "us": rounded(time_us * cycles[cause] / total),
            "time_us": rounded(time_us),
            "at": place,
        }
        for place, cause in enumerate(CAUSES)
        if cycles.get(cause)
    ]


def batch_rows(view: StudyView) -> list[Row]:
    """A row for each batch of each of the best configs, and whether the row's rule picks it."""
    shown = _compared(view)
    batches = (view.plan.workload.get("batches") if view.plan else None) or []
    rule, order = _rule(view), {e.candidate.config: i for i, e in enumerate(view.winners)}
    feature = next((clause.feature for clause in rule if clause.feature), "")
    rows = []
    for index in range(len(shown[0].batch_us) if shown else 0):
        batch = batches[index] if index < len(batches) else {}
        lengths = _lengths(batch)
        use = next(c.use for c in rule if not batch or c.holds(lengths))
        least = min(e.batch_us[index] for e in view.judged.values())
        for answer in shown:
            config = answer.candidate.config
            rows.append(
                {
                    "batch": index,
                    "at": getattr(lengths, feature) if feature and batch else index,
                    "config": config_text(config),
                    "role": role_of(view, config),
                    "us": rounded(answer.batch_us[index]),
                    "over_best": round(answer.batch_us[index] / least, 4),
                    "picked": order.get(config) == use,
                    "weight": batch.get("weight"),
                    "what": _batch_text(batch),
                }
            )
    return rows


def _compared(view: StudyView) -> list[Evaluation]:
    """The winners, the heuristic, and the next best."""
    ranked = sorted(view.judged.values(), key=lambda e: e.time_us or 0.0)
    first = [*view.winners, *([view.heuristic] if view.heuristic else [])]
    both = {e.candidate.config: e for e in (*first, *ranked)}
    return list(both.values())[: max(MOST_COMPARED, len(view.winners))]


def _rule(view: StudyView) -> tuple[Clause, ...]:
    row = view.note.row if view.note else None
    return rule_of(row["rule"]) if row else ALWAYS_FIRST


def rule_of(clauses: Sequence[Mapping[str, Any]]) -> tuple[Clause, ...]:
    """A rule from its JSON form."""
    return tuple(
        Clause(use=c["use"], feature=c.get("if", ""), at_most=c.get("at_most", 0)) for c in clauses
    )


def rule_text(view: StudyView) -> str:
    """The rule that picks among the winners, in words; empty with one config."""
    if len(view.winners) < 2:
        return ""
    names = [config_text(e.candidate.config) for e in view.winners]
    parts = [
        f"{names[c.use]} if {c.feature} <= {c.at_most:,}" if c.feature else f"else {names[c.use]}"
        for c in _rule(view)
    ]
    return "; ".join(parts)


def _lengths(batch: Mapping[str, Any]) -> Lengths:
    return Lengths(**{name: value for name, value in batch.items() if name != "weight"})


def _batch_text(batch: Mapping[str, Any]) -> str:
    if not batch:
        return ""
    lengths = _lengths(batch)
    return (
        f"{lengths.num_seqs} sequences, {lengths.num_tokens:,} new tokens, "
        f"contexts to {lengths.longest_context_tokens:,}"
    )


def rounded(value: float | None) -> float | None:
    """To three decimals; None stays."""
    return None if value is None else round(float(value), 3)
