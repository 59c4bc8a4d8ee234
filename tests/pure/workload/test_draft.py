"""One row of a trace, value by value: what is a length, a time, an id, and what is refused."""

import datetime
from typing import Any

import pytest

from rpa_tune.errors import TraceError
from rpa_tune.workload.draft import (
    ABSURD_TOKENS,
    BadFieldError,
    Layout,
    Refusals,
    read_time,
    read_tokens,
    too_long,
)

ROW = {"Prompt Tokens": 7, "output-tokens": "5", "chat_id": 3}


@pytest.mark.parametrize("value", [7, 7.0, "7", " 7 ", "7.0", "7e0"])
def test_whole_numbers_are_token_counts_however_written(value: Any) -> None:
    tokens = read_tokens({"n": value}, "n", least=1)
    assert (tokens, type(tokens)) == (7, int)


@pytest.mark.parametrize(
    ("value", "reason", "detail"),
    [
        (None, "missing value", "a token count is needed, got nothing"),
        ("", "missing value", "got nothing"),
        (0, "length too small", "got 0, need at least 1"),
        (-3, "length too small", "got -3"),
        (1.5, "not a number", "a whole number is needed, got 1.5"),
        (True, "not a number", "got True"),
        ("seven", "not a number", "got 'seven'"),
        ([7], "not a number", r"got \[7\]"),
        (float("nan"), "not a number", "got nan"),
        ("inf", "not a number", "got 'inf'"),
        (10**400, "not a number", "got 1000"),  # no float holds it
        (ABSURD_TOKENS + 1, "absurd length", "more than 100000000"),
    ],
)
def test_what_is_no_token_count(value: Any, reason: str, detail: str) -> None:
    with pytest.raises(BadFieldError, match=detail) as caught:
        read_tokens({"n": value}, "n", least=1)
    assert (caught.value.column, caught.value.reason) == ("n", reason)


def test_bounds_are_counts_themselves() -> None:
    assert read_tokens({"n": 0}, "n", least=0) == 0
    assert read_tokens({"n": ABSURD_TOKENS}, "n", least=1) == ABSURD_TOKENS


@pytest.mark.parametrize(
    ("text", "date"),
    [
        ("2023-11-16 18:17:03.9799600", datetime.datetime(2023, 11, 16, 18, 17, 3, 979960)),
        ("2023-11-16T18:17:03.123456789Z", datetime.datetime(2023, 11, 16, 18, 17, 3, 123456)),
        ("2023-11-16 18:17:03.5", datetime.datetime(2023, 11, 16, 18, 17, 3, 500000)),
        ("2023-11-16 20:17:03.25+02:00", datetime.datetime(2023, 11, 16, 18, 17, 3, 250000)),
        (" 2023-11-16 18:17:03", datetime.datetime(2023, 11, 16, 18, 17, 3)),
        ("2023-11-16", datetime.datetime(2023, 11, 16)),
    ],
)
def test_dates_are_seconds_since_1970_and_in_utc_if_they_do_not_say(
    text: str, date: datetime.datetime
) -> None:
    right = (date - datetime.datetime(1970, 1, 1)) / datetime.timedelta(seconds=1)
    assert read_time({"t": text}, "t") == (pytest.approx(right, abs=1e-6), True)


def test_numbers_are_times_as_written() -> None:
    assert read_time({"t": "12.5"}, "t") == (12.5, False)
    assert read_time({"t": -3}, "t") == (-3.0, False)
    for row, column in (({"t": ""}, "t"), ({"t": None}, "t"), ({}, "t"), ({"t": 5}, None)):
        assert read_time(row, column) == (None, False)


@pytest.mark.parametrize("value", ["noon", "nan", float("inf"), True, [1], "2023-13-01", "1.2.3"])
def test_what_is_no_time(value: Any) -> None:
    with pytest.raises(BadFieldError, match="is not a time") as caught:
        read_time({"t": value}, "t")
    assert (caught.value.column, caught.value.reason) == ("t", "bad time")


