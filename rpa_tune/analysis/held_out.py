"""What nearest rows lose, by rows that are hidden: `audit --held-out`. No compiler.

The shapes of a chip's rows are dealt into thirds by a digest. Each third in turn is hidden, and
every row of it is looked up in what is left. The answer's time is the one that the hidden row's own
study found for that config: the study's winner, its runners-up and the heuristic are in the row's
evidence, all its other configs in the store. An answer that the study never timed is counted, and
nothing is made up for it.
"""

import contextlib
import hashlib
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from rpa_kernels.infeasible import Infeasible
from rpa_tune.candidate import Candidate, Evaluation, Fidelity
from rpa_tune.dispatch.select import Source, select
from rpa_tune.families.family import Family
from rpa_tune.families.registry import known_family
from rpa_tune.hw.chip import Chip, load_chip
from rpa_tune.tables.key import TuningKey, problem_of, timed_key
from rpa_tune.tables.reader import Tables
from rpa_tune.tables.row import TableRow

NUM_PARTS = 3
# Two rows that differ in these alone are of one shape, and hidden together.
_MAXIMA = ("max_num_tokens", "max_num_seqs", "max_context_tokens")


@dataclass(frozen=True, kw_only=True, slots=True)
class Hidden:
    """A row that was hidden, and what was found in its place.

    Attributes:
      row: The row.
      source: What stood in for it.
      why: The answer's reason.
      loss_pct: How much slower the answer is than the best config that the row's study knows,
        percent; None where the study never timed it.
    """

    row: TableRow
    source: Source
    why: str
    loss_pct: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class HeldOut:
    """What came of hiding rows.

    Attributes:
      num_shapes: Shapes that were dealt out.
      rows: Every row of them whose own problem was timed, with today's kernels.
    """

    num_shapes: int
    rows: tuple[Hidden, ...]

    def losses(self, source: Source) -> list[float]:
        """Those that are known of answers from one source, percent."""
        found = [hidden for hidden in self.rows if hidden.source is source]
        return [hidden.loss_pct for hidden in found if hidden.loss_pct is not None]

    def num_untimed(self, source: Source) -> int:
        """Answers from one source that no study timed."""
        return sum(h.source is source and h.loss_pct is None for h in self.rows)

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        by_source = {}
        for source in (Source.NEAREST, Source.HEURISTIC):
            losses = self.losses(source)
            by_source[source.value] = {
                "rows": len(losses) + self.num_untimed(source),
                "untimed": self.num_untimed(source),
                "mean_loss_pct": statistics.fmean(losses) if losses else None,
                "worst_loss_pct": max(losses, default=None),
            }
        return {"shapes": self.num_shapes, "rows": len(self.rows), **by_source}


def hold_out(tables: Tables, chip_name: str, answers: Iterable[Evaluation] = ()) -> HeldOut:
    """Hides each third of the shapes of a chip in turn, and looks their rows up in the others.

    Rows that a study of another shape filled are hidden with their shape, but not looked up: their
    own problem has no time. Neither are rows of other kernels than today's.

    Args:
      tables: Rows; those of other chips play no part.
      chip_name: Name of the chip.
      answers: Of stores: times of configs that the rows' evidence does not name.
    """
    chip = load_chip(chip_name)
    rows = [row for row in tables if row.key.chip == chip_name]
    part_of = {shape: _part(shape) for shape in {_shape(row.key) for row in rows}}
    timed: dict[str, dict[Any, float]] = {}
    for answer in answers:
        if answer.ok and answer.fidelity is Fidelity.SIMULATED and answer.time_us:
            times = timed.setdefault(answer.candidate.study, {})
            times[answer.candidate.config] = answer.time_us
    found = []
    for part in range(NUM_PARTS):
        shown = Tables(row for row in rows if part_of[_shape(row.key)] != part)
        for row in rows:
            if part_of[_shape(row.key)] == part:
                found += _look_up(row, chip, shown, timed)
    return HeldOut(num_shapes=len(part_of), rows=tuple(found))


def _shape(key: TuningKey) -> TuningKey:
    sizes: dict[str, Any] = dict.fromkeys(_MAXIMA, 0)
    return replace(key, family="", **sizes)


def _part(shape: TuningKey) -> int:
    return int(hashlib.sha256(str(shape).encode()).hexdigest()[:8], 16) % NUM_PARTS


def _look_up(
    row: TableRow, chip: Chip, shown: Tables, timed: dict[str, dict[Any, float]]
) -> list[Hidden]:
    """The answer in a row's place; none for a row that says nothing of today's kernels."""
    evidence, family = row.evidence, known_family(row.key.family)
    if family is None or not family.is_launched or evidence.problem is None:
        return []
    is_own = timed_key(row.key, evidence.problem) == row.key
    if not is_own or evidence.kernel_digest != family.digest:
        return []
    problem = problem_of(row.key, evidence.problem)
    choice = select(problem, chip.target, row.key.family, shown)
    if isinstance(choice, Infeasible):
        return []
    study = Candidate(
        family=family, problem=problem, config=None, chip=chip, workload=evidence.workload_digest,
        libtpu_args=evidence.libtpu_args,
    ).study  # fmt: skip
    times = {**timed.get(study, {}), **_said_times(row, family)}
    best = min([evidence.time_us, *times.values()])
    answer = set(choice.configs)
    # Of several configs the rule takes one for each step; their mix has no time here.
    known = times.get(answer.pop()) if len(answer) == 1 else None
    loss = None if known is None else 100 * (known / best - 1)
    return [Hidden(row=row, source=choice.source, why=choice.why, loss_pct=loss)]


def _said_times(row: TableRow, family: Family) -> dict[Any, float]:
    """Config -> its time in microseconds that a row says; none of configs that are no more."""
    evidence = row.evidence
    said = [(one["config"], float(one["time_us"])) for one in evidence.runners_up]
    if row.heuristic is not None and evidence.heuristic_us is not None:
        said.append((row.heuristic, evidence.heuristic_us))
    if len(row.configs) == 1:
        said.append((row.configs[0], evidence.time_us))
    times = {}
    for fields, time_us in said:
        with contextlib.suppress(ValueError):
            times[family.config_from_dict(fields)] = time_us
    return times


def held_out_text(found: HeldOut) -> list[str]:
    """For people."""
    if not found.rows:
        return ["held out: no row of this chip says what it was timed on, with today's kernels"]
    parts = f"each third of {found.num_shapes} shapes hidden in turn, {len(found.rows)} rows"
    lines = [f"held out: {parts} looked up in the others (simulated)"]
    for source in (Source.NEAREST, Source.HEURISTIC):
        losses, untimed = found.losses(source), found.num_untimed(source)
        if not losses and not untimed:
            continue
        what = "no loss is known"
        if losses:
            what = f"mean loss {statistics.fmean(losses):.2f} %, worst {max(losses):.2f} %"
        left = f"; {untimed} more that their studies never timed" if untimed else ""
        lines.append(f"  {len(losses)} {source}: {what}{left}")
    return lines


def worst(found: HeldOut, number: int = 3) -> Sequence[Hidden]:
    """The rows that lost most."""
    known = [hidden for hidden in found.rows if hidden.loss_pct]
    return sorted(known, key=lambda hidden: -(hidden.loss_pct or 0.0))[:number]
