"""As what a trace was recognised, for readers of its numbers."""

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

TURN_WORDS = {
    "full": "prompts hold the turns before them",
    "new": "prompts count what a turn adds, the turns before are added",
    "apart": "",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class TraceFacts:
    """What a file's requests were read as.

    Attributes:
      format: Whose format it is.
      time_unit: `s`, `ms`, `us`, `ns` or `date`; None without times.
      time_basis: How the unit is known, in words.
      span_s: Seconds from the first arrival to the last.
      num_requests: Requests.
      num_moved: Rows whose time is before that of the row above; all are sorted.
      block_tokens: What one of the `hash_ids` stands for; None without them.
      turns: What prompts of later turns count (`full`, `new`); None when no row follows another.
      num_conversations: Conversations of two turns or more.
      num_cut_turns: Turns with a prompt shorter than the one before; nothing is shared with it.
      num_orphans: Rows whose parent is not in the file.
      num_other_parts: Parts of messages that are no text and do not count.
      is_estimated: Whether token counts are guessed from the length of texts.
    """

    format: str
    time_unit: str | None
    time_basis: str
    span_s: float
    num_requests: int
    num_moved: int = 0
    block_tokens: int | None = None
    turns: str | None = None
    num_conversations: int = 0
    num_cut_turns: int = 0
    num_orphans: int = 0
    num_other_parts: int = 0
    is_estimated: bool = False

    @property
    def has_times(self) -> bool:
        """Whether the file says when requests arrive."""
        return self.time_unit is not None

    @property
    def rate_per_s(self) -> float | None:
        """Arrivals in a second, on average; None when all come at one time."""
        return (self.num_requests - 1) / self.span_s if self.span_s else None

    def to_dict(self) -> dict[str, Any]:
        """JSON form; `summary` is the line for people."""
        return {**asdict(self), "rate_per_s": self.rate_per_s, "summary": str(self)}

    def __str__(self) -> str:
        """One line for people."""
        return "; ".join(self._parts())

    def _parts(self) -> Iterator[str]:
        yield self.format
        if self.time_unit == "date":
            yield "times are dates"
        elif self.time_unit:
            yield f"times in {self.time_unit} ({self.time_basis})"
        else:
            yield "no times"
        requests = _counted(self.num_requests, "request")
        if self.rate_per_s is not None:
            yield f"{requests} in {_digits(self.span_s)} s, {_digits(self.rate_per_s)} a second"
        else:
            yield requests
        if self.num_moved:
            yield f"sorted, {_counted(self.num_moved, 'row')} had a time before the row above"
        if self.block_tokens:
            yield f"hashes of blocks of {self.block_tokens} tokens"
        if self.num_conversations:
            words = TURN_WORDS[self.turns or "full"]
            yield f"{_counted(self.num_conversations, 'conversation')} of several turns, {words}"
        if self.num_cut_turns:
            number = _counted(self.num_cut_turns, "turn")
            yield f"{number} with a shorter prompt than the turn before, nothing of it shared"
        if self.num_orphans:
            yield f"{_counted(self.num_orphans, 'row')} whose parent is not in the file"
        if self.num_other_parts:
            yield f"{_counted(self.num_other_parts, 'part')} of messages not counted, being no text"
        if self.is_estimated:
            yield "token counts guessed from characters"


def _counted(number: int, noun: str) -> str:
    return f"{number:,} {noun}" + "s" * (number != 1)


def _digits(value: float) -> str:
    """Four significant digits, with commas and without an exponent."""
    places = max(0, 3 - math.floor(math.log10(abs(value)))) if value else 0
    return f"{round(value, places):,.{places}f}" if places else f"{value:,.0f}"
