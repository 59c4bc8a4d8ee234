"""What a serving host knows about a step before it launches: the inputs of a row's rule.

Pure integers from replicated inputs, so that every host of a mesh decides alike. No jax.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from rpa_kernels.batch import Batch


@dataclass(frozen=True, kw_only=True, slots=True)
class Lengths:
    """The sequences that one family serves in a step.

    Attributes:
      num_seqs: Sequences.
      num_tokens: New tokens.
      longest_context_tokens: Longest context, new tokens included; 0 without sequences.
      total_context_tokens: Sum of the contexts.
    """

    num_seqs: int = 0
    num_tokens: int = 0
    longest_context_tokens: int = 0
    total_context_tokens: int = 0

    @property
    def mean_context_tokens(self) -> int:
        """Mean context, rounded down; 0 without sequences."""
        return self.total_context_tokens // self.num_seqs if self.num_seqs else 0

    @classmethod
    def of(cls, q_lens: Sequence[int], kv_lens: Sequence[int]) -> Self:
        """Sums over one family's sequences."""
        return cls(
            num_seqs=len(kv_lens),
            num_tokens=sum(q_lens),
            longest_context_tokens=max(kv_lens, default=0),
            total_context_tokens=sum(kv_lens),
        )

    def __add__(self, other: "Lengths") -> "Lengths":
        """The sequences of both, served by one family."""
        return Lengths(
            num_seqs=self.num_seqs + other.num_seqs,
            num_tokens=self.num_tokens + other.num_tokens,
            longest_context_tokens=max(self.longest_context_tokens, other.longest_context_tokens),
            total_context_tokens=self.total_context_tokens + other.total_context_tokens,
        )


# What a rule may ask for.
FEATURES = (
    "num_seqs",
    "num_tokens",
    "longest_context_tokens",
    "mean_context_tokens",
    "total_context_tokens",
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """One step of a serving engine: its sequences by the slot of the distribution they are in.

    Attributes:
      decode: Sequences in the decode slot: of one new token, or a few with `decode_query_size`.
      prefill: Sequences in the prefill slot.
      mixed: All others.
    """

    decode: Lengths = Lengths()
    prefill: Lengths = Lengths()
    mixed: Lengths = Lengths()

    @classmethod
    def of(cls, q_lens: Sequence[int], kv_lens: Sequence[int], distribution: Sequence[int]) -> Self:
        """A step from host lists.

        Args:
          q_lens: New tokens of each sequence.
          kv_lens: Context of each sequence, in tokens.
          distribution: (end of decode, end of prefill, number of sequences), as the kernel's.

        Raises:
          ValueError: The distribution does not rise, or does not cover the lists.
        """
        d, p, n = (int(end) for end in distribution)
        if not 0 <= d <= p <= n <= min(len(q_lens), len(kv_lens)):
            raise ValueError(
                f"distribution=({d}, {p}, {n}) must rise and stay within "
                f"{len(q_lens)} q_lens and {len(kv_lens)} kv_lens"
            )
        return cls(
            decode=Lengths.of(q_lens[:d], kv_lens[:d]),
            prefill=Lengths.of(q_lens[d:p], kv_lens[d:p]),
            mixed=Lengths.of(q_lens[p:n], kv_lens[p:n]),
        )

    @classmethod
    def of_batch(cls, batch: Batch) -> Self:
        """The step that a `Batch` describes."""
        return cls.of(batch.q_lens, batch.kv_lens, batch.distribution)

    def lengths(self, family: str) -> Lengths:
        """The sequences of `decode`, `prefill` or `mixed`."""
        lengths: Lengths = getattr(self, family)
        return lengths
