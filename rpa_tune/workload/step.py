"""One launch of a serving engine: lengths, decodes, and where the pages lie."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from rpa_kernels.batch import Batch

Int32Array = npt.NDArray[np.int32]


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineStep:
    """One launch.

    Attributes:
      start_us: Engine time at which it starts.
      q_lens: int32[num_seqs], new tokens; decodes come first.
      kv_lens: int32[num_seqs], context with the new tokens.
      num_decode: Sequences with one new token; see `with_decode_slot`.
      num_prefill: Sequences after those in the kernel's prefill slot; see `with_prefill_slot`.
      page_lists: Pages of each sequence, at least as many as `kv_lens` needs: sequences append
        to their list later, so cut it with `page_table`. Empty when pages are not known.
    """

    start_us: float
    q_lens: Int32Array
    kv_lens: Int32Array
    num_decode: int
    num_prefill: int = 0
    page_lists: tuple[list[int], ...] = ()

    @property
    def num_seqs(self) -> int:
        """Sequences in the launch."""
        return len(self.q_lens)

    @property
    def num_mixed(self) -> int:
        """Sequences that neither the decode nor the prefill family serves."""
        return self.num_seqs - self.num_decode - self.num_prefill

    def with_prefill_slot(self, chunk_tokens: int) -> "EngineStep":
        """The same launch with sequences of `chunk_tokens` new tokens in the prefill slot."""
        is_chunk = (self.q_lens == chunk_tokens) & (np.arange(self.num_seqs) >= self.num_decode)
        rank = np.where(is_chunk, 1, 2)
        rank[: self.num_decode] = 0
        return replace(self._ordered(rank), num_prefill=int(is_chunk.sum()))

    def with_decode_slot(self, query_tokens: int) -> "EngineStep":
        """The same launch with sequences of up to `query_tokens` new tokens as decodes.

        None are in the prefill slot.
        """
        is_decode = self.q_lens <= query_tokens
        ordered = self._ordered(~is_decode)
        return replace(ordered, num_decode=int(is_decode.sum()), num_prefill=0)

    def _ordered(self, rank: npt.NDArray[Any]) -> "EngineStep":
        """The same sequences in rising order of `rank`, as they are where it is equal."""
        order = np.argsort(rank, kind="stable")
        return replace(
            self,
            q_lens=self.q_lens[order],
            kv_lens=self.kv_lens[order],
            page_lists=tuple(self.page_lists[i] for i in order) if self.page_lists else (),
        )

    def page_table(self, block_size: int) -> tuple[tuple[int, ...], ...]:
        """Pages of each sequence in this step."""
        return tuple(
            tuple(pages[: -(-int(kv) // block_size)])
            for pages, kv in zip(self.page_lists, self.kv_lens, strict=True)
        )

    def batch(self, *, page_seed: int = 0, block_size: int | None = None) -> Batch:
        """The launch as kernels see it.

        Args:
          page_seed: Seed of a drawn, fully fragmented page table.
          block_size: Page size with which to keep the engine's own page table instead.
        """
        return Batch(
            q_lens=tuple(self.q_lens.tolist()),
            kv_lens=tuple(self.kv_lens.tolist()),
            num_decode=self.num_decode,
            num_prefill=self.num_prefill,
            page_table=None if block_size is None else self.page_table(block_size),
            page_seed=page_seed,
        )
