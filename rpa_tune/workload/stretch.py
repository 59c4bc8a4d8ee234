"""Launches in a row that give each running sequence one new token, without a look at each of them.

Between two ends of sequences and two full pages nothing changes but lengths, which all grow by one.
So only these events are looked at, in the order in which the scheduler would come to them; the
sequences' own counts are brought up to date when the row ends.
"""

import bisect
import heapq
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from rpa_tune.workload.scheduler import EngineSequence, SchedulerState

Int32Array = npt.NDArray[np.int32]


class DecodeStretch:
    """The next launches of a scheduler that `only_decodes`.

    A launch is `grow`, what `q_lens` and the other attributes say, and `advance` to its end.

    Attributes:
      q_lens: int32[num_seqs], ones.
      kv_lens: int32[num_seqs], context of the next launch, its new tokens included.
      context_tokens: Their sum.
      page_lists: Pages of each sequence.
      num_launches: Completed ones.
    """

    def __init__(self, state: SchedulerState) -> None:
        """Begins with all running sequences, in their order."""
        self._state = state
        self._block_size = state.knobs.block_size
        self._caching = state.knobs.enable_prefix_caching
        self._sequences = list(state.running)
        self._begun = [(s.computed, s.known) for s in self._sequences]
        self.num_launches = 0
        # Places among `_sequences` that still run; and what comes next of each, by launches from
        # the beginning: a page to be taken, and a page that is full or the end.
        self._places = list(range(len(self._sequences)))
        self._pages_at = [
            (len(s.pages) * self._block_size - s.computed, place)
            for place, s in enumerate(self._sequences)
        ]
        self._events_at = [(self._next_event(place), place) for place in self._places]
        heapq.heapify(self._pages_at)
        heapq.heapify(self._events_at)
        self.kv_lens = np.array([computed + 1 for computed, _ in self._begun], np.int32)
        self._fit()

    def grow(self) -> bool:
        """Takes the pages that the next launch needs; False, and none taken, if they are too few.

        Then the row ends: the scheduler has to preempt.
        """
        if self._pages_at[0][0] > self.num_launches:
            return True
        full: list[int] = []
        while self._pages_at and self._pages_at[0][0] <= self.num_launches:
            _, place = heapq.heappop(self._pages_at)
            if self._still_runs(place):
                full.append(place)
        if len(full) > self._state.pool.num_free:
            return False
        for place in full:
            self._sequences[place].pages.extend(self._state.pool.take(1))
            heapq.heappush(self._pages_at, (self.num_launches + self._block_size, place))
        return True

    def advance(self, finish: Callable[[EngineSequence], None]) -> None:
        """Completes a launch.

        Args:
          finish: Takes a sequence out of the engine that the launch finished.
        """
        self.num_launches += 1
        self.kv_lens = self.kv_lens + 1
        self.context_tokens += len(self._places)
        finished: list[int] = []
        while self._events_at and self._events_at[0][0] <= self.num_launches:
            _, place = heapq.heappop(self._events_at)
            sequence = self._sequences[place]
            self._update(place)
            if self._caching:
                self._state.remember(sequence)
            if sequence.known >= sequence.goal:
                finished.append(place)
                finish(sequence)
            else:
                heapq.heappush(self._events_at, (self._next_event(place), place))
        if finished:
            for place in finished:
                at = bisect.bisect_left(self._places, place)
                del self._places[at]
                self.kv_lens = np.delete(self.kv_lens, at)
            self._fit()

    def end(self) -> None:
        """Brings the counts of the sequences that still run up to date."""
        for place in self._places:
            self._update(place)

    def _next_event(self, place: int) -> int:
        """After how many launches a sequence ends, or a page of it is full, which comes first."""
        sequence, (computed, known) = self._sequences[place], self._begun[place]
        ends = sequence.goal - known
        if not self._caching:
            return ends
        return min(ends, (sequence.num_remembered + 1) * self._block_size - computed)

    def _update(self, place: int) -> None:
        computed, known = self._begun[place]
        self._sequences[place].computed = computed + self.num_launches
        self._sequences[place].known = known + self.num_launches

    def _still_runs(self, place: int) -> bool:
        at = bisect.bisect_left(self._places, place)
        return at < len(self._places) and self._places[at] == place

    def _fit(self) -> None:
        """What changes when sequences end."""
        self.context_tokens = int(self.kv_lens.sum())
        self.q_lens = np.ones(len(self._places), np.int32)
        self.page_lists = tuple([self._sequences[place].pages for place in self._places])
