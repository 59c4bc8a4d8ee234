"""Column names of the traces people have, and how a row becomes a request.

Source: the published files. Azure 2023 and 2024 (`TIMESTAMP, ContextTokens, GeneratedTokens`),
Mooncake (`timestamp` in milliseconds, `input_length, output_length`, `hash_ids` of blocks of 512
tokens), BurstGPT (`Timestamp` in seconds, `Request tokens, Response tokens`, both 0 for a request
that failed), ShareGPT (`conversations: [{from, value}]`).
"""

import datetime
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rpa_tune.workload.request import Request

Row = Mapping[str, Any]

# Names in lower case without blanks, "_" and "-"; the value is how many of the unit make a second.
TIME_COLUMNS = {
    "arrivals": 1.0,
    "arrivaltime": 1.0,
    "timestamp": 1.0,
    "timestampms": 1e3,
    "arrivalms": 1e3,
    "time": 1.0,
    "times": 1.0,
}
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
ABSURD_TOKENS = 100_000_000  # no model has such a context: a column was taken for another
MOONCAKE_BLOCK_TOKENS = 512  # what one of its `hash_ids` stands for, beginning included
ANSWERING = (
    "gpt",
    "assistant",
    "chatgpt",
    "bing",
    "bard",
    "model",
)  # who speaks in ShareGPT's files
PREFIX_KEY = "\0prefix"  # column of rows made by `expand_conversation`; no file has such a name
CHARS_PER_TOKEN = 4  # guess: English text with a BPE vocabulary of 32,000 to 128,000


class BadFieldError(Exception):
    """A value that cannot be part of a request: column, reason (a short class), detail."""

    def __init__(self, column: str, reason: str, detail: str) -> None:
        """Keeps the parts apart: rows are counted by reason."""
        super().__init__(detail)
        self.column = column
        self.reason = reason
        self.detail = detail


@dataclass(frozen=True, kw_only=True, slots=True)
class TraceFormat:
    """Which column holds what.

    Attributes:
      prompt_column: Prompt tokens.
      output_column: Output tokens.
      time_column: Arrival, or None when the file has none and all arrive at once.
      time_units_per_s: Units of a numeric time in a second.
      cached_column: Cached prompt tokens, or None.
      has_block_hashes: Whether rows have Mooncake's `hash_ids`.
      is_estimated: Whether rows come from `expand_conversation`.
    """

    prompt_column: str
    output_column: str
    time_column: str | None = None
    time_units_per_s: float = 1.0
    cached_column: str | None = None
    has_block_hashes: bool = False
    is_estimated: bool = False

    def request(self, row: Row, *, max_model_len: int) -> Request:
        """Turns a row into a request.

        Raises:
          BadFieldError: A value is missing, no number, negative or absurd; a prompt is too long.
        """
        prompt = _tokens(row, self.prompt_column, least=1)
        output = _tokens(row, self.output_column, least=1)
        if prompt >= max_model_len:
            raise BadFieldError(
                self.prompt_column,
                "prompt over max_model_len",
                f"{prompt} tokens leave no room for output within max_model_len={max_model_len}",
            )
        cached = _tokens(row, self.cached_column, least=0) if self.cached_column else 0
        if cached > prompt:
            raise BadFieldError(
                self.cached_column or "",
                "more cached than prompt",
                f"{cached} cached of {prompt} prompt tokens",
            )
        return Request(
            arrival_s=self._arrival_s(row),
            prompt_tokens=prompt,
            output_tokens=output,
            cached_prefix_tokens=cached,
            prefix=self._prefix(row, prompt),
        )

    def _prefix(self, row: Row, prompt: int) -> tuple[tuple[str, int], ...]:
        if not self.has_block_hashes:
            return tuple(row.get(PREFIX_KEY, ()))
        hashes = row.get("hash_ids")
        if not isinstance(hashes, list):
            raise BadFieldError("hash_ids", "missing value", f"a list is needed, got {hashes!r}")
        ends = range(MOONCAKE_BLOCK_TOKENS, prompt + 1, MOONCAKE_BLOCK_TOKENS)
        return tuple((f"block{h}", end) for h, end in zip(hashes, ends, strict=False))

    def _arrival_s(self, row: Row) -> float:
        if self.time_column is None:
            return 0.0
        value = row.get(self.time_column)
        try:
            arrival_s = float(value) / self.time_units_per_s  # type: ignore[arg-type]
        except (TypeError, ValueError):
            arrival_s = _date_s(self.time_column, value)
        if not math.isfinite(arrival_s):
            raise BadFieldError(self.time_column, "bad time", f"{value!r} is not a time")
        return arrival_s


