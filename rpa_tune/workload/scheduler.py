"""Which sequences get how many tokens in the next launch: vLLM v1's policy, and SGLang's.

The page pool and the `running` and `waiting` queues live here; `engine.py` turns what is chosen
into steps and moves time. Both policies end in the same place: a list of (sequence, new tokens)
whose pages are taken.

Source: behaviour of `vllm/v1/core/sched/scheduler.py` (vLLM v1) and
`sgl_jax/srt/managers/{scheduler,schedule_batch}.py` (sglang-jax), restated, not copied.
"""

import itertools
from collections import deque
from collections.abc import Hashable, Iterator
from dataclasses import dataclass, field

from rpa_tune.workload.knobs import EngineKnobs, KvRole, Scheduler
from rpa_tune.workload.pages import PagePool
from rpa_tune.workload.request import Request


@dataclass(kw_only=True, slots=True, eq=False)
class EngineSequence:
    """A request inside the engine; the one mutable record of the package.

    Attributes:
      request: Its lengths.
      number: Its place among the requests; names text that no other request has.
      goal: Known tokens at which it is finished.
      known: Tokens that exist: the prompt and what was generated.
      computed: Leading tokens whose keys and values are in its pages.
      text_end: Tokens it had to compute when it was admitted; until then it is in its prompt.
      pages: Its pages in order. Only ever appended to; a preempted sequence gets a new list, so
        a step may keep a reference and cut it to the length it had.
      num_remembered: Leading pages already offered to the prefix cache.
      num_preempted: Times it lost its pages.
    """

    request: Request
    number: int
    goal: int
    known: int
    computed: int = 0
    text_end: int = 0
    pages: list[int] = field(default_factory=list)
    num_remembered: int = 0
    num_preempted: int = 0

    def texts(self, first: int, end: int, block_size: int) -> Iterator[Hashable]:
        """What its full pages hold, from page `first` to before `end`.

        Equal for sequences that begin alike up to the end of the page.
        """
        for key, end_tokens in self.request.prefix:
            last = min(end_tokens // block_size, end)
            yield from zip(itertools.repeat(key), range(first, last), strict=False)
            first = max(first, last)
        yield from zip(itertools.repeat(self.number), range(first, end), strict=False)


Chosen = list[tuple[EngineSequence, int]]


class SchedulerState:
    """Queues and pages, and the two policies over them."""

    def __init__(self, knobs: EngineKnobs) -> None:
        """Starts empty."""
        self.knobs = knobs
        self.pool = PagePool(knobs.num_pages, knobs.reuse)
        self.waiting: deque[EngineSequence] = deque()
        self.running: list[EngineSequence] = []
        self.num_preemptions = 0
        self.num_cached_tokens = 0

    def schedule(self) -> Chosen:
        """Sequences and new tokens of the next launch; empty only when nothing waits or runs."""
        policy = (
            self._schedule_vllm if self.knobs.scheduler is Scheduler.VLLM else self._schedule_sglang
        )
        chosen = policy()
        if not chosen and (self.running or self.waiting):
            chosen = policy()  # all that was chosen had to give its pages up: now there are some
            if not chosen:
                raise RuntimeError("no sequence can be scheduled although pages are free")
        return chosen

    def may_admit(self) -> bool:
        """Whether a sequence waits and another one may run, if there are pages for it."""
        return bool(self.waiting) and len(self.running) < self.knobs.max_num_seqs

    def only_decodes(self) -> bool:
        """Whether the next launch is one new token of each running sequence, pages allowing."""
        if not self.running or self.knobs.num_speculative_tokens or self.may_admit():
            return False
        return all(s.known - s.computed == 1 and s.computed >= s.text_end for s in self.running)

    def finish(self, sequence: EngineSequence) -> None:
        """Takes a finished sequence out and frees its pages."""
        self.running.remove(sequence)
        self.pool.release(sequence.pages)

    def remember(self, sequence: EngineSequence) -> None:
        """Offers the pages that became full to the prefix cache."""
        first, block_size = sequence.num_remembered, self.knobs.block_size
        full = sequence.computed // block_size
        if full > first:
            texts = sequence.texts(first, full, block_size)
            for page, text in zip(sequence.pages[first:full], texts, strict=True):
                self.pool.remember(page, text)
            sequence.num_remembered = full

    def _schedule_vllm(self) -> Chosen:
        """Running sequences in order of admission, then waiting ones while tokens are left.

        A sequence in the middle of its prompt is almost always the last one admitted, so decodes
        come first without a rule that says so.
        """
        budget = self.knobs.max_num_batched_tokens
        chosen: Chosen = []
        num_preemptions = self.num_preemptions
        has_drafts = self.knobs.num_speculative_tokens > 0
        block_size = self.knobs.block_size
        index = 0
        while index < len(self.running) and budget:
            sequence = self.running[index]
            if (
                not has_drafts
                and sequence.known - sequence.computed == 1
                and sequence.computed < len(sequence.pages) * block_size
            ):
                tokens = 1  # a decode with room in its last page: nearly always, so without calls
            else:
                tokens = self._tokens_wanted(sequence, budget)
                if not self._grow_or_preempt(sequence, tokens):
                    break  # it was the last one, and had to go itself
            chosen.append((sequence, tokens))
            budget -= tokens
            index += 1
        if self.num_preemptions == num_preemptions:
            self._admit(chosen, budget, whole_text=False)
        return chosen

    def _schedule_sglang(self) -> Chosen:
        """A prompt launch while one can be made, else a launch of every decode."""
        chosen: Chosen = []
        budget = self.knobs.max_num_batched_tokens
        decodes = [
            (s, self._tokens_wanted(s, budget)) for s in self.running if s.computed >= s.text_end
        ]
        if self.knobs.enable_mixed_chunk:
            budget -= sum(tokens for _, tokens in decodes)
        halfway = next((s for s in self.running if s.computed < s.text_end), None)
        if halfway and budget > 0:
            tokens = self._tokens_wanted(halfway, budget)
            if self._grow(halfway, tokens):
                chosen.append((halfway, tokens))
                budget -= tokens
        if chosen or not halfway:  # a prompt that waits for pages lets no other one begin
            self._admit(chosen, budget, whole_text=True)
        has_prompt = any(s.computed < s.text_end for s, _ in chosen)
        if has_prompt and not self.knobs.enable_mixed_chunk:
            return chosen
        self._retract_until_fits(decodes)
        for sequence, tokens in decodes:
            self._grow(sequence, tokens)
            chosen.append((sequence, tokens))
        return chosen

    def _tokens_wanted(self, sequence: EngineSequence, budget: int) -> int:
        """New tokens for a sequence: the rest of its text, or one token and its drafts."""
        tokens = sequence.known - sequence.computed
        if sequence.computed >= sequence.text_end:
            # Drafts beyond the last token that will be generated are never verified.
            drafts = min(self.knobs.num_speculative_tokens, sequence.goal - sequence.known - 1)
            return min(1 + drafts, budget)
        if self.knobs.long_prefill_token_threshold:
            tokens = min(tokens, self.knobs.long_prefill_token_threshold)
        return min(tokens, budget)

    def _pages_missing(self, sequence: EngineSequence, tokens: int) -> int:
        return -(-(sequence.computed + tokens) // self.knobs.block_size) - len(sequence.pages)

    def _grow(self, sequence: EngineSequence, tokens: int) -> bool:
        """Takes the pages that `tokens` more need; False when they are not there."""
        missing = self._pages_missing(sequence, tokens)
        if missing <= 0:
            return True
        if missing > self.pool.num_free:
            return False
        sequence.pages.extend(self.pool.take(missing))
        return True

    def _grow_or_preempt(self, sequence: EngineSequence, tokens: int) -> bool:
        """Grows a sequence, preempting the latest ones; False when it was preempted itself."""
        while not self._grow(sequence, tokens):
            victim = self.running[-1]
            self._preempt(victim)
            self.waiting.appendleft(victim)
            if victim is sequence:
                return False
        return True

    def _retract_until_fits(self, decodes: Chosen) -> None:
        """Sends the decodes with the least output back to waiting until the rest has pages."""
        while sum(max(0, self._pages_missing(*pair)) for pair in decodes) > self.pool.num_free:
            victim = min(
                decodes,
                key=lambda pair: (
                    pair[0].known - pair[0].request.prompt_tokens,
                    -pair[0].request.prompt_tokens,
                ),
            )
            decodes.remove(victim)
            self._preempt(victim[0])
            self.waiting.append(victim[0])

    def _preempt(self, sequence: EngineSequence) -> None:
        """Takes a sequence's pages away; it will compute its text again, drafts forgotten."""
        self.running.remove(sequence)
        self.pool.release(sequence.pages)
        sequence.pages = []
        sequence.computed = 0
        sequence.num_remembered = 0
        sequence.num_preempted += 1
        self.num_preemptions += 1

    def _admit(self, chosen: Chosen, budget: int, *, whole_text: bool) -> None:
        """Moves waiting sequences to running while sequences, tokens and pages allow.

        Args:
          chosen: Extended in place.
          budget: New tokens left in this launch.
          whole_text: Whether a sequence must find pages for all its text, and not only for its
            first chunk, before it may start.
        """
        while self.waiting and budget > 0 and len(self.running) < self.knobs.max_num_seqs:
            sequence = self.waiting[0]
            shared = self._shared_pages(sequence)
            computed = self._computed_on_admission(sequence, len(shared))
            rest = sequence.known - computed
            if rest > budget and not self.knobs.enable_chunked_prefill:
                return
            tokens = min(rest, budget)
            if self.knobs.long_prefill_token_threshold:
                tokens = min(tokens, self.knobs.long_prefill_token_threshold)
            reach = sequence.known if whole_text else computed + tokens
            free = self.pool.num_free - self.pool.num_idle(shared)
            if self.knobs.pages_of(reach) - len(shared) > free:
                return
            self.waiting.popleft()
            self.pool.hold(shared)
            sequence.pages = [*shared]
            sequence.computed = computed
            sequence.text_end = sequence.known
            if self.knobs.kv_role is KvRole.DECODE and not sequence.num_preempted:
                sequence.text_end = computed  # the prompt was computed elsewhere
            sequence.num_remembered = len(shared)
            if self.knobs.kv_role is not KvRole.DECODE:
                self.num_cached_tokens += computed
            self._grow(sequence, tokens)
            self.running.append(sequence)
            chosen.append((sequence, tokens))
            budget -= tokens

    def _shared_pages(self, sequence: EngineSequence) -> list[int]:
        """Pages of the prefix cache that begin this sequence, one token at least left to do."""
        if not self.knobs.enable_prefix_caching:
            return []
        if not sequence.request.prefix and not sequence.num_preempted:
            return []
        block_size = self.knobs.block_size
        return self.pool.cached(sequence.texts(0, (sequence.known - 1) // block_size, block_size))

    def _computed_on_admission(self, sequence: EngineSequence, num_shared: int) -> int:
        """Tokens that need no computing: shared pages, a trace's word, or a transfer.

        A trace's `cached_prefix_tokens` and keys and values received from a prefill engine fill
        pages of the sequence's own. Neither outlives a preemption.
        """
        computed = num_shared * self.knobs.block_size
        if sequence.num_preempted:
            return computed
        if self.knobs.kv_role is KvRole.DECODE:
            return sequence.known - 1
        if self.knobs.enable_prefix_caching:
            told = min(sequence.request.cached_prefix_tokens, sequence.known - 1)
            computed = max(computed, told // self.knobs.block_size * self.knobs.block_size)
        return computed
