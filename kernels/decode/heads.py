"""Which KV heads are attended to together. No jax.

Where a 32-bit word of the cache holds several heads (float8 caches, and head_dim 64 in bfloat16),
taking a head out of its words costs a shift, a mask and a repacking for every element. It is not
needed: a matrix unit is happy with all rows of the words as they lie. The query rows of all heads
in a word are multiplied with all its rows, and the scores of wrong pairs are masked. That
multiplies more rows, which a matrix unit has to spare when a sequence has one query token.
"""

from dataclasses import dataclass

from rpa_kernels import layout
from rpa_kernels.problem import Problem
from rpa_kernels.target import Target


@dataclass(frozen=True, kw_only=True, slots=True)
class HeadGroup:
    """KV heads of one word, or one head alone.

    Attributes:
      first: First KV head.
      count: KV heads.
      word: Word of a token that holds them; meaningful where `keeps_words`.
    """

    first: int
    count: int
    word: int

    def rows(self, problem: Problem) -> int:
        """Query rows of the group, padding included."""
        return self.count * rows_per_head(problem)


def rows_per_head(problem: Problem) -> int:
    """Query rows of one KV head in the prepared queries, padding included."""
    return problem.q_words * layout.packing(problem.q_dtype)


def rows_of_kv(problem: Problem) -> int:
    """Rows that K and V of one head take in the words of a token."""
    return 1 if problem.fuses_kv else 2


def heads_per_word(problem: Problem) -> int:
    """KV heads whose K and V share a word; 0 where K and V of one head fill more than a word."""
    return layout.packing(problem.kv_dtype) // rows_of_kv(problem)


def keeps_words(problem: Problem, target: Target) -> bool:
    """Whether words are multiplied as they lie, rather than taken apart.

    Not where the matrix unit does not take them beside bfloat16, because converting all rows of a
    word for both products costs more than taking them apart: int8 (v7x, 32 x 2048: 112.7 us
    against 79.9), and float8 on chips without it (v4, 32 x 2048, one core: 3486 us against 2583).
    """
    if heads_per_word(problem) <= 1 or problem.kv_dtype == "int8":
        return False
    return target.has_fp8_mxu or not problem.kv_dtype.startswith("float8")


def head_groups(problem: Problem, target: Target) -> tuple[HeadGroup, ...]:
    """All KV heads in groups; the last group may be smaller."""
    size = heads_per_word(problem) if keeps_words(problem, target) else 1
    heads = problem.num_kv_heads
    return tuple(
        HeadGroup(first=first, count=min(size, heads - first), word=first // size)
        for first in range(0, heads, size)
    )


def group_rows(problem: Problem, target: Target) -> int:
    """Query rows of the largest group."""
    return head_groups(problem, target)[0].rows(problem)
