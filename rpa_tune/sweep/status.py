"""What a store and its shards hold, while a sweep writes to them or long after."""

import itertools
import math
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from rpa_kernels.family import config_to_dict
from rpa_tune.candidate import Correctness, Evaluation, Fidelity, Method
from rpa_tune.errors import StoreError
from rpa_tune.models.padding import padding_note
from rpa_tune.store import codec, journal
from rpa_tune.store.journal import Contents
from rpa_tune.store.notes import StudyNote, StudyPlan
from rpa_tune.store.shards import find_shards

# The rate is that of the last answers: earlier ones may be of a run that ended long ago.
_RATE_OVER = 50
_PAUSE_OF_MEDIANS = 20.0  # a gap of so many median gaps, and of a minute, parts two runs
_LEAST_PAUSE_S = 60.0
_AND = " and "  # between the names of studies that ask the same


def read_status(store_file: Path) -> "StoreStatus":
    """Reads a store and its shards. Never blocks a running sweep.

    Raises:
      StoreError: No such store, or not a store.
    """
    shards = find_shards(store_file)
    paths = [path for path in (store_file, *shards.values()) if path.is_file()]
    if not paths:
        raise StoreError("no such store", where=str(store_file))
    return StoreStatus(
        contents={path: journal.read(path) for path in paths},
        running=[path.name for path in paths if journal.has_writer(path)],
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class StoreStatus:
    """What a store and its shards hold.

    Attributes:
      contents: By file.
      running: Names of the files that a run is writing to.
    """

    contents: Mapping[Path, Contents]
    running: Sequence[str]

    @property
    def evaluations(self) -> list[Evaluation]:
        """The last answer of each candidate, fidelity and stamp, in the order of their time."""
        answers: dict[Any, Evaluation] = {}
        for contents in self.contents.values():
            for e in contents.evaluations:
                if e.fidelity is Fidelity.ANALYTICAL:
                    continue  # of an older version: bounds are not stored any more
                stamp = codec.stamp_of(e.provenance, e.fidelity)
                answers[e.candidate.digest, e.fidelity, stamp] = e
        return sorted(answers.values(), key=lambda e: str(e.provenance.get("time", "")))

    @property
    def plans(self) -> dict[str, StudyPlan]:
        """What was planned last for each study, by its digest."""
        return _merged(p for c in self.contents.values() for p in c.plans)

    @property
    def notes(self) -> dict[str, StudyNote]:
        """What studies came to, by their digests."""
        # A run without --shard begins what a shard has ended: one ending is enough.
        return {n.study: n for c in self.contents.values() for n in c.notes}

    def to_dict(self, *, with_stops: bool) -> dict[str, Any]:
        """JSON form; with every candidate that stopped, if asked for."""
        evaluations = self.evaluations
        every_check = [e for e in evaluations if e.fidelity is Correctness.INTERPRETED]
        timed = [e for e in evaluations if e.fidelity is not Correctness.INTERPRETED]
        plans, notes = self.plans, self.notes
        # A check of other kernels says nothing of those that were planned last.
        stamps = {_stamp(plan, Correctness.INTERPRETED) for plan in plans.values()}
        checks = [e for e in every_check if not stamps or _stamp_of(e) in stamps]
        groups = by_study(timed)
        for plan in plans.values():
            groups.setdefault(plan.study, [])
        studies = [
            _summarize(group, plans.get(study), notes.get(study), with_stops=with_stops)
            for study, group in groups.items()
        ]
        rate = _rate_per_s(timed)
        left = sum(study["evaluations_left"] or 0 for study in studies)
        return {
            "running": bool(self.running),
            "writers": list(self.running),
            "files": [str(path) for path in self.contents],
            "answers": len(evaluations),
            "damaged_lines": [n for c in self.contents.values() for n in c.damaged_lines],
            "studies": studies,
            "studies_finished": sum(study["verdict"] is not None for study in studies),
            "evaluations_left": left,
            "rate_per_s": None if rate is None else round(rate, 4),
            "left_s": None if not rate else math.ceil(left / rate),
            "verified": dict(Counter(check.status.value for check in checks)),
            "verified_of_other_versions": len(every_check) - len(checks),
        }


def _merged(plans: Iterable[StudyPlan]) -> dict[str, StudyPlan]:
    """The last plan of each study, under all names that it was planned by.

    Models that have a problem in common share its answers; a name may be made of several already.
    """
    last: dict[str, StudyPlan] = {}
    names: dict[str, dict[str, None]] = {}
    for plan in plans:
        last[plan.study] = plan
        names.setdefault(plan.study, {}).update(dict.fromkeys(plan.name.split(_AND)))
    return {study: replace(plan, name=_AND.join(names[study])) for study, plan in last.items()}


def by_study(evaluations: Iterable[Evaluation]) -> dict[str, list[Evaluation]]:
    """Answers about one family, problem, chip and workload, in order of appearance."""
    groups: dict[str, list[Evaluation]] = {}
    for evaluation in evaluations:
        groups.setdefault(evaluation.candidate.study, []).append(evaluation)
    return groups


def _rate_per_s(answers: Sequence[Evaluation]) -> float | None:
    """Answers a second lately, up to the last pause; None when there are too few to say."""
    texts = [str(e.provenance.get("time", "")) for e in answers]
    times = [datetime.fromisoformat(text).timestamp() for text in texts if text]
    gaps = [after - before for before, after in itertools.pairwise(times)]
    gaps = gaps[-_RATE_OVER:]
    if not gaps:
        return None
    pause = max(_LEAST_PAUSE_S, _PAUSE_OF_MEDIANS * statistics.median(gaps))
    for index in range(len(gaps) - 1, -1, -1):
        if gaps[index] > pause:
            gaps = gaps[index + 1 :]
            break
    return len(gaps) / sum(gaps) if sum(gaps) else None


def _summarize(
    group: Sequence[Evaluation],
    plan: StudyPlan | None,
    note: StudyNote | None,
    *,
    with_stops: bool,
) -> dict[str, Any]:
    current = of_planned_versions(group, plan)
    timed = [e for e in current if e.time_us is not None]
    highest = max((e.rung for e in timed), default=None)
    times = [e.time_us or 0.0 for e in timed if e.fidelity is highest]
    heuristic = [
        e.time_us for e in timed
        if e.fidelity is highest and plan and config_to_dict(e.candidate.config) == plan.heuristic
    ]  # fmt: skip
    stopped = Counter(stop.reason for stop in note.stopped) if note else Counter()
    summary: dict[str, Any] = {
        "study": _name(group[0]) if group else plan.name if plan else "",
        "name": plan.name if plan else None,
        "padding": padding_note(group[0].candidate.problem) if group else "",
        "evaluated": len(group),
        "of_other_versions": len(group) - len(current),
        "statuses": dict(Counter(e.status.value for e in group)),
        "measured": dict(Counter(e.status.value for e in group if e.fidelity is Fidelity.MEASURED)),
        "fidelity": None if highest is None else highest.name.lower(),
        "best_us": min(times, default=None),
        "heuristic_us": heuristic[-1] if heuristic else None,
        "verdict": note.verdict if note else None,
        "evaluations_left": _num_left(group, plan, note),
        "stopped": dict(stopped.most_common()),
        "agreement": note.agreement if note else None,
        "last": max((str(e.provenance.get("time", "")) for e in group), default=""),
    }
    if with_stops:
        summary["stops"] = [asdict(stop) for stop in note.stopped] if note else []
    return summary


def of_planned_versions(group: Iterable[Evaluation], plan: StudyPlan | None) -> list[Evaluation]:
    """The answers of the versions that were planned last; all of them without a plan.

    Times of other versions are no times of what was planned last, and not to be mixed with them.
    """
    return [e for e in group if plan is None or _stamp_of(e) == _stamp(plan, e.fidelity)]


def _stamp_of(evaluation: Evaluation) -> tuple[str, ...]:
    # A plan's stamp is that of its times, without the verifier.
    return codec.stamp_of({**evaluation.provenance, "verifier": ""}, evaluation.fidelity)


def _stamp(plan: StudyPlan, fidelity: Method) -> tuple[str, ...]:
    """The stamp that an answer of the plan's versions has."""
    # Stores of older versions have shorter stamps: what they lack counts as empty.
    return codec.stamp_of(dict(zip(codec.STAMP_KEYS, plan.stamp, strict=False)), fidelity)


def _num_left(
    group: Sequence[Evaluation], plan: StudyPlan | None, note: StudyNote | None
) -> int | None:
    """Simulations to come, at most; None when the store does not say what was planned."""
    if plan is None:
        return None
    if note is not None:
        return 0
    done = sum(
        e.fidelity is Fidelity.SIMULATED and codec.stamp_of(e.provenance) == plan.stamp
        for e in group
    )
    return max(0, plan.num_evaluations - done)


def _name(evaluation: Evaluation) -> str:
    return f"{evaluation.candidate.title}, {evaluation.candidate.workload}"
