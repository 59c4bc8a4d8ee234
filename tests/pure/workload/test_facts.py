"""The line that says as what a trace was read."""

import json

import pytest

from rpa_tune.workload.facts import TraceFacts


def make(**more) -> TraceFacts:
    fields = {"format": "X", "time_unit": None, "time_basis": "no times", "span_s": 0.0}
    return TraceFacts(**{**fields, "num_requests": 1, **more})


def test_what_is_not_there_is_not_said() -> None:
    assert str(make()) == "X; no times; 1 request"
    assert not make().has_times


def test_each_fact_has_its_words() -> None:
    facts = make(
        time_unit="ms", time_basis="as told", span_s=2000.0, num_requests=2001, num_moved=1,
        block_tokens=16, turns="new", num_conversations=2, num_cut_turns=1, num_orphans=3,
        num_other_parts=1, is_estimated=True,
    )  # fmt: skip
    assert str(facts).split("; ") == [
        "X", "times in ms (as told)", "2,001 requests in 2,000 s, 1.000 a second",
        "sorted, 1 row had a time before the row above", "hashes of blocks of 16 tokens",
        "2 conversations of several turns, prompts count what a turn adds, the turns before are "
        "added",
        "1 turn with a shorter prompt than the turn before, nothing of it shared",
        "3 rows whose parent is not in the file",
        "1 part of messages not counted, being no text", "token counts guessed from characters",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("span_s", "num_requests", "words"),
    [
        (3600.0, 19366, "19,366 requests in 3,600 s, 5.379 a second"),
        (0.0123456, 2, "2 requests in 0.01235 s, 81.00 a second"),
        (86400.0, 3, "3 requests in 86,400 s, 0.00002315 a second"),
        (9.9999, 2, "2 requests in 10.000 s, 0.1000 a second"),
        (123456.7, 1000, "1,000 requests in 123,457 s, 0.008092 a second"),
    ],
)
def test_numbers_have_four_digits_and_no_exponent(span_s, num_requests, words) -> None:
    facts = make(time_unit="date", span_s=span_s, num_requests=num_requests)
    assert str(facts) == f"X; times are dates; {words}"


def test_requests_at_one_time_have_no_rate() -> None:
    facts = make(time_unit="s", time_basis="all at one time", num_requests=5)
    assert facts.rate_per_s is None
    assert str(facts) == "X; times in s (all at one time); 5 requests"


def test_the_json_form_has_the_fields_the_rate_and_the_line() -> None:
    facts = make(time_unit="s", span_s=4.0, num_requests=9)
    data = json.loads(json.dumps(facts.to_dict(), allow_nan=False))
    assert (data["rate_per_s"], data["summary"], data["num_requests"]) == (2.0, str(facts), 9)
