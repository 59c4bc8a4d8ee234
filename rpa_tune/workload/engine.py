"""A continuous-batching engine without a model: requests in, the launches it makes out.

Every step is exactly what attention would see: new tokens and context of each sequence, decodes
first, and the page of every block of tokens. Time comes from `StepTime`; randomness (which
drafts are accepted) from the seed alone.
"""

import heapq
from collections import defaultdict
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from rpa_tune.workload.knobs import EngineKnobs, KvRole
from rpa_tune.workload.request import Request
from rpa_tune.workload.scheduler import Chosen, EngineSequence, SchedulerState
from rpa_tune.workload.step import EngineStep
from rpa_tune.workload.stretch import DecodeStretch

Int32Array = npt.NDArray[np.int32]


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineStats:
    """What happened over a run, so far.

    Attributes:
      num_steps: Launches.
      num_finished: Requests served.
      num_preemptions: Times a sequence lost its pages.
      num_cached_tokens: Tokens that the prefix cache saved, over all admissions; the ones that a
        trace declares included.
      engine_s: Engine time.
    """

    num_steps: int
    num_finished: int
    num_preemptions: int
    num_cached_tokens: int
    engine_s: float


class SimulatedEngine:
    """Serves requests step by step; `run` once."""

    def __init__(
        self,
        requests: Sequence[Request],
        knobs: EngineKnobs,
        *,
        max_concurrency: int | None = None,
        seed: int = 0,
    ) -> None:
        """Prepares a run.

        Args:
          requests: In order of arrival, a turn of a conversation after the turn before.
          knobs: How the engine was started.
          max_concurrency: Requests sent and not answered at once, or None for no limit; with all
            arrivals at 0 this is a closed loop of that many users.
          seed: Decides which drafts are accepted.

        Raises:
          ValueError: A prompt leaves no room for output within `max_model_len`, or a turn stands
            before the one that it follows.
        """
        self._followers: defaultdict[int, list[int]] = defaultdict(list)
        for number, request in enumerate(requests):
            if not 1 <= request.prompt_tokens < knobs.max_model_len:
                raise ValueError(
                    f"request {number}: prompt of {request.prompt_tokens} tokens must be at "
                    f"least 1 and below max_model_len={knobs.max_model_len}"
                )
            if request.after is not None:
                if not 0 <= request.after < number:
                    raise ValueError(f"request {number} follows request {request.after}")
                self._followers[request.after].append(number)
        self._requests = requests
        self._knobs = knobs
        self._max_concurrency = max_concurrency or len(requests)
        self._random = np.random.default_rng(seed)
        self._state = SchedulerState(knobs)
        # Requests whose turn before is answered: those of the future by (time, number), and those
        # whose time has come by number, as users send them who are free to.
        self._future = [
            (request.arrival_s * 1e6, number)
            for number, request in enumerate(requests)
            if request.after is None
        ]
        heapq.heapify(self._future)
        self._due: list[int] = []
        self._num_arrived = 0
        self._num_finished = 0
        self._num_steps = 0
        self._now_us = 0.0

    @property
    def stats(self) -> EngineStats:
        """Counts up to now."""
        return EngineStats(
            num_steps=self._num_steps,
            num_finished=self._num_finished,
            num_preemptions=self._state.num_preemptions,
            num_cached_tokens=self._state.num_cached_tokens,
            engine_s=self._now_us / 1e6,
        )

    @property
    def num_arrived(self) -> int:
        """Requests that the engine has seen."""
        return self._num_arrived

    def run(self) -> Iterator[EngineStep]:
        """Yields every launch until all requests are served."""
        while self._num_finished < len(self._requests):
            self._receive()
            if self._state.only_decodes() and (yield from self._decode()):
                continue
            chosen = self._state.schedule()
            if not chosen:  # idle: the next arrival is in the future
                self._now_us = self._future[0][0]
                continue
            step = self._step(chosen)
            self._launch(sum([tokens for _, tokens in chosen]), int(step.kv_lens.sum()))
            yield step
            self._complete(chosen)

    def _launch(self, num_tokens: int, context_tokens: int) -> None:
        """Lets the time of a launch pass."""
        self._now_us += self._knobs.step_time.step_us(
            num_tokens=num_tokens, context_tokens=context_tokens
        )
        self._num_steps += 1

    def _decode(self) -> Generator[EngineStep, None, int]:
        """Yields launches of one new token a sequence until something else is to be done.

        They are those that `schedule` would choose, found without a look at each sequence.

        Returns:
          How many there were.
        """
        state = self._state
        stretch = DecodeStretch(state)
        while state.running and stretch.grow():
            step = EngineStep(
                start_us=self._now_us,
                q_lens=stretch.q_lens,
                kv_lens=stretch.kv_lens,
                num_decode=len(stretch.q_lens),
                page_lists=stretch.page_lists,
            )
            self._launch(step.num_decode, stretch.context_tokens)
            yield step
            stretch.advance(self._finish)
            self._receive()
            if state.may_admit():
                break
        stretch.end()
        return stretch.num_launches

    def _receive(self) -> None:
        """Queues the requests that have arrived."""
        while self._future and self._future[0][0] <= self._now_us:
            heapq.heappush(self._due, heapq.heappop(self._future)[1])
        while self._due and self._num_arrived - self._num_finished < self._max_concurrency:
            number = heapq.heappop(self._due)
            request = self._requests[number]
            prefills = self._knobs.kv_role is KvRole.PREFILL
            goal = request.prompt_tokens + (1 if prefills else request.output_tokens)
            self._state.waiting.append(
                EngineSequence(
                    request=request,
                    number=number,
                    goal=min(goal, self._knobs.max_model_len),
                    known=request.prompt_tokens,
                )
            )
            self._num_arrived += 1

    def _step(self, chosen: Chosen) -> EngineStep:
        """Puts decodes first and freezes the lengths."""
        decodes = [pair for pair in chosen if pair[1] == 1]
        ordered = decodes + [pair for pair in chosen if pair[1] != 1]
        return EngineStep(
            start_us=self._now_us,
            q_lens=np.array([tokens for _, tokens in ordered], np.int32),
            kv_lens=np.array([s.computed + tokens for s, tokens in ordered], np.int32),
            num_decode=len(decodes),
            page_lists=tuple([s.pages for s, _ in ordered]),
        )

    def _complete(self, chosen: Chosen) -> None:
        """Advances every sequence by what the launch computed and sampled."""
        block_size = self._knobs.block_size
        caching = self._knobs.enable_prefix_caching
        for sequence, tokens in chosen:
            missing = sequence.known - sequence.computed
            if tokens < missing:  # a chunk in the middle of a prompt
                sequence.computed += tokens
            else:
                accepted = self._accepted(tokens - missing) if tokens > missing else 0
                sequence.computed += missing + accepted
                sequence.known += 1 + accepted
            if caching and sequence.computed >= (sequence.num_remembered + 1) * block_size:
                self._state.remember(sequence)
            if sequence.known >= sequence.goal:
                self._finish(sequence)

    def _finish(self, sequence: EngineSequence) -> None:
        """Takes a finished sequence out, and lets the turns be sent that waited for its answer."""
        self._state.finish(sequence)
        self._num_finished += 1
        for follower in self._followers.get(sequence.number, ()):
            request = self._requests[follower]
            time_us = max(request.arrival_s * 1e6, self._now_us + request.wait_s * 1e6)
            heapq.heappush(self._future, (time_us, follower))

    def _accepted(self, num_drafts: int) -> int:
        """How many of the drafts the model agrees with: a run of successes from the first."""
        wrong = self._random.random(num_drafts) >= self._knobs.acceptance_rate
        return int(wrong.argmax()) if wrong.any() else num_drafts
