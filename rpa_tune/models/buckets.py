"""The shapes a server compiles its step for: the one rule of its buckets. No jax.

Source: tpu-inference 0.32.0. `TPUModelRunner._init_inputs` (runner/tpu_runner.py) pads tokens with
`build_token_paddings` (runner/utils.py): powers of two from `MIN_TOKEN_BUCKET` (envs.py, 16) below
the budget, then the budget as a multiple of that. It makes the per-sequence arrays of the attention
call as long as the most sequences, at least `MIN_NUM_SEQS` (8), whatever a step holds.

sglang-jax differs: its `CompilationManager` pads prompts to powers of two from 64 tokens, and a
decode launch of n sequences has n tokens, from 1 on. A look-up of such a shape below ours is
answered by the nearest row.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from rpa_kernels import layout
from rpa_kernels.ints import cdiv

LEAST_SEQS = 8
LEAST_TOKENS = 16


@dataclass(frozen=True, kw_only=True, slots=True)
class Shape:
    """One shape of a step, and what is padded to it.

    Attributes:
      num_tokens: Rows of the queries.
      num_seqs: Length of the per-sequence arrays.
      above_tokens: Steps here have more tokens than this, and at most `num_tokens`.
      above_seqs: Steps here have more sequences than this, and at most `num_seqs`.
    """

    num_tokens: int
    num_seqs: int
    above_tokens: int = 0
    above_seqs: int = 0

    def holds(self, num_tokens: int, num_seqs: int) -> bool:
        """Whether a step of so many tokens and sequences is padded to this shape."""
        return (
            self.above_tokens < num_tokens <= self.num_tokens
            and self.above_seqs < num_seqs <= self.num_seqs
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """A server's limits, under the names of its options.

    Attributes:
      max_num_seqs: Maximum number of sequences in a step.
      max_num_batched_tokens: Maximum number of new tokens in a step.
      max_model_len: Longest context, tokens.
      bucket_seqs: Whether the per-sequence arrays are padded to the next power of two of
        sequences; else always to the most. tpu-inference 0.32.0 does not: its
        `ATTN_BUCKETIZED_NUM_REQS` is a static argument for layers of other kinds.
      only_tokens: Shapes of these tokens alone; all if empty.
    """

    max_num_seqs: int
    max_num_batched_tokens: int
    max_model_len: int
    bucket_seqs: bool = False
    only_tokens: tuple[int, ...] = ()

    def shapes(self) -> Iterator[Shape]:
        """Every shape that is compiled, smallest first; `only_tokens` apart."""
        for shape in shapes(
            max_num_seqs=self.max_num_seqs,
            max_num_batched_tokens=self.max_num_batched_tokens,
            bucket_seqs=self.bucket_seqs,
        ):
            if not self.only_tokens or shape.num_tokens in self.only_tokens:
                yield shape

    def pages_per_seq(self, page_size: int) -> int:
        """Pages of a sequence at its longest; `max_num_seqs` times that fill the cache."""
        return cdiv(self.max_model_len, page_size)


def shapes(
    *, max_num_seqs: int, max_num_batched_tokens: int, bucket_seqs: bool = False
) -> Iterator[Shape]:
    """Every shape that a server with these limits compiles, smallest first."""
    most_seqs = max(max_num_seqs, LEAST_SEQS)
    seqs = _powers_of_2(LEAST_SEQS, most_seqs) if bucket_seqs else [most_seqs]
    tokens = _powers_of_2(LEAST_TOKENS, layout.align(max_num_batched_tokens, LEAST_TOKENS))
    for above_seqs, num_seqs in zip([0, *seqs], seqs, strict=False):
        for above_tokens, num_tokens in zip([0, *tokens], tokens, strict=False):
            if num_tokens > above_seqs:
                yield Shape(
                    num_tokens=num_tokens,
                    num_seqs=num_seqs,
                    above_tokens=above_tokens,
                    above_seqs=above_seqs,
                )


def shape_of(num_tokens: int, num_seqs: int) -> Shape:
    """The shape of a server whose largest step has so many tokens and sequences.

    Its limits are not known: both are taken for powers of two.
    """
    return Shape(
        num_tokens=layout.next_power_of_2(max(num_tokens, LEAST_TOKENS)),
        num_seqs=layout.next_power_of_2(max(num_seqs, LEAST_SEQS)),
    )


def _powers_of_2(low: int, high: int) -> list[int]:
    """Powers of two from `low` below `high`, and `high` as the last."""
    values, value = [], low
    while value < high:
        values.append(value)
        value *= 2
    return [*values, high]
