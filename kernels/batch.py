"""The dynamic half of an attention call: the lengths and pages of one launch.

A `Batch` says what a serving engine launches in one step; `arrays` turns it into the four int32
arrays the kernels read. Sequences are in the order the kernels demand: decode, then prefill,
then mixed. No jax.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from rpa_kernels.ints import cdiv
from rpa_kernels.problem import MAX_DECODE_QUERY, Problem
from rpa_kernels.slots import slot_of

Int32Array = npt.NDArray[np.int32]


@dataclass(frozen=True, kw_only=True, slots=True)
class BatchArrays:
    """What the kernels read from SMEM, padded to the problem's static shapes.

    Attributes:
      kv_lens: int32[max_num_seqs], context lengths in tokens, new tokens included.
      page_indices: int32[max_num_seqs * pages_per_seq], row-major by sequence.
      cu_q_lens: int32[max_num_seqs + 1], running sum of query lengths; constant past the end.
      distribution: int32[3], (end of decode, end of prefill, number of sequences).
    """

    kv_lens: Int32Array
    page_indices: Int32Array
    cu_q_lens: Int32Array
    distribution: Int32Array


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """Lengths of one launch.

    Attributes:
      q_lens: New tokens per sequence. Decode sequences have 1, or up to the problem's
        `decode_query_size`; prefill sequences all have the same static chunk length; mixed ones
        anything from 1.
      kv_lens: Context tokens per sequence after this step, so `kv_lens[i] >= q_lens[i]`.
      num_decode: Leading sequences that the decode family serves.
      num_prefill: Sequences after those that the prefill family serves.
      page_table: Pages of each sequence in order, at least `cdiv(kv_len, page_size)` of them; or
        None to draw a fragmented table from `page_seed`.
      page_seed: Seed of the drawn page table.
      cache_only: Whether queries have no place in their contexts (`Problem.sees_cache_only`):
        `kv_lens` then counts cached tokens, any number from 0 on.
    """

    q_lens: tuple[int, ...]
    kv_lens: tuple[int, ...]
    num_decode: int
    num_prefill: int = 0
    page_table: tuple[tuple[int, ...], ...] | None = None
    page_seed: int = 0
    cache_only: bool = False

    def __post_init__(self) -> None:
        """Refuses lengths that cannot be a launch.

        Raises:
          ValueError: Lengths that disagree, a decode sequence with more query tokens than any
            problem allows, or a context shorter than its new tokens.
        """
        if len(self.q_lens) != len(self.kv_lens):
            raise ValueError(f"{len(self.q_lens)} q_lens but {len(self.kv_lens)} kv_lens")
        if not 0 <= self.num_decode + self.num_prefill <= len(self.q_lens):
            raise ValueError(
                f"num_decode={self.num_decode} + num_prefill={self.num_prefill} "
                f"exceed {len(self.q_lens)} sequences"
            )
        for i, (q, kv) in enumerate(zip(self.q_lens, self.kv_lens, strict=True)):
            if self.cache_only and not (q >= 1 and kv >= 0):
                raise ValueError(f"sequence {i}: need q_len >= 1 and kv_len >= 0, got {q} and {kv}")
            if not self.cache_only and not 1 <= q <= kv:
                raise ValueError(f"sequence {i}: need 1 <= q_len <= kv_len, got {q} and {kv}")
            if i < self.num_decode and q > MAX_DECODE_QUERY:
                raise ValueError(
                    f"sequence {i} is in the decode range but has q_len={q}, "
                    f"more than {MAX_DECODE_QUERY}"
                )
        prefill = self.q_lens[self.num_decode : self.num_decode + self.num_prefill]
        if len(set(prefill)) > 1:
            raise ValueError(f"prefill sequences need one static q_len, got {sorted(set(prefill))}")

    @property
    def num_seqs(self) -> int:
        """Sequences in the launch."""
        return len(self.q_lens)

    @property
    def num_mixed(self) -> int:
        """Sequences the mixed family serves."""
        return self.num_seqs - self.num_decode - self.num_prefill

    @property
    def num_tokens(self) -> int:
        """Query tokens in the launch."""
        return sum(self.q_lens)

    @property
    def distribution(self) -> tuple[int, int, int]:
        """(end of decode, end of prefill, number of sequences)."""
        return (self.num_decode, self.num_decode + self.num_prefill, self.num_seqs)

    def family_seqs(self, family: str) -> range:
        """Sequence indices that a family serves: those of its slot (`slots.slot_of`)."""
        d, p, n = self.distribution
        return {"decode": range(d), "prefill": range(d, p), "mixed": range(p, n)}[slot_of(family)]

    def misfit(self, problem: Problem) -> str | None:
        """Why this batch cannot run under `problem`, or None when it fits."""
        if self.cache_only and not problem.sees_cache_only:
            return "attention to the cache alone, but the problem's queries are part of contexts"
        if self.num_seqs > problem.max_num_seqs:
            return f"{self.num_seqs} sequences, but max_num_seqs={problem.max_num_seqs}"
        if self.num_tokens > problem.max_num_tokens:
            return f"{self.num_tokens} tokens, but max_num_tokens={problem.max_num_tokens}"
        most = max(self.q_lens[: self.num_decode], default=0)
        if most > problem.decode_query_size:
            return (
                f"a decode sequence of {most} tokens, "
                f"but decode_query_size={problem.decode_query_size}"
            )
        longest = max(self.kv_lens, default=0)
        if longest > problem.max_context_tokens:
            return f"context of {longest} tokens, but pages hold {problem.max_context_tokens}"
        pages = sum(cdiv(kv, problem.page_size) for kv in self.kv_lens)
        if self.page_table is None and pages > problem.num_pages:
            return f"{pages} pages, but the cache has num_pages={problem.num_pages}"
        return None

    def pages(self, problem: Problem) -> tuple[tuple[int, ...], ...]:
        """Pages of each sequence: the given table, or a fragmented one without repeats."""
        if self.page_table is not None:
            return self.page_table
        order = np.random.default_rng(self.page_seed).permutation(problem.num_pages)
        rows, start = [], 0
        for kv in self.kv_lens:
            count = cdiv(kv, problem.page_size)
            rows.append(tuple(order[start : start + count].tolist()))
            start += count
        return tuple(rows)

    def arrays(self, problem: Problem) -> BatchArrays:
        """The int32 arrays of a kernel call, padded to `problem`.

        Unused entries are zero, except `cu_q_lens`, which stays at its last value.

        Raises:
          ValueError: The batch does not fit the problem; see `misfit`.
        """
        if reason := self.misfit(problem):
            raise ValueError(reason)
        kv_lens = np.zeros(problem.max_num_seqs, np.int32)
        kv_lens[: self.num_seqs] = self.kv_lens
        page_indices = np.zeros((problem.max_num_seqs, problem.pages_per_seq), np.int32)
        for i, row in enumerate(self.pages(problem)):
            page_indices[i, : len(row)] = row
        cu_q_lens = np.full(problem.max_num_seqs + 1, self.num_tokens, np.int32)
        cu_q_lens[0] = 0
        cu_q_lens[1 : self.num_seqs + 1] = np.cumsum(self.q_lens)
        return BatchArrays(
            kv_lens=kv_lens,
            page_indices=page_indices.reshape(-1),
            cu_q_lens=cu_q_lens,
            distribution=np.asarray(self.distribution, np.int32),
        )
