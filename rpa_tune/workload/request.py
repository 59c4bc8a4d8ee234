"""What a serving engine is asked for: one prompt, one answer, a time.

Lengths only; no text ever enters this package. Traces and samplers make requests, the engine
consumes them.
"""

from dataclasses import dataclass


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
