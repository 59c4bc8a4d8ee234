"""How much faster than the heuristic the best found configs are, over all studies of a fleet.

The gain of a study is that of the best config that was found, whether or not it became a row: of a
gain within the evaluator's error nothing is promoted. Where it is large the heuristic is to be
mended; a table is for finding that, too.
"""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rpa_tune.candidate import Evaluation, Fidelity
from rpa_tune.decide.promote import ERROR_PCT
from rpa_tune.report.study import StudyView

# A heuristic that loses more than this is to be mended.
MEND_PCT = 10.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Gain:
    """What one study says of the heuristic.

    Attributes:
      study: Its name.
      chip: Its chip.
      family: Its kernel family.
      model: The model that its name begins with.
      verdict: What became of it.
      gain_pct: How much longer than the best found config the heuristic takes, percent.
      low_pct: The same if the evaluator errs by all it may in the heuristic's favour.
      high_pct: The same the other way round.
      times_are: `simulated` or `measured`.
      today_pct: The same as `gain_pct` of today's heuristic, if it is another than the study had;
        None where it is the same, or has no time in the store.
    """

    study: str
    chip: str
    family: str
    model: str
    verdict: str
    gain_pct: float
    low_pct: float
    high_pct: float
    times_are: str
    today_pct: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Spread:
    """Gains of studies that have something in common.

    Attributes:
      of: What they have in common: a chip, a family or a model.
      studies: How many.
      tuned: How many of them have a row that beats the heuristic by more than the error.
      median_pct: Half of them gain less.
      p90_pct: Nine of ten gain less, or as much.
      most_pct: The largest.
    """

    of: str
    studies: int
    tuned: int
    median_pct: float
    p90_pct: float
    most_pct: float


def gains(views: Sequence[StudyView]) -> list[Gain]:
    """Of every study whose heuristic has a time, in their order."""
    found = []
    for view in views:
        best = view.decision.best if view.decision else None
        known = view.heuristic.time_us if view.heuristic else None
        if best is None or not best.time_us or not known:
            continue
        candidate = best.candidate
        ratio = known / best.time_us
        error = 1 + ERROR_PCT[best.rung] / 100
        found.append(
            Gain(
                study=view.name,
                chip=candidate.chip.name,
                family=candidate.family.name,
                model=model_of(view),
                verdict=view.verdict,
                gain_pct=round(100 * (ratio - 1), 2),
                low_pct=round(100 * (ratio / error - 1), 2),
                high_pct=round(100 * (ratio * error - 1), 2),
                times_are="measured" if best.fidelity is Fidelity.MEASURED else "simulated",
                today_pct=_today_pct(view, best),
            )
        )
    return found


def _today_pct(view: StudyView, best: Evaluation) -> float | None:
    """See `Gain.today_pct`."""
    candidate = best.candidate
    # Where none can exist, what comes is no config, and has no time.
    config = candidate.family.default_config(candidate.problem, candidate.chip.target)
    answer = view.judged.get(config)
    if answer is None or answer is view.heuristic or not answer.time_us or not best.time_us:
        return None
    return round(100 * (answer.time_us / best.time_us - 1), 2)


def model_of(view: StudyView) -> str:
    """The second part of a study's name: `v6e/llama3-8b/8192 tokens/decode`."""
    parts = view.name.split("/")
    return parts[1] if len(parts) > 2 else ""


def spreads(found: Sequence[Gain], by: Callable[[Gain], str]) -> list[Spread]:
    """The distribution of gains of each group, groups in the order of their first study."""
    groups: dict[str, list[Gain]] = {}
    for gain in found:
        groups.setdefault(by(gain), []).append(gain)
    spread = []
    for name, group in groups.items():
        ordered = sorted(gain.gain_pct for gain in group)
        spread.append(
            Spread(
                of=name,
                studies=len(group),
                tuned=sum(gain.verdict == "tuned" for gain in group),
                median_pct=round(statistics.median(ordered), 2),
                p90_pct=ordered[-(-9 * len(ordered) // 10) - 1],
                most_pct=ordered[-1],
            )
        )
    return spread


def to_mend(found: Sequence[Gain]) -> list[Gain]:
    """Studies whose heuristic loses more than `MEND_PCT`, the largest loss first."""
    losing = [gain for gain in found if gain.gain_pct > MEND_PCT]
    return sorted(losing, key=lambda gain: -gain.gain_pct)


def gains_to_dict(found: Sequence[Gain]) -> dict[str, Any]:
    """JSON form."""
    by = {"chip": _chip_and_family, "family": lambda g: g.family, "model": lambda g: g.model}
    return {
        "error_pct": {fidelity.name.lower(): pct for fidelity, pct in ERROR_PCT.items()},
        "studies": [asdict(gain) for gain in found],
        **{f"by_{name}": [asdict(s) for s in spreads(found, key)] for name, key in by.items()},
        "to_mend": [gain.study for gain in to_mend(found)],
    }


def _chip_and_family(gain: Gain) -> str:
    return f"{gain.chip} {gain.family}"


def gains_text(found: Sequence[Gain]) -> list[str]:
    """For people."""
    if not found:
        return ["no study has a time of the heuristic and of another config"]
    are = " and ".join(sorted({gain.times_are for gain in found}))
    error = max((gain.high_pct - gain.gain_pct) / (1 + gain.gain_pct / 100) for gain in found)
    lines = [f"gain of the best found config over the heuristic, {are}, error {error:.3g} %:"]
    lines.append(f"{'':24}{'studies':>8}{'tuned':>7}{'median %':>10}{'9 of 10 %':>11}{'most %':>8}")
    for by in (_chip_and_family, lambda gain: gain.model):
        lines += [
            f"{s.of:24}{s.studies:>8}{s.tuned:>7}{s.median_pct:>10.1f}{s.p90_pct:>11.1f}"
            f"{s.most_pct:>8.1f}"
            for s in spreads(found, by)
        ]
    mend = to_mend(found)
    what = f"the heuristic loses more than {MEND_PCT:g} % in {len(mend)} of {len(found)} studies"
    lines.append(what + (", to be mended:" if mend else ""))
    lines += [
        f"  {g.study}: {g.gain_pct:.1f} % ({g.low_pct:.1f} to {g.high_pct:.1f})"
        + ("" if g.today_pct is None else f"; today's heuristic {g.today_pct:.1f} %")
        for g in mend
    ]
    if mended := [(g.gain_pct, g.today_pct) for g in found if g.today_pct is not None]:
        then, now = (statistics.fmean(pcts) for pcts in zip(*mended, strict=True))
        lines.append(
            f"today's heuristic is another one in {len(mended)} studies that timed it: "
            f"it loses {now:.1f} % in the mean, {max(pct for _, pct in mended):.1f} % at most, "
            f"and that of the day {then:.1f} % in the mean"
        )
    return lines
