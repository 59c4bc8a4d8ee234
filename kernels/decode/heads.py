"""Which KV heads are attended to together. No jax.

Where a 32-bit word of the cache holds two heads (head_dim 64 in bfloat16), taking a head out of
its words costs a shift, a mask and a repacking for every element. It is not needed: a matrix unit
is happy with all rows of the words as they lie. The query rows of both heads in a word are
multiplied with all its rows, and the scores of wrong pairs are masked. That multiplies more rows,
which a matrix unit has to spare when a sequence has one query token.

Float8 words are taken apart: a matrix unit takes float8 keys and values beside bfloat16 queries,
so that they need not be converted, and rows of V and of other heads cost more there than shifts.
"""

from dataclasses import dataclass

from rpa_kernels import layout
from rpa_kernels.problem import Problem


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


def query_tokens(problem: Problem) -> int:
    """Query tokens that are computed for a sequence, however many it has: a power of two."""
    return layout.next_power_of_2(problem.decode_query_size)


def rows_per_token(problem: Problem) -> int:
    """Query rows of one token and KV head in the prepared queries, padding included."""
    return problem.q_words * layout.packing(problem.q_dtype)


def rows_per_head(problem: Problem) -> int:
    """Query rows of one KV head: those of its tokens, one after another."""
    return query_tokens(problem) * rows_per_token(problem)


def keeps_words(problem: Problem) -> bool:
    """Whether words are multiplied as they lie, rather than taken apart."""
    return problem.fuses_kv and problem.kv_dtype == "bfloat16"


def head_groups(problem: Problem) -> tuple[HeadGroup, ...]:
    """All KV heads in groups; the last group may be smaller."""
    size = layout.packing(problem.kv_dtype) if keeps_words(problem) else 1
    heads = problem.num_kv_heads
    return tuple(
        HeadGroup(first=first, count=min(size, heads - first), word=first // size)
        for first in range(0, heads, size)
    )


def group_rows(problem: Problem) -> int:
    """Query rows of the largest group."""
    return head_groups(problem)[0].rows(problem)
