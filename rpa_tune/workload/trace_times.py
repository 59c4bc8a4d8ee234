"""In which unit a trace's times are, and which of them cannot be meant.

A unit is told (`time_unit:`), said by a date or by the column's name, a property of the format, or
visible from numbers that count from 1970. Else the trace is refused: seconds taken for
milliseconds make a thousandfold load, and nothing else looks wrong.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from rpa_tune.errors import TraceError
from rpa_tune.workload.columns import (
    DELAY_NAMES,
    SECONDS_NAMES,
    TIME_NAMES,
    TraceFormat,
    plain,
    unit_in_name,
)
from rpa_tune.workload.draft import BadFieldError, Draft, Layout, Refusals

UNITS_PER_S = {"s": 1.0, "ms": 1e3, "us": 1e6, "ns": 1e9}
EPOCH_S = (1e9, 4.2e9)  # 2001 to 2103, as seconds since 1970
# A time cannot be meant when it is so many times the span of nearly all others away from them, and
# a week at least. A row of 1970, or one in another unit, would make the trace last for years.
FAR = 100.0
FAR_S = 7 * 86_400.0
NEARLY_ALL = 0.9


@dataclass(frozen=True, kw_only=True, slots=True)
class TimeUnit:
    """How times are to be read.

    Attributes:
      unit: `s`, `ms`, `us`, `ns` or `date`; None in a file without times.
      basis: How that is known, in words.
    """

    unit: str | None
    basis: str


def settle_times(
    drafts: Sequence[Draft],
    layout: Layout,
    known: TraceFormat,
    told: str | None,
    refusals: Refusals,
) -> tuple[list[Draft], TimeUnit]:
    """Turns times and delays of all rows into seconds, in place.

    Args:
      drafts: Rows in the file's order.
      layout: Its columns.
      known: Its format.
      told: Unit that a person gave, or None.
      refusals: What to do with rows whose time cannot be meant.

    Returns:
      (Rows that are left, the unit).

    Raises:
      TraceError: The unit is not known, or a row is bad.
    """
    unit = _unit_of_times(drafts, layout, known, told)
    column = layout.time or ""
    kept = []
    for draft in drafts:
        if draft.time is not None and draft.is_date != (unit.unit == "date"):
            kinds = ("a number", "dates") if unit.unit == "date" else ("a date", "numbers")
            detail = f"{kinds[0]} among {kinds[1]}"
            refusals.refuse(draft.place, BadFieldError(column, "bad time", detail))
            continue
        if draft.time is not None and not draft.is_date:
            draft.time /= UNITS_PER_S[unit.unit or "s"]
        kept.append(draft)
    _settle_delays(kept, layout, known, told)
    return _without_far(kept, column, refusals), unit


def _unit_of_times(
    drafts: Sequence[Draft], layout: Layout, known: TraceFormat, told: str | None
) -> TimeUnit:
    times = [draft.time for draft in drafts if draft.time is not None and not draft.is_date]
    num_dates = sum(draft.is_date for draft in drafts)
    if not times and not num_dates:
        return TimeUnit(unit=None, basis="no times")
    if num_dates > len(times):
        if told:
            raise TraceError(
                f"times are dates: time_unit={told} does not apply",
                where=drafts[0].place,
            )
        return TimeUnit(unit="date", basis="written dates")
    column = layout.time or "timestamp"
    if told:
        return TimeUnit(unit=told, basis="as told")
    if (unit := unit_in_name(column, TIME_NAMES)) is not None:
        return TimeUnit(unit=unit, basis=f"by the name of {column!r}")
    usual = known.time_unit or ("s" if plain(column) in SECONDS_NAMES else None)
    epoch = _epoch_unit(statistics.median(times))
    if epoch and (epoch, usual) != ("s", "ms"):
        return TimeUnit(unit=epoch, basis="counted from 1970")
    has_fractions = any(not time.is_integer() for time in times)
    if usual and not epoch and not (known.whole_times and has_fractions):
        basis = f"as {known.name} has it" if known.time_unit else f"usual for {column!r}"
        return TimeUnit(unit=usual, basis=basis)
    if max(times) == min(times):
        return TimeUnit(unit="s", basis="all at one time")
    raise _unknown_unit(column, times, drafts[0].place, known)


def _unknown_unit(
    column: str, times: Sequence[float], place: str, known: TraceFormat
) -> TraceError:
    span = max(times) - min(times)
    why = f"; those of {known.name} are whole milliseconds" if known.whole_times else ""
    return TraceError(
        f"unit of {column!r} is not known: the numbers span {span:g} s or {span:g} ms{why}",
        where=place,
        hint="give the unit with {} or {}",
        settings=("requests: {time_unit: s}", "requests: {time_unit: ms}"),
    )


def _epoch_unit(time: float) -> str | None:
    """The unit in which a number is a time of our days, counted from 1970."""
    return next(
        (u for u, per_s in UNITS_PER_S.items() if EPOCH_S[0] <= time / per_s < EPOCH_S[1]), None
    )


def _settle_delays(
    drafts: Sequence[Draft], layout: Layout, known: TraceFormat, told: str | None
) -> None:
    """Turns delays into seconds: their unit is told, in the name, or the format's.

    Raises:
      TraceError: It is none of these, and there is a delay other than 0.
    """
    delayed = [draft for draft in drafts if draft.delay]
    if not delayed or layout.delay is None:
        return
    unit = unit_in_name(layout.delay, DELAY_NAMES) or told or known.time_unit
    if unit is None:
        raise _unknown_unit(
            layout.delay, [0.0, *(d.delay or 0.0 for d in delayed)], delayed[0].place, known
        )
    for draft in delayed:
        draft.delay = (draft.delay or 0.0) / UNITS_PER_S[unit]


def _without_far(drafts: list[Draft], column: str, refusals: Refusals) -> list[Draft]:
    """The rows whose time is near enough to those of the others.

    Judged by the middle nine tenths, which a few wrong times do not move; fewer than three times
    cannot be judged.
    """
    times = sorted(draft.time for draft in drafts if draft.time is not None)
    if len(times) < 3:
        return drafts
    edge = math.ceil((1 - NEARLY_ALL) / 2 * (len(times) - 1))
    low, high = times[edge], times[-1 - edge]
    reach = max(FAR * (high - low), FAR_S)
    kept = []
    for draft in drafts:
        if draft.time is None or low - reach <= draft.time <= high + reach:
            kept.append(draft)
            continue
        detail = (
            f"{max(low - draft.time, draft.time - high):,.0f} s away from nearly all others, "
            f"which span {high - low:,.0f} s"
        )
        refusals.refuse(draft.place, BadFieldError(column, "far-off time", detail))
    return kept
