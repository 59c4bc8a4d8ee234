"""Runs of neighbouring pages: what of a page table one copy can bring. No jax at import.

A run is entries of the page table whose pages follow each other in the cache. It depends on lengths
and pages alone, so it is found once a step, by XLA or on the host, for all layers. Kernels read the
page table as `pack` makes it: each entry says how many pages, itself among them, follow each other.

Engines hand pages out in the order in which they came back, often the last page of a sequence
first, so half of all runs descend. Attention does not depend on the order of keys that every query
sees. So `pack` turns descending runs of such pages round:

    page_indices   7  8  9   4   21 20 19   30
    pages          7  8  9   4   19 20 21   30
    count          3  2  1   1    3  2  1    1

Runs are cut so that where one ends does not depend on where one begins to read: the account counts
copies by counting ends. No run crosses a multiple of `longest_run` pages of its sequence.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from rpa_kernels.batch import BatchArrays
from rpa_kernels.ints import cdiv, div
from rpa_kernels.problem import Problem
from rpa_kernels.window import newest_sees_from

Array = Any

# Pages of a run at most: as many as most KV blocks have, and few enough bits beside a page.
MAX_RUN = 128


class Entry(NamedTuple):
    """What an entry of the page table says to a kernel.

    Attributes:
      page: The page.
      count: Pages from this entry on that follow each other, at least 1.
    """

    page: Any
    count: Any


def longest_run(num_pages: int) -> int:
    """Pages of the longest run that an entry can tell in a cache of so many: a power of two."""
    return min(MAX_RUN, 1 << (30 - (num_pages - 1).bit_length()))


def read(entry: Any, num_pages: int) -> Entry:
    """Takes an entry of `pack`, int32, apart."""
    bits = longest_run(num_pages).bit_length()
    return Entry(entry >> bits, entry & ((1 << bits) - 1))


def pack(arrays: BatchArrays, problem: Problem, xp: Any = np) -> Array:
    """The page table as kernels read it; see `read`.

    Pages that a sequence's queries do not all see, or that have a place for a new token, stay where
    they are. Entries past a sequence's pages may be anything, before and after.

    For XLA it is some small operations (v6e, jax 0.10.2: 27), without a running minimum, which
    takes it long to compile.

    Args:
      arrays: Of a launch.
      problem: Static shapes and features.
      xp: `numpy` or `jax.numpy`.

    Returns:
      int32[max_num_seqs * pages_per_seq].
    """
    longest = longest_run(problem.num_pages)
    table = arrays.page_indices.reshape(problem.max_num_seqs, problem.pages_per_seq)
    if problem.sees_cache_only:
        # The first entry of an empty context would be anything, and a copy of nothing names it.
        table = xp.where(arrays.kv_lens[:, None] > 0, table, 0)
    index = xp.arange(problem.pages_per_seq, dtype=xp.int32)
    step = _shifted(table, -1, xp) - table
    has_next = (index % longest != longest - 1) & (index + 1 < problem.pages_per_seq)
    step = xp.where(has_next, step, 0)
    first, end = _free_pages(arrays, problem, xp)
    is_free = (index >= first[:, None]) & (index + 1 < end[:, None])
    is_down = (step == -1) & is_free
    is_up = (step == 1) & ~_shifted(is_down, 1, xp) & ~_shifted(is_down, -1, xp)
    ahead = _ahead(is_up | is_down, longest, xp)
    page = table - xp.where(is_down, ahead, 0) + _behind(is_down, longest, xp)
    return ((page << longest.bit_length()) | (ahead + 1)).astype(xp.int32).reshape(-1)


def _free_pages(arrays: BatchArrays, problem: Problem, xp: Any) -> tuple[Array, Array]:
    """First page of each sequence that may come in any order, and the one after the last.

    Those are full of cached tokens that every query of the sequence sees.
    """
    kv_lens, size = arrays.kv_lens, problem.page_size
    q_lens = arrays.cu_q_lens[1:] - arrays.cu_q_lens[:-1]
    first = xp.zeros_like(kv_lens)
    oldest = newest_sees_from(kv_lens, problem)
    if oldest is not None:
        first = cdiv(xp.maximum(oldest, 0), size)
    if problem.update_kv_cache or problem.has_tree_mask:
        end = kv_lens - q_lens
    else:
        end = kv_lens - q_lens + 1 if problem.causal else kv_lens
    return first, div(xp.maximum(end, 0), size)


def _shifted(x: Array, by: int, xp: Any) -> Array:
    """Rows moved one place, 1 to the right or -1 to the left; 0 comes in."""
    none = xp.zeros_like(x[:, :1])
    parts = [none, x[:, :-1]] if by > 0 else [x[:, 1:], none]
    return xp.concatenate(parts, axis=1)


def _ahead(goes_on: Array, longest: int, xp: Any) -> Array:
    """How many entries behind each belong to its run: int32[sequences, pages].

    Args:
      goes_on: Whether the entry behind each continues its run, [sequences, pages]; false for the
        last in each `longest` of them.
      longest: Pages of the longest run.
      xp: `numpy` or `jax.numpy`.
    """
    index, groups = _grouped(goes_on, longest, xp)
    end = xp.where(groups, longest, index)
    if xp is np:
        end = np.minimum.accumulate(end[..., ::-1], axis=-1)[..., ::-1]
    else:
        end = xp.where(index >= index[:, None], end[..., None, :], longest).min(axis=-1)
    return _ungrouped(end - index, goes_on)


def _behind(goes_on: Array, longest: int, xp: Any) -> Array:
    """How many entries before each belong to its run; see `_ahead`."""
    index, groups = _grouped(goes_on, longest, xp)
    start = xp.where(groups, 0, index + 1)  # of the next entry's run
    if xp is np:
        start = np.maximum.accumulate(start, axis=-1)
    else:
        start = xp.where(index <= index[:, None], start[..., None, :], 0).max(axis=-1)
    start = xp.concatenate([xp.zeros_like(start[..., :1]), start[..., :-1]], axis=-1)
    return _ungrouped(index - start, goes_on)


def _grouped(x: Array, longest: int, xp: Any) -> tuple[Array, Array]:
    """The index in a group of `longest` entries, and [sequences, groups, longest] entries."""
    padding = xp.zeros((len(x), -x.shape[1] % longest), bool)
    groups = xp.concatenate([x, padding], axis=1).reshape(len(x), -1, longest)
    return xp.arange(longest, dtype=xp.int32), groups


def _ungrouped(groups: Array, like: Array) -> Array:
    """What `_grouped` took apart."""
    return groups.reshape(len(like), -1)[:, : like.shape[1]]


@dataclass(frozen=True, kw_only=True, slots=True)
class SeqRuns:
    """The runs of a batch's page table, for the account.

    Attributes:
      ends_before: Ends of runs in the entries before each, [sequences, pages].
      page_size: Tokens of a page.
    """

    ends_before: np.ndarray[Any, Any]
    page_size: int

    @classmethod
    def of(cls, arrays: BatchArrays, problem: Problem) -> "SeqRuns":
        """Finds the runs as the kernels do."""
        count = read(pack(arrays, problem), problem.num_pages).count
        is_end = (count == 1).reshape(problem.max_num_seqs, -1)
        return cls(ends_before=np.cumsum(is_end, axis=1) - is_end, page_size=problem.page_size)

    def count_copies(self, seq: int, start: Array, end: Array) -> int:
        """Copies that move spans of a sequence's context, [start, end) each.

        Args:
          seq: Sequence.
          start: First positions, an array.
          end: Positions after the last; a span may be empty.
        """
        is_some, ends_before = end > start, self.ends_before[seq]
        first, last = start[is_some] // self.page_size, (end[is_some] - 1) // self.page_size
        return int(np.sum(ends_before[last] - ends_before[first] + 1))
