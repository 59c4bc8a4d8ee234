"""In which unit times are, by what decides first, and which cannot be meant."""

import pytest

from rpa_tune.errors import TraceError
from rpa_tune.workload.columns import BY_COLUMNS, MOONCAKE, TraceFormat
from rpa_tune.workload.draft import Draft, Layout, Refusals
from rpa_tune.workload.trace_times import FAR_S, TimeUnit, settle_times

NOW_S = 1.7e9  # a time of our days, counted from 1970


def drafts_at(
    *times: float | None, is_date: bool = False, delay: float | None = None
) -> list[Draft]:
    return [
        Draft(
            place=f"t:{i}",
            prompt=9,
            output=1,
            time=t,
            is_date=is_date and t is not None,
            delay=delay,
        )
        for i, t in enumerate(times)
    ]


def settle(
    drafts: list[Draft],
    column: str | None = "timestamp",
    known: TraceFormat = BY_COLUMNS,
    told: str | None = None,
    *,
    delay: str | None = None,
    drop: bool = False,
) -> tuple[list[Draft], TimeUnit, Refusals]:
    row = {"input_length": 1, "output_length": 1, **dict.fromkeys(filter(None, (column, delay)), 0)}
    refusals = Refusals(drop_bad=drop)
    kept, unit = settle_times(drafts, Layout.of(row), known, told, refusals)
    return kept, unit, refusals


@pytest.mark.parametrize(
    ("times", "column", "known", "told", "unit", "basis"),
    [
        ((0.0, 5000.0), "arrival_ms", MOONCAKE, "us", "us", "as told"),
        ((0.0, 5000.0), "arrival_us", MOONCAKE, None, "us", "by the name of 'arrival_us'"),
        ((NOW_S * 1e3, NOW_S * 1e3 + 5), "timestamp", BY_COLUMNS, None, "ms", "counted from 1970"),
        ((NOW_S * 1e9, NOW_S * 1e9 + 5), "time", BY_COLUMNS, None, "ns", "counted from 1970"),
        ((NOW_S, NOW_S + 5), "timestamp", BY_COLUMNS, None, "s", "counted from 1970"),
        ((0.0, 5000.0), "timestamp", MOONCAKE, None, "ms", "as Mooncake has it"),
        ((0.0, 5000.0), "arrival", BY_COLUMNS, None, "s", "usual for 'arrival'"),
        ((7.0, 7.0), "timestamp", BY_COLUMNS, None, "s", "all at one time"),
        ((None, None), None, BY_COLUMNS, None, None, "no times"),
    ],
)
def test_what_decides_first(times, column, known, told, unit, basis) -> None:
    per_s = {None: 1, "s": 1, "ms": 1e3, "us": 1e6, "ns": 1e9}[unit]
    kept, found, _ = settle(drafts_at(*times), column, known, told)
    assert found == TimeUnit(unit=unit, basis=basis)
    assert [d.time for d in kept] == [None if t is None else t / per_s for t in times]


@pytest.mark.parametrize(
    ("times", "known", "why"),
    [
        ((0.0, 5000.0), BY_COLUMNS, "the numbers span 5000 s or 5000 ms"),
        ((0.0, 0.5), MOONCAKE, "those of Mooncake are whole milliseconds"),
        # Milliseconds of the format, or seconds since 1970: one of the two is wrong.
        ((NOW_S, NOW_S + 7), MOONCAKE, "the numbers span 7 s or 7 ms"),
    ],
)
def test_a_unit_that_could_be_two_is_asked_for(times, known: TraceFormat, why: str) -> None:
    with pytest.raises(TraceError, match=why) as caught:
        settle(drafts_at(*times), known=known)
    assert caught.value.settings == ("requests: {time_unit: s}", "requests: {time_unit: ms}")


def test_dates_and_numbers_do_not_mix() -> None:
    mixed = [*drafts_at(10.0, 20.0, is_date=True), *drafts_at(5.0)]
    kept, unit, refusals = settle(mixed, drop=True)
    assert (unit.unit, [d.time for d in kept]) == ("date", [10.0, 20.0])
    assert refusals.dropped == {"bad time": 1}
    with pytest.raises(TraceError, match="bad time: a number among dates") as caught:
        settle(mixed)
    assert caught.value.where == "t:0, column 'timestamp'"
    one_date = [*drafts_at(10.0, is_date=True), *drafts_at(5.0, 6.0)]
    with pytest.raises(TraceError, match="a date among numbers"):
        settle(one_date, told="s")
    with pytest.raises(TraceError, match="times are dates: time_unit=ms does not apply"):
        settle(drafts_at(1.0, is_date=True), told="ms")


@pytest.mark.parametrize(
    ("column", "known", "told", "seconds"),
    [
        ("delay", MOONCAKE, None, 0.25),
        ("delay_us", MOONCAKE, None, 0.00025),  # its own name comes first
        ("delay", BY_COLUMNS, "s", 250.0),
    ],
)
def test_delays_have_the_units_of_their_column_or_format(column, known, told, seconds) -> None:
    kept, _, _ = settle(drafts_at(None, delay=250.0), None, known, told, delay=column)
    assert kept[0].delay == pytest.approx(seconds)


def test_a_delay_of_nothing_needs_no_unit() -> None:
    assert settle(drafts_at(None, delay=0.0), None, delay="delay")[0][0].delay == 0.0
    with pytest.raises(TraceError, match="unit of 'delay' is not known: the numbers span 250 s"):
        settle(drafts_at(None, delay=250.0), None, delay="delay")


def test_one_time_far_from_all_others_is_bad_and_a_pause_is_not() -> None:
    usual = [float(t) for t in range(10)]
    edge = usual[-1] + FAR_S - 1  # the middle nine tenths span less than 9 s: a week decides
    assert len(settle(drafts_at(*usual, edge), "arrival")[0]) == 11
    for far in (-FAR_S - 5, NOW_S):
        kept, _, refusals = settle(drafts_at(*usual, far), "arrival", drop=True)
        assert [d.time for d in kept] == usual
        assert refusals.dropped == {"far-off time": 1}
    with pytest.raises(TraceError, match=r"far-off time: 1,699,999,99. s away from nearly all"):
        settle(drafts_at(*usual, NOW_S), "arrival")
    # Two times cannot say which of them is the wrong one, and no time is none.
    assert len(settle(drafts_at(0.0, NOW_S), "arrival")[0]) == 2
    assert len(settle(drafts_at(0.0, None, NOW_S), "arrival")[0]) == 3