def find_format(row: Row) -> TraceFormat:
    """Recognises a trace by the columns of its first row.

    Raises:
      BadFieldError: A column is missing; `detail` is the message, `reason` the hint.
    """
    columns = {_plain(name): name for name in row if name}
    prompt = next((columns[c] for c in PROMPT_COLUMNS if c in columns), None)
    output = next((columns[c] for c in OUTPUT_COLUMNS if c in columns), None)
    if prompt is None or output is None:
        kind = "prompt" if prompt is None else "output"
        names = PROMPT_COLUMNS if prompt is None else OUTPUT_COLUMNS
        raise BadFieldError(
            "",
            f"name the column one of {', '.join(names)} (case, blanks, _ and - do not matter)",
            f"trace has no column of {kind} lengths, got {sorted(columns.values())}",
        )
    time = next((c for c in TIME_COLUMNS if c in columns), None)
    has_block_hashes = "hashids" in columns
    return TraceFormat(
        prompt_column=prompt,
        output_column=output,
        time_column=columns[time] if time else None,
        time_units_per_s=1e3 if has_block_hashes else TIME_COLUMNS.get(time or "", 1.0),
        cached_column=next((columns[c] for c in CACHED_COLUMNS if c in columns), None),
        has_block_hashes=has_block_hashes,
        is_estimated=PREFIX_KEY in row,
    )


def expand_conversation(row: Row, *, key: str) -> list[Row]:
    """One row per answer of a ShareGPT-style conversation; any other row as it is.

    Every turn's prompt is all of the conversation before its answer, so turns share pages. Tokens
    are guessed from characters: no tokenizer is at hand, and no text is kept.
    """
    messages = row.get("conversations", row.get("messages"))
    if not isinstance(messages, list):
        return [row]
    rows: list[Row] = []
    prefix: tuple[tuple[str, int], ...] = ()
    tokens = 0
    for message in messages:
        if not isinstance(message, dict):
            continue
        text = str(message.get("value", message.get("content", "")))
        length = math.ceil(len(text) / CHARS_PER_TOKEN)
        if message.get("from", message.get("role")) in ANSWERING and tokens:
            prefix = (*prefix, (f"{key}.{len(rows)}", tokens + length))
            rows.append({"prompt_tokens": tokens, "output_tokens": length, PREFIX_KEY: prefix})
        tokens += length
    return rows


def _plain(name: str) -> str:
    return name.strip().lower().replace(" ", "").replace("_", "").replace("-", "")


def _tokens(row: Row, column: str, *, least: int) -> int:
    """A token count.

    Raises:
      BadFieldError: Not a whole number, below `least`, or absurdly large.
    """
    value = row.get(column)
    if value is None or value == "":
        raise BadFieldError(column, "missing value", "a token count is needed, got nothing")
    try:
        if isinstance(value, bool):
            raise TypeError
        number = float(value)
        tokens = int(number)
    except (TypeError, ValueError, OverflowError) as error:
        raise BadFieldError(
            column, "not a number", f"a token count is needed, got {value!r}"
        ) from error
    if tokens != number:
        raise BadFieldError(column, "not a number", f"a whole number is needed, got {value!r}")
    if tokens < least:
        raise BadFieldError(column, "length too small", f"got {tokens}, need at least {least}")
    if tokens > ABSURD_TOKENS:
        raise BadFieldError(column, "absurd length", f"got {tokens}, more than {ABSURD_TOKENS}")
    return tokens


def _date_s(column: str, value: object) -> float:
    """Seconds of a written date; digits beyond microseconds are cut.

    Raises:
      BadFieldError: Not a date.
    """
    text = str(value)
    head, dot, tail = text.partition(".")
    digits = len(tail) - len(tail.lstrip("0123456789"))
    if dot:
        text = f"{head}.{tail[:digits][:6].ljust(6, '0')}{tail[digits:]}"
    try:
        date = datetime.datetime.fromisoformat(text)
    except ValueError as error:
        raise BadFieldError(column, "bad time", f"{value!r} is not a time") from error
    if date.tzinfo is None:
        date = date.replace(tzinfo=datetime.UTC)
    return date.timestamp()
