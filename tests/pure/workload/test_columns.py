"""Names of columns: what holds which value, whose format it is, in which unit a time is."""

import itertools

import pytest

from rpa_tune.workload import columns
from rpa_tune.workload.columns import DELAY_NAMES, TIME_NAMES

KINDS = {
    name: getattr(columns, name)
    for name in (
        "PROMPT_COLUMNS", "OUTPUT_COLUMNS", "CACHED_COLUMNS", "HASH_COLUMNS", "OWN_ID_COLUMNS",
        "PARENT_COLUMNS", "SESSION_COLUMNS", "TURN_COLUMNS", "MESSAGE_COLUMNS", "TIME_NAMES",
        "DELAY_NAMES",
    )
}  # fmt: skip


def test_names_are_as_a_files_names_are_compared() -> None:
    for name in itertools.chain(*KINDS.values(), columns.SECONDS_NAMES, columns.UNIT_ENDINGS):
        assert columns.plain(name) == name


def test_no_name_means_two_things() -> None:
    for (_, one), (_, other) in itertools.combinations(KINDS.items(), 2):
        assert not set(one) & set(other)
    # Nor does a time with its unit at the end: `ts` is one, `t` in seconds is none.
    lengths = {*columns.PROMPT_COLUMNS, *columns.OUTPUT_COLUMNS, *columns.CACHED_COLUMNS}
    for name, ending in itertools.product((*TIME_NAMES, *DELAY_NAMES), columns.UNIT_ENDINGS):
        assert name + ending not in lengths
    assert set(TIME_NAMES) >= columns.SECONDS_NAMES


@pytest.mark.parametrize(
    "name", ["Context_Tokens", " contextTokens", "CONTEXT-TOKENS", "context tokens"]
)
def test_case_blanks_and_strokes_do_not_matter(name: str) -> None:
    found = columns.find({columns.plain(name): name}, columns.PROMPT_COLUMNS)
    assert found == name


def test_the_likeliest_name_is_meant_whatever_the_order_of_columns() -> None:
    for order in (["time", "arrival"], ["arrival", "time"]):
        assert columns.find_time({name: name for name in order}, TIME_NAMES) == "arrival"
    # A unit at its end is part of a name.
    assert columns.find_time({"timestampms": "Timestamp (ms)"}, TIME_NAMES) == "Timestamp (ms)"
    assert columns.find_time({"prompt": "prompt"}, TIME_NAMES) is None


@pytest.mark.parametrize(
    ("column", "unit"),
    [
        ("arrival_ms", "ms"), ("Timestamp ms", "ms"), ("timestampMs", "ms"), ("ts-ns", "ns"),
        ("created_at_microseconds", "us"), ("time_sec", "s"), ("startTime_millis", "ms"),
        # A bare s must stand apart.
        ("arrival_s", "s"), ("time s", "s"), ("timestamps", None), ("arrivals", None),
        ("times", None), ("ts", None), ("t_s", None),
        ("arrival", None), ("arrival_minutes", None), ("my_time_ms", None),
    ],
)  # fmt: skip
def test_units_at_the_end_of_a_name(column: str, unit: str | None) -> None:
    assert columns.unit_in_name(column, TIME_NAMES) == unit


def test_delays_have_names_of_their_own() -> None:
    assert columns.unit_in_name("think_time_ms", DELAY_NAMES) == "ms"
    assert columns.unit_in_name("delay", DELAY_NAMES) is None
    assert columns.unit_in_name("think_time_ms", TIME_NAMES) is None


@pytest.mark.parametrize(
    ("names", "known"),
    [
        ("TIMESTAMP,ContextTokens,GeneratedTokens", columns.AZURE),
        ("Timestamp,Session ID,Model,Request tokens,Response tokens,Log Type", columns.BURSTGPT),
        ("timestamp,input_length,output_length,hash_ids", columns.MOONCAKE),
        ("session_id,delay,input_length,output_length", columns.MOONCAKE),
        ("chat_id,parent_chat_id,timestamp,input_length,output_length,type,turn,hash_ids",
         columns.BAILIAN),
        ("timestamp,input_length,output_length,type,turn", columns.BAILIAN),
        ("timestamp,input_length,output_length,type", columns.MOONCAKE),  # `type` alone is anyone's
        ("input_length,output_length", columns.BY_COLUMNS),
        ("ContextTokens,output_tokens", columns.BY_COLUMNS),
        ("messages,input_length,output_length,timestamp", columns.BY_MESSAGES["messages"]),
        ("", columns.BY_COLUMNS),
    ],
)  # fmt: skip
def test_a_format_is_known_by_its_columns(names: str, known: columns.TraceFormat) -> None:
    assert columns.recognise(columns.plain(name) for name in names.split(",")) is known
