"""Requests drawn from length distributions, alone or as turns of conversations."""

from dataclasses import dataclass, replace

import numpy as np

from rpa_tune.workload.lengths import LengthSampler
from rpa_tune.workload.request import Request


@dataclass(frozen=True, kw_only=True, slots=True)
class Synthetic:
    """Requests without a trace.

    Attributes:
      count: Requests.
      prompt_tokens: Lengths of what each request adds to its prompt.
      output_tokens: Lengths of the answers.
      shared_prefix_tokens: Every prompt begins with the same text of this length (a system
        prompt and tool descriptions, say), before `prompt_tokens` are added.
      turns: Requests of one conversation; each begins with all of the turns before it, answers
        included, and is sent when the one before was answered. A conversation that outgrows
        `max_model_len` starts again from nothing.
      num_conversations: Conversations under way at once; their turns take turns.
    """

    count: int
    prompt_tokens: LengthSampler
    output_tokens: LengthSampler
    shared_prefix_tokens: int = 0
    turns: int = 1
    num_conversations: int = 1

    def __post_init__(self) -> None:
        """Refuses counts that leave nothing to do."""
        for name in ("count", "turns", "num_conversations"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
        if self.shared_prefix_tokens < 0:
            raise ValueError(f"shared_prefix_tokens={self.shared_prefix_tokens} must be at least 0")

    def requests(self, *, max_model_len: int, seed: int) -> tuple[Request, ...]:
        """Draws the requests; prompts are cut to leave room for the answer, or one token of it.

        Args:
          max_model_len: Prompt and answer together, at most.
          seed: Decides all lengths.
        """
        random = np.random.default_rng(seed)
        added = self.prompt_tokens.draw(random, self.count).tolist()
        answers = self.output_tokens.draw(random, self.count).tolist()
        open_turns: list[tuple[tuple[str, int], ...]] = [()] * self.num_conversations
        requests = []
        for number in range(self.count):
            slot = number % self.num_conversations
            turn = number // self.num_conversations % self.turns
            before = open_turns[slot] if turn else ()
            output = min(answers[number], max_model_len - 1)
            room = max_model_len - output
            if before and before[-1][1] + added[number] > room:
                before = ()
            request = self._request(before, added[number], output, room, f"turn{number}")
            open_turns[slot] = request.prefix
            after = number - self.num_conversations if before else None
            requests.append(replace(request, after=after))
        return tuple(requests)

    def _request(
        self, before: tuple[tuple[str, int], ...], added: int, output: int, room: int, key: str
    ) -> Request:
        if not before and self.shared_prefix_tokens:
            before = (("shared", self.shared_prefix_tokens),)
        start = before[-1][1] if before else 0
        prompt = max(1, min(start + added, room))
        prefix = before
        if self.turns > 1:
            prefix = (*before, (key, prompt + output))
        return Request(arrival_s=0.0, prompt_tokens=prompt, output_tokens=output, prefix=prefix)
