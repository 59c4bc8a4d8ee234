"""What a serving engine is asked for: one prompt, one answer, a time.

Lengths only; no text ever enters this package. Traces and samplers make requests, the engine
consumes them.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """One request to the engine.

    Attributes:
      arrival_s: Seconds after the start of the trace.
      prompt_tokens: Tokens of the prompt.
      output_tokens: Tokens the model will generate.
      cached_prefix_tokens: Leading prompt tokens that a trace says were in the prefix cache,
        without saying whose they were.
      prefix: Rising `(key, end_tokens)` pairs: `key` stands for the whole text up to token
        `end_tokens`, so two requests with the same pair begin with the same tokens and can share
        the pages inside. An end may lie past the prompt: the answer is then part of what `key`
        stands for, as in the next turn of a conversation.
      after: The turn before in its conversation, as an index into the requests: this one is sent
        when that one has been answered, and not before `arrival_s`. None for a first turn.
      wait_s: Seconds between that answer and this request.
    """

    arrival_s: float
    prompt_tokens: int
    output_tokens: int
    cached_prefix_tokens: int = 0
    prefix: tuple[tuple[str, int], ...] = ()
    after: int | None = None
    wait_s: float = 0.0

    @property
    def total_tokens(self) -> int:
        """Prompt and output."""
        return self.prompt_tokens + self.output_tokens


def deal(requests: Sequence[Request], hands: int) -> tuple[Request, ...]:
    """The requests of one of several ranks: every so many-th conversation, in the same order.

    Args:
      requests: All of them; turns come after what they follow.
      hands: Ranks that they are dealt out to.
    """
    kept: dict[int, int] = {}  # index in all -> index in the hand
    mine: list[Request] = []
    conversations = 0
    for index, request in enumerate(requests):
        if request.after is None:
            is_mine = conversations % hands == 0
            conversations += 1
        else:
            is_mine = request.after in kept
        if is_mine:
            after = None if request.after is None else kept[request.after]
            kept[index] = len(mine)
            mine.append(replace(request, after=after))
    return tuple(mine)
