"""What one row of a trace says, before the whole file has said in which unit its times are.

Lengths are checked here, once: what the engine gets is sane.
"""

import datetime
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from rpa_tune.errors import TraceError
from rpa_tune.workload import columns as names
from rpa_tune.workload.trace_file import Row

ABSURD_TOKENS = 100_000_000  # no model has such a context: a column was taken for another
ROOTS = (None, "", "-1", "None", "null")  # a parent that means "none"

Path = tuple[tuple[int, int], ...]


class BadFieldError(Exception):
    """A value that cannot be part of a request: column, reason (a short class), detail."""

    def __init__(self, column: str, reason: str, detail: str) -> None:
        """Keeps the parts apart: rows are counted by reason."""
        super().__init__(detail)
        self.column = column
        self.reason = reason
        self.detail = detail


@dataclass(kw_only=True, slots=True, eq=False)
class Draft:
    """A request to be; changed in place while the file is understood.

    Attributes:
      place: File and line, for errors.
      prompt: Prompt tokens.
      output: Output tokens.
      cached: Prompt tokens that the trace says were cached.
      time: Arrival: seconds of a date, or a number in a unit that is settled later; None without.
      is_date: Whether `time` was a written date.
      hashes: Ids of the prompt's blocks, or None.
      own_id: What others may name as their parent.
      parent_id: The turn before, by its id; None for a first turn.
      session: The conversation, by its id.
      turn: Place in the conversation.
      delay: Wait after the turn before was answered, in a unit that is settled later.
      before: The turn before.
      text: Rising (node of the text tree, end in tokens): what the prompt, and the answer where
        it is known, have in common with other rows.
    """

    place: str
    prompt: int
    output: int
    cached: int = 0
    time: float | None = None
    is_date: bool = False
    hashes: tuple[int | str, ...] | None = None
    own_id: str | None = None
    parent_id: str | None = None
    session: str | None = None
    turn: float | None = None
    delay: float | None = None
    before: "Draft | None" = None
    text: Path = ()


@dataclass(kw_only=True, slots=True)
class Refusals:
    """What happens to rows that are no requests: an error, or a count by reason.

    Attributes:
      drop_bad: Count bad rows instead of refusing the file.
      dropped: Reason -> rows left out.
    """

    drop_bad: bool
    dropped: Counter[str] = field(default_factory=Counter)

    def refuse(self, place: str, error: BadFieldError) -> None:
        """Counts a bad row, or refuses the file for it.

        Raises:
          TraceError: Bad rows are not to be dropped.
        """
        if not self.drop_bad:
            raise TraceError(
                f"{error.reason}: {error.detail}",
                where=f"{place}, column {error.column!r}",
                hint="fix the row, or skip bad rows with {}",
                settings=("requests: {drop_bad: true}",),
            ) from error
        self.dropped[error.reason] += 1


@dataclass(frozen=True, kw_only=True, slots=True)
class Layout:
    """Which column of a row holds what, as the file spells it; None for those it has not.

    Attributes:
      prompt: Prompt tokens.
      output: Output tokens.
      time: Arrival.
      delay: Wait after the turn before.
      cached: Cached prompt tokens.
      hashes: Ids of blocks of the prompt.
      own_id: Id of the row.
      parent: Id of the turn before.
      session: Id of the conversation.
      turn: Place in the conversation.
    """

    prompt: str | None
    output: str | None
    time: str | None
    delay: str | None
    cached: str | None
    hashes: str | None
    own_id: str | None
    parent: str | None
    session: str | None
    turn: str | None

    @classmethod
    def of(cls, row: Row) -> "Layout":
        """The layout of a file by one of its rows."""
        columns = {names.plain(name): name for name in row if name}
        return cls(
            prompt=names.find(columns, names.PROMPT_COLUMNS),
            output=names.find(columns, names.OUTPUT_COLUMNS),
            time=names.find_time(columns, names.TIME_NAMES),
            delay=names.find_time(columns, names.DELAY_NAMES),
            cached=names.find(columns, names.CACHED_COLUMNS),
            hashes=names.find(columns, names.HASH_COLUMNS),
            own_id=names.find(columns, names.OWN_ID_COLUMNS),
            parent=names.find(columns, names.PARENT_COLUMNS),
            session=names.find(columns, names.SESSION_COLUMNS),
            turn=names.find(columns, names.TURN_COLUMNS),
        )

    def joined(self, other: "Layout") -> "Layout":
        """The same layout with the columns that only other rows have."""
        return Layout(
            **{name: getattr(self, name) or getattr(other, name) for name in self.__slots__}
        )

    def require_lengths(self, row: Row, place: str) -> None:
        """Refuses a file without lengths.

        Raises:
          TraceError: A column is missing.
        """
        for kind, column, known in (
            ("prompt", self.prompt, names.PROMPT_COLUMNS),
            ("output", self.output, names.OUTPUT_COLUMNS),
        ):
            if column is None:
                raise TraceError(
                    f"trace has no column of {kind} lengths, got {sorted(filter(None, row))}",
                    where=place,
                    hint=f"name the column one of {', '.join(known)} "
                    "(case, blanks, _ and - do not matter)",
                )

    def draft(self, place: str, row: Row, *, prompt: int | None = None) -> Draft:
        """Reads one row.

        Args:
          place: File and line.
          row: Column -> value.
          prompt: Prompt tokens, when they do not stand in a column of their own.

        Raises:
          BadFieldError: A value is missing, no number, negative or absurd.
        """
        if prompt is None:
            prompt = read_tokens(row, self.prompt or "", least=1)
        draft = Draft(
            place=place,
            prompt=prompt,
            output=read_tokens(row, self.output or "", least=1),
            hashes=_hashes(row, self.hashes),
            own_id=_id(row, self.own_id),
            parent_id=_id(row, self.parent),
            session=_id(row, self.session),
            turn=_number(row, self.turn),
            delay=_number(row, self.delay),
        )
        draft.time, draft.is_date = read_time(row, self.time)
        if self.cached:
            draft.cached = read_tokens(row, self.cached, least=0)
            if draft.cached > prompt:
                raise BadFieldError(
                    self.cached,
                    "more cached than prompt",
                    f"{draft.cached} cached of {prompt} prompt tokens",
                )
        return draft


