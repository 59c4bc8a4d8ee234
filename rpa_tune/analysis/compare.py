"""Two configs of one problem side by side: which cause grew, which loop, which unit."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rpa_kernels.family import config_to_dict
from rpa_tune.analysis.explain import Explanation
from rpa_tune.errors import UsageError
from rpa_tune.llo.timeline import LoopRegion, Timeline
from rpa_tune.report.nest import places


@dataclass(frozen=True, kw_only=True, slots=True)
class Change:
    """One figure of two launches.

    Attributes:
      name: A cause, a loop by its place in the nest (`2.1` is the first loop in the second
        outermost one), or an issue slot.
      before: In the first; None where it has no such loop.
      after: In the second, likewise.
    """

    name: str
    before: float | None
    after: float | None

    @property
    def change(self) -> float:
        """More (above zero) or less in the second."""
        return (self.after or 0.0) - (self.before or 0.0)


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """Two explained configs.

    Attributes:
      before: The first.
      after: The second.
      causes: Cycles of one launch by cause, the mean over the workload; largest change first.
      loops: Cycles of each loop in the batch that takes most of the first one's time, likewise.
      units: Instructions of each issue slot in that batch, likewise.
      figures: Bundles, copies, bytes of that batch.
      timelines: Of that batch, the first's and the second's.
    """

    before: Explanation
    after: Explanation
    causes: tuple[Change, ...]
    loops: tuple[Change, ...]
    units: tuple[Change, ...]
    figures: tuple[Change, ...]
    timelines: tuple[Timeline, Timeline]

    @property
    def ratio(self) -> float:
        """The second's time over the first's."""
        return (self.after.time_us or 0.0) / (self.before.time_us or 1.0)

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        sides = {"before": self.before, "after": self.after}
        return {
            **{
                name: {
                    "config": config_to_dict(side.question.candidate.config),
                    "time_us": side.time_us,
                    "lower_bound_us": side.lower_bound_us,
                    "bound_by": side.evaluation.metrics["bound_by"],
                }
                for name, side in sides.items()
            },
            "ratio": self.ratio,
            **changes_to_dict(
                {
                    "causes": self.causes,
                    "loops": self.loops,
                    "units": self.units,
                    "figures": self.figures,
                }
            ),
        }


def changes_to_dict(changes: Mapping[str, Sequence[Change]]) -> dict[str, Any]:
    """JSON form of the four kinds of changes."""
    return {
        name: [asdict(change) | {"change": change.change} for change in each]
        for name, each in changes.items()
    }


def compare(before: Explanation, after: Explanation) -> Comparison:
    """What is different between two configs of one problem, on the same batches.

    Raises:
      UsageError: They are not of one problem and workload, or one of them has no time.
    """
    sides = (before, after)
    for side in sides:
        if not side.ok:
            config = asdict(side.question.candidate.config)
            fields = ",".join(f"{name}={value}" for name, value in config.items())
            raise UsageError(
                f"{fields} has no time to compare: "
                f"{side.evaluation.status.value}: {side.evaluation.detail}",
                where="--compare",
            )
    if before.question.candidate.study != after.question.candidate.study:
        raise UsageError("only configs of one problem, chip and workload can be compared")
    cycles = [side.evaluation.metrics["cycles_by_owner"] for side in sides]
    timelines = _same_batch(before, after)
    changes = compare_timelines(*timelines) | {"causes": _ranked(_changes(*cycles))}
    return Comparison(before=before, after=after, timelines=timelines, **changes)


def compare_timelines(first: Timeline, second: Timeline) -> dict[str, tuple[Change, ...]]:
    """The `causes`, `loops`, `units` and `figures` of two launches; see `Comparison`."""
    both = (first, second)
    return {
        "causes": _ranked(_changes(*(dict(t.cycles_by_owner) for t in both))),
        "loops": _ranked(_changes(*(_by_place(t.loops) for t in both))),
        "units": _ranked(_changes(*(_instructions(t) for t in both))),
        "figures": tuple(_changes(*(_figures(t) for t in both))),
    }


def _same_batch(before: Explanation, after: Explanation) -> tuple[Timeline, Timeline]:
    """Both timelines of the batch that takes most of the first one's time."""
    _, heaviest = before.simulation.heaviest(before.question.workload)
    index = before.simulation.timelines.index(heaviest)
    return heaviest, after.simulation.timelines[index]


def _changes(
    before: Mapping[str, float | None], after: Mapping[str, float | None]
) -> Iterable[Change]:
    for name in dict.fromkeys([*before, *after]):
        change = Change(name=name, before=before.get(name), after=after.get(name))
        if change.before or change.after:
            yield change


def _ranked(changes: Iterable[Change]) -> tuple[Change, ...]:
    return tuple(sorted(changes, key=lambda change: -abs(change.change)))


def _by_place(loops: Sequence[LoopRegion]) -> dict[str, float | None]:
    names = places((loop.first, loop.last) for loop in loops)
    cycles = {(loop.first, loop.last): loop.cycles for loop in loops}
    return {name: cycles[bounds] for bounds, name in names.items()}


def _instructions(timeline: Timeline) -> dict[str, float | None]:
    return {name: use.instructions for name, use in timeline.slots.items()}


def _figures(timeline: Timeline) -> dict[str, float | None]:
    return {
        "bundles": timeline.num_bundles,
        "copies": timeline.num_copies,
        "bytes read": timeline.read_bytes,
        "bytes written": timeline.write_bytes,
        "MXU cycles": round(timeline.mxu_busy_cycles),
    }
