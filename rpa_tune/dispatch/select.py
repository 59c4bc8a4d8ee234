"""Which configs serve a problem: an exact row, the nearest one that fits, or the heuristic.

Every answer says where it comes from; a miss is never silent.
"""

import enum
from dataclasses import dataclass
from typing import Any, Literal

from rpa_kernels import load_family
from rpa_kernels.infeasible import Infeasible
from rpa_kernels.problem import Problem
from rpa_kernels.target import Target
from rpa_tune.errors import TableError
from rpa_tune.tables.key import (
    NEAREST_LIMIT,
    TuningKey,
    differences,
    problem_of,
    timed_key,
    tuning_key,
)
from rpa_tune.tables.loss import ExpectedLoss, expected_loss
from rpa_tune.tables.reader import Tables
from rpa_tune.tables.row import HEURISTIC, TUNED, TableRow

# What of a gain over the heuristic a neighbour's config is taken to keep elsewhere. A guess: where
# the heuristic lost in one of two neighbours, it lost half as much in the other.
_SHARED_GAIN = 0.5
OnMiss = Literal["nearest", "heuristic", "error"]


class Source(enum.StrEnum):
    """Where a choice comes from, best first; INFEASIBLE where nothing can run."""

    EXACT = "exact"
    NEAREST = "nearest"
    HEURISTIC = "heuristic"
    INFEASIBLE = "infeasible"


@dataclass(frozen=True, kw_only=True, slots=True)
class Choice:
    """The configs of one family for one problem, and why.

    Attributes:
      key: What was looked up.
      source: Exact row, nearest row, or heuristic. Where the nearest row pins the heuristic, the
        heuristic's config for this very problem is a nearest answer: that row says it was compared.
      found: Where the configs come from, in words.
      configs: Config records; one of them serves a step.
      row: The row, whose rule picks among the configs (a row that pins the heuristic has one); or
        None for the heuristic without a row, which has one, too.
      distance: How far the row's key is; 0 for an exact row, None for the heuristic.
      loss: What a row is expected to lose that was timed on another key: a nearest one, or one that
        a study of another shape filled. None where that is not known. Whether the row was made with
        today's kernels is not looked at here.
    """

    key: TuningKey
    source: Source
    found: str
    configs: tuple[Any, ...]
    row: TableRow | None = None
    distance: float | None = None
    loss: ExpectedLoss | None = None

    @property
    def why(self) -> str:
        """One line for a log."""
        if self.source is not Source.NEAREST:
            return self.found
        return f"{self.found}; {self.loss or 'expected loss not known'}"


def select(
    problem: Problem, target: Target, family: str, tables: Tables, *, on_miss: OnMiss = "nearest"
) -> Choice | Infeasible:
    """Chooses the configs of `family` for `problem`.

    Args:
      problem: Static shapes and dtypes.
      target: The chip's limits.
      family: Kernel family.
      tables: Rows to choose from.
      on_miss: Without an exact row: take the nearest one that fits, go straight to the
        heuristic, or raise.

    Returns:
      A choice, or the limit that keeps the family from serving this problem at all.

    Raises:
      TableError: No exact row, and `on_miss` is `error`.
    """
    key = tuning_key(problem, target.chip, family)
    row = tables.exact(key)
    reason = "no row for this key"
    if row is not None:
        configs = _fitting(row, problem, target)
        if not isinstance(configs, str):
            return Choice(
                key=key, source=Source.EXACT, found=f"exact: {_name(row)}", configs=configs,
                row=row, distance=0.0, loss=_loss(key, row, row.evidence.verdict),
            )  # fmt: skip
        reason = f"{_name(row)} does not serve this problem ({configs})"
    if on_miss == "error":
        raise TableError(
            f"no tuned {family} config for {target.chip}: {reason}",
            where=row.where if row else "",
            hint='sweep this problem, or load the dispatcher with on_miss="nearest"',
        )
    if on_miss == "nearest":
        choice = _nearest(key, problem, target, tables)
        if isinstance(choice, Choice):
            return choice
        reason += f", and {choice}"
    config = _heuristic(family, problem, target)
    if isinstance(config, Infeasible):
        return config
    return Choice(key=key, source=Source.HEURISTIC, found=f"heuristic: {reason}", configs=(config,))


