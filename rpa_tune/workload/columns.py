"""Column names of the traces people have: what holds which value, and whose format it is.

Source: the published files and their descriptions. Azure 2023 and 2024 (`TIMESTAMP` as a date,
`ContextTokens, GeneratedTokens`); Mooncake FAST'25 (`timestamp` in milliseconds, `input_length,
output_length`, `hash_ids` of blocks of 512 tokens); Qwen-Bailian (`timestamp` in seconds, the same
lengths, `hash_ids` of blocks of 16 tokens, `chat_id, parent_chat_id, turn, type`); BurstGPT
(`Timestamp` in seconds, `Session ID`, `Request tokens, Response tokens`, no response for a request
that failed); Mooncake-style sessions of AIPerf (`session_id`, `delay` in milliseconds).
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

# Names in lower case without blanks, "_" and "-"; the first of them that a file has is meant.
PROMPT_COLUMNS = (
    "contexttokens",
    "prompttokens",
    "inputtokens",
    "requesttokens",
    "inputlength",
    "promptlen",
    "promptlength",
    "inputlen",
    "numprefilltokens",
)
OUTPUT_COLUMNS = (
    "generatedtokens",
    "outputtokens",
    "responsetokens",
    "completiontokens",
    "outputlength",
    "outputlen",
    "responselength",
    "numdecodetokens",
)
CACHED_COLUMNS = ("cachedprefixtokens", "cachedtokens")
HASH_COLUMNS = ("hashids",)
OWN_ID_COLUMNS = ("chatid", "requestid", "messageid", "id")
PARENT_COLUMNS = ("parentchatid", "parentrequestid", "parentid", "parent")
SESSION_COLUMNS = ("sessionid", "conversationid", "conversationhash")
TURN_COLUMNS = ("turn", "turnindex", "turnid", "round")
MESSAGE_COLUMNS = ("conversations", "conversation", "messages")

# Times, the likeliest first. A number is in seconds under `SECONDS_NAMES` wherever we have seen
# one; under the others it is in seconds in some published traces and in milliseconds in others.
SECONDS_NAMES = {
    "arrival", "arrivals", "arrivaltime", "arrivedat", "time", "times",
    "created", "createdat", "createdtime", "unixtime",
}  # fmt: skip
TIME_NAMES = (
    "arrival", "arrivals", "arrivaltime", "arrivedat", "timestamp", "tstamp", "ts",
    "created", "createdat", "createdtime", "requesttime", "submittime", "sendtime",
    "starttime", "startedat", "eventtime", "datetime", "unixtime", "time", "times", "date",
)  # fmt: skip
DELAY_NAMES = ("delay", "thinktime", "waittime")
UNIT_ENDINGS = {
    "ns": "ns", "nanos": "ns", "nanoseconds": "ns", "nsec": "ns",
    "us": "us", "micros": "us", "microseconds": "us", "usec": "us",
    "ms": "ms", "millis": "ms", "milliseconds": "ms", "msec": "ms",
    "s": "s", "sec": "s", "secs": "s", "seconds": "s",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class TraceFormat:
    """What is known of a format beyond its columns.

    Attributes:
      name: For reports.
      time_unit: Unit of a numeric time, or None when the format does not settle it.
      whole_times: Whether its times are whole numbers; fractions then say that it is another's.
      block_tokens: What one of its `hash_ids` stands for, or None.
      turns: What the prompts of later turns count, `full` or `new`; None when it is not known.
      empty_is_failure: Whether a request without output is one that failed.
    """

    name: str
    time_unit: str | None = None
    whole_times: bool = False
    block_tokens: int | None = None
    turns: str | None = None
    empty_is_failure: bool = False


AZURE = TraceFormat(name="Azure LLM inference")
BAILIAN = TraceFormat(name="Qwen-Bailian", time_unit="s", block_tokens=16, turns="full")
BURSTGPT = TraceFormat(name="BurstGPT", time_unit="s", empty_is_failure=True)
MOONCAKE = TraceFormat(name="Mooncake", time_unit="ms", whole_times=True, block_tokens=512)
BY_COLUMNS = TraceFormat(name="lengths by column names")
BY_MESSAGES = {
    "conversations": TraceFormat(name="ShareGPT conversations"),
    "conversation": TraceFormat(name="LMSYS/WildChat conversations"),
    "messages": TraceFormat(name="OpenAI messages"),
}


def plain(name: str) -> str:
    """A column's name without case, blanks, `_` and `-`."""
    return name.strip().lower().replace(" ", "").replace("_", "").replace("-", "")


def find(columns: Mapping[str, str], names: Iterable[str]) -> str | None:
    """The column that goes by one of `names`, as the file spells it."""
    return next((columns[name] for name in names if name in columns), None)


def find_time(columns: Mapping[str, str], names: Iterable[str]) -> str | None:
    """The column that goes by one of `names`, with or without a unit at its end."""
    endings = ("", *UNIT_ENDINGS)
    return find(columns, (name + ending for name in names for ending in endings))


def unit_in_name(column: str, names: Iterable[str]) -> str | None:
    """The unit that a time's column says at its end, if it says one.

    A bare `s` must stand apart: `arrival_s` is in seconds, `timestamps` may be a plural.
    """
    name = plain(column)
    is_apart = not column.strip().lower().removesuffix("s")[-1:].isalnum()
    for base in names:
        ending = name.removeprefix(base) if name.startswith(base) else ""
        if ending in UNIT_ENDINGS and (ending != "s" or is_apart):
            return UNIT_ENDINGS[ending]
    return None


def recognise(columns: Iterable[str]) -> TraceFormat:
    """Whose format it is, by all columns of a file.

    Args:
      columns: Names as `plain` makes them.
    """
    found = set(columns)
    for name, known in BY_MESSAGES.items():
        if name in found:
            return known
    if {"contexttokens", "generatedtokens"} <= found:
        return AZURE
    if {"requesttokens", "responsetokens"} <= found:
        return BURSTGPT
    if {"inputlength", "outputlength"} <= found:
        if found & {"chatid", "parentchatid"} or {"turn", "type"} <= found:
            return BAILIAN
        if found & {"timestamp", "hashids", "delay"}:
            return MOONCAKE
    return BY_COLUMNS
