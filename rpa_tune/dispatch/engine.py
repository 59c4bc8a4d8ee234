"""Which calls a serving engine can make: the shapes it compiles for, and the steps behind each.

An engine pads a step to the next of a few shapes (`models/buckets.py`). Which plans a bucket can
meet follows from how many tokens and sequences land in it; the rest need no warm-up and no compile.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from rpa_kernels.problem import Problem
from rpa_tune.dispatch.plan import ORDER
from rpa_tune.models.buckets import shapes


@dataclass(frozen=True, kw_only=True, slots=True)
class Bucket:
    """One shape of the call, and the steps that are padded to it.

    Attributes:
      problem: What is compiled.
      above_tokens: Steps here have more tokens than this, and at most the problem's.
      above_seqs: Steps here have more sequences than this, and at most the problem's.
    """

    problem: Problem
    above_tokens: int
    above_seqs: int

    def can_meet(self, families: tuple[str, ...]) -> bool:
        """Whether a step with sequences of exactly these families can land here.

        A decode sequence has one token, any other at least one; of each family there is one.
        """
        most_tokens = self.problem.max_num_tokens
        most_seqs = min(self.problem.max_num_seqs, most_tokens)
        least_seqs = max(self.above_seqs + 1, len(families))
        if not families or least_seqs > most_seqs:
            return False
        # Sequences that are all decode have as many tokens as there are sequences.
        return families != ("decode",) or max(least_seqs, self.above_tokens + 1) <= most_seqs


@dataclass(frozen=True, kw_only=True, slots=True)
class Engine:
    """A serving engine's limits, under the names of its options.

    Attributes:
      max_num_seqs: Maximum number of sequences in a step.
      max_num_batched_tokens: Maximum number of new tokens in a step.
      bucket_seqs: See `buckets.Limits`.
      uses_prefill: Whether sequences are ever put in the prefill slot of the distribution.
        Source: tpu-inference 0.32.0, runner/tpu_runner.py puts none there.
    """

    max_num_seqs: int
    max_num_batched_tokens: int
    bucket_seqs: bool = False
    uses_prefill: bool = False

    def __post_init__(self) -> None:
        """Refuses limits below 1.

        Raises:
          ValueError: Names the limit.
        """
        for name in ("max_num_seqs", "max_num_batched_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")

    @property
    def families(self) -> tuple[str, ...]:
        """Families whose sequences a step can have."""
        return tuple(family for family in ORDER if family != "prefill" or self.uses_prefill)

    def buckets(self, problem: Problem) -> Iterator[Bucket]:
        """Every shape that is compiled, smallest first.

        Args:
          problem: Heads, dtypes, pages and features; its most tokens and sequences play no part.
        """
        for shape in shapes(
            max_num_seqs=self.max_num_seqs,
            max_num_batched_tokens=self.max_num_batched_tokens,
            bucket_seqs=self.bucket_seqs,
        ):
            yield Bucket(
                problem=replace(
                    problem, max_num_tokens=shape.num_tokens, max_num_seqs=shape.num_seqs
                ),
                above_tokens=shape.above_tokens,
                above_seqs=shape.above_seqs,
            )