def _heuristic(name: str, problem: Problem, target: Target) -> Any | Infeasible:
    """The family's own default held against its own limits, or the limit that it breaks."""
    family = load_family(name)
    config = family.default_config(problem, target)
    if isinstance(config, Infeasible):
        return config
    blocked = family.check(problem, config, target)
    return config if blocked is None else blocked


def _nearest(key: TuningKey, problem: Problem, target: Target, tables: Tables) -> Choice | str:
    """The nearest row that is worth taking, or why none is.

    A row that keeps the heuristic stands for the heuristic of this very problem. A config that beat
    the heuristic elsewhere is taken where half of that is more than what rows so far away lose.
    """
    left = ""
    for near in tables.by_distance(key):
        if near.distance > NEAREST_LIMIT:
            break
        if near.distance == 0:
            continue
        row, said, verdict = near.row, "", TUNED
        configs: tuple[Any, ...] | Infeasible | str
        if row.evidence.verdict == HEURISTIC and rests_on_default(row, target):
            # The neighbour found the heuristic fine: the heuristic for this problem, then, not
            # the config that it had for the neighbour's.
            config = _heuristic(key.family, problem, target)
            said = "; the heuristic won there, and this is that of the problem itself"
            verdict = HEURISTIC
            configs = config if isinstance(config, Infeasible) else (config,) * len(row.configs)
        else:
            configs = _fitting(row, problem, target)
        if not isinstance(configs, tuple):
            continue
        loss, gain = _loss(key, row, verdict), _gain_pct(row)
        if verdict == TUNED and loss and gain is not None and _SHARED_GAIN * gain < loss.pct:
            left = left or f" but {_name(row)}, which gained {gain:.1f} % there: {loss}"
            continue
        changed = ", ".join(
            f"{name} {theirs} instead of {ours}"
            for name, (ours, theirs) in differences(key, row.key).items()
        )
        return Choice(
            key=key,
            source=Source.NEAREST,
            found=f"nearest: {_name(row)}, distance {near.distance:.2f} ({changed}){said}",
            configs=configs,
            row=row,
            distance=near.distance,
            loss=loss,
        )
    return f"none that fits within distance {NEAREST_LIMIT:g}{left}"


def _gain_pct(row: TableRow) -> float | None:
    """How much slower the heuristic was than a row's configs, percent of their time."""
    speedup = row.evidence.speedup
    return None if speedup is None else 100 * (speedup - 1)


def _loss(key: TuningKey, row: TableRow, verdict: str) -> ExpectedLoss | None:
    """What a row is expected to lose for a key, by what its study timed; nothing on that very key.

    A row whose config had no rival with a time says nothing of what is best.
    """
    timed = timed_key(row.key, row.evidence.problem)
    if timed == key or row.evidence.num_candidates < 2:
        return None
    return expected_loss(key, timed, verdict)


def rests_on_default(row: TableRow, target: Target) -> bool:
    """Whether a row was compared with today's default of its family, not with that of its day."""
    family = load_family(row.key.family)
    if row.heuristic is None:
        return False
    try:
        problem = problem_of(row.key, row.evidence.problem or {})
        then = family.config_from_dict(row.heuristic)
    except ValueError:
        return False
    return bool(family.default_config(problem, target) == then)


def _fitting(row: TableRow, problem: Problem, target: Target) -> tuple[Any, ...] | str:
    """The row's configs as records when all of them fit `problem`, else the reason."""
    family = load_family(row.key.family)
    configs = []
    for fields in row.configs:
        try:
            config = family.config_from_dict(fields)
        except ValueError as error:
            return str(error)
        blocked = family.check(problem, config, target)
        if blocked is not None:
            return str(blocked)
        configs.append(config)
    return tuple(configs)


def _name(row: TableRow) -> str:
    place = "/".join(row.where.replace("\\", "/").split("/")[-2:]) or "a row without a file"
    return f"{place} ({row.evidence.fidelity}, {row.evidence.verdict})"
