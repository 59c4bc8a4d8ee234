"""Which KV heads are attended to together. No jax.

Where a 32-bit word of the cache holds two heads (head_dim 64 in bfloat16), taking a head out of
its words costs a shift, a mask and a repacking for every element. It is not needed: a matrix unit
is happy with all rows of the words as they lie. The query rows of both heads in a word are
multiplied with all its rows, and the scores of wrong pairs are masked. That multiplies more rows,
which a matrix unit has to spare when a sequence has one query token.

A word of bytes holds K and V of two heads. Multiplied as it lies, it would cost each product twice
the rows. Taken half apart it does not: bytes 0 and 2 of two words are K of both heads, and make a
word of their own with a mask, a shift and an or; so are bytes 1 and 3 for V (`packed.load_pair`).
That is a third of the vector instructions that each head's own rows take.
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


def pairs_heads(problem: Problem) -> bool:
    """Whether the two heads of a word of bytes are attended to together.

    Half of their scores are of the other head, for nothing. Up to a register's rows a head that
    costs less than taking them apart.
    """
    is_apart = not (problem.is_seq_along_lane or problem.fuses_kv or problem.is_latent)
    is_bytes = layout.packing(problem.kv_dtype) == 4
    return is_apart and is_bytes and rows_per_head(problem) <= layout.SUBLANES


def columns_of(group: HeadGroup, problem: Problem) -> int:
    """Columns of scores that each key of a group has: the heads that are multiplied together."""
    return layout.packing(problem.kv_dtype) if keeps_words(problem) else group.count


def head_groups(problem: Problem) -> tuple[HeadGroup, ...]:
    """All KV heads in groups; the last group may be smaller."""
    size = 2 if pairs_heads(problem) else 1
    if keeps_words(problem):
        size = layout.packing(problem.kv_dtype)
    heads = problem.num_kv_heads
    return tuple(
        HeadGroup(first=first, count=min(size, heads - first), word=first // size)
        for first in range(0, heads, size)
    )


def group_rows(problem: Problem) -> int:
    """Query rows of the largest group."""
    return head_groups(problem)[0].rows(problem)