def test_a_layout_keeps_names_as_the_file_spells_them() -> None:
    layout = Layout.of({**ROW, "Session ID": "x", "Delay ms": 4, None: ["a cell too many"]})
    assert (layout.prompt, layout.output, layout.own_id) == (
        "Prompt Tokens", "output-tokens", "chat_id",
    )  # fmt: skip
    assert (layout.session, layout.delay, layout.time) == ("Session ID", "Delay ms", None)


def test_columns_that_only_other_rows_have_are_added() -> None:
    joined = Layout.of(ROW).joined(Layout.of({"prompt_tokens": 1, "timestamp": 2}))
    assert (joined.prompt, joined.time) == ("Prompt Tokens", "timestamp")


def test_files_without_lengths_are_refused_with_the_names_there_are() -> None:
    row = {"output": 1, "Prompt tokens": 2}
    with pytest.raises(TraceError, match="no column of output lengths") as caught:
        Layout.of(row).require_lengths(row, "t.csv:2")
    assert "['Prompt tokens', 'output']" in str(caught.value)
    assert caught.value.where == "t.csv:2"
    assert "generatedtokens" in caught.value.hint
    Layout.of(ROW).require_lengths(ROW, "t.csv:2")


@pytest.mark.parametrize(
    ("value", "text"), [(7, "7"), (7.0, "7"), ("7", "7"), ("x", "x"), (-1, None), ("null", None)]
)
def test_ids_are_texts_and_some_mean_none(value: Any, text: str | None) -> None:
    row = {**ROW, "parent_chat_id": value}
    assert Layout.of(row).draft("t:1", row).parent_id == text


def test_a_draft_has_all_that_a_row_says() -> None:
    row = {
        **ROW, "timestamp": "2000-01-01", "hash_ids": [4, "a"], "cached_tokens": 7, "turn": "2",
        "delay": 1.5, "session_id": "s",
    }  # fmt: skip
    draft = Layout.of(row).draft("t:1", row)
    assert (draft.prompt, draft.output, draft.cached) == (7, 5, 7)
    assert (draft.time, draft.is_date) == (946684800.0, True)
    assert (draft.hashes, draft.own_id, draft.session) == ((4, "a"), "3", "s")
    assert (draft.turn, draft.delay) == (2.0, 1.5)
    # The prompt can come from elsewhere, the column is then not read.
    assert Layout.of(row).draft("t:1", {**row, "Prompt Tokens": "x"}, prompt=9).prompt == 9


@pytest.mark.parametrize(
    ("more", "reason", "column"),
    [
        ({"cached_tokens": 8}, "more cached than prompt", "cached_tokens"),
        ({"hash_ids": "1,2"}, "missing value", "hash_ids"),
        ({"hash_ids": [1.5]}, "missing value", "hash_ids"),
        ({"turn": -1}, "not a number", "turn"),
        ({"delay": "inf"}, "not a number", "delay"),
        ({"output-tokens": 0}, "length too small", "output-tokens"),
    ],
)
def test_one_bad_value_makes_a_bad_row(more: Any, reason: str, column: str) -> None:
    row = {**ROW, **more}
    with pytest.raises(BadFieldError) as caught:
        Layout.of(row).draft("t:1", row)
    assert (caught.value.reason, caught.value.column) == (reason, column)


def test_bad_rows_are_an_error_or_a_count() -> None:
    error = too_long("prompt", 100, 64)
    with pytest.raises(TraceError, match="prompt over max_model_len: 100 tokens") as caught:
        Refusals(drop_bad=False).refuse("t.csv:9", error)
    assert caught.value.where == "t.csv:9, column 'prompt'"
    assert caught.value.settings == ("requests: {drop_bad: true}",)
    counting = Refusals(drop_bad=True)
    for _ in range(2):
        counting.refuse("t.csv:9", error)
    counting.refuse("t.csv:9", BadFieldError("n", "not a number", "x"))
    assert counting.dropped == {"prompt over max_model_len": 2, "not a number": 1}