def read_tokens(row: Row, column: str, *, least: int) -> int:
    """A token count.

    Raises:
      BadFieldError: Not a whole number, below `least`, or absurdly large.
    """
    value = row.get(column)
    if value is None or value == "":
        raise BadFieldError(column, "missing value", "a token count is needed, got nothing")
    number = _float(value)
    if number is None or not math.isfinite(number):
        raise BadFieldError(column, "not a number", f"a token count is needed, got {value!r}")
    if number != int(number):
        raise BadFieldError(column, "not a number", f"a whole number is needed, got {value!r}")
    tokens = int(number)
    if tokens < least:
        raise BadFieldError(column, "length too small", f"got {tokens}, need at least {least}")
    if tokens > ABSURD_TOKENS:
        raise BadFieldError(column, "absurd length", f"got {tokens}, more than {ABSURD_TOKENS}")
    return tokens


def read_time(row: Mapping[str, Any], column: str | None) -> tuple[float | None, bool]:
    """(A date's seconds or a number as written, whether it is a date); (None, False) without.

    Raises:
      BadFieldError: There is a value, and it is no time.
    """
    value = row.get(column) if column else None
    if value is None or value == "":
        return None, False
    number = _float(value)
    if number is not None and math.isfinite(number):
        return number, False
    seconds = _date_s(value) if isinstance(value, str) else None
    if seconds is None:
        raise BadFieldError(column or "", "bad time", f"{value!r} is not a time")
    return seconds, True


def _date_s(text: str) -> float | None:
    """Seconds of a written date; digits beyond microseconds are cut."""
    head, dot, tail = text.partition(".")
    digits = len(tail) - len(tail.lstrip("0123456789"))
    if dot:
        text = f"{head}.{tail[:digits][:6].ljust(6, '0')}{tail[digits:]}"
    try:
        date = datetime.datetime.fromisoformat(text.strip())
    except ValueError:
        return None
    if date.tzinfo is None:
        date = date.replace(tzinfo=datetime.UTC)
    return date.timestamp()


def _float(value: object) -> float | None:
    """A number, also one in writing."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        return float(value)
    except (ValueError, OverflowError):
        return None


def _number(row: Row, column: str | None) -> float | None:
    """A number at or above 0, or None without one.

    Raises:
      BadFieldError: There is a value, and it is none.
    """
    value = row.get(column) if column else None
    if value is None or value == "":
        return None
    number = _float(value)
    if number is None or not 0 <= number < math.inf:
        raise BadFieldError(
            column or "", "not a number", f"a number from 0 is needed, got {value!r}"
        )
    return number


def _id(row: Row, column: str | None) -> str | None:
    """An id as text, so that 7 and "7" are one; None for what means "none"."""
    value = row.get(column) if column else None
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    text = None if value is None else str(value)
    return None if text in ROOTS else text


def _hashes(row: Row, column: str | None) -> tuple[int | str, ...] | None:
    if column is None:
        return None
    value = row.get(column)
    if not isinstance(value, list) or not all(isinstance(v, int | str) for v in value):
        raise BadFieldError(column, "missing value", f"a list of ids is needed, got {value!r}")
    return tuple(value)


def too_long(column: str, prompt: int, max_model_len: int) -> BadFieldError:
    """What is wrong with a prompt that leaves no room for output."""
    return BadFieldError(
        column,
        "prompt over max_model_len",
        f"{prompt} tokens leave no room for output within max_model_len={max_model_len}",
    )
