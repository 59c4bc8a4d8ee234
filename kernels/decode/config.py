"""Block sizes of the decode family. No jax."""

from dataclasses import dataclass

from rpa_kernels import limits
from rpa_kernels.infeasible import Infeasible
from rpa_kernels.problem import Problem
from rpa_kernels.target import Target


@dataclass(frozen=True, kw_only=True, slots=True)
class DecodeConfig:
    """Tunables of the decode kernel.

    A step walks `seqs_per_step` KV blocks, taken in order from the list of all (sequence, block)
    pairs: whole short sequences, or parts of one long one.

    Attributes:
      bkv_sz: Tokens of one KV block: what is fetched for one sequence at a time.
      bkv_csz: Tokens of one compute block; divides `bkv_sz`. Compute stops at the last compute
        block with a valid token.
      seqs_per_step: KV blocks a step fetches and attends to together.
      num_buffers: Steps in flight: one computes, the others fetch. 2 is double buffering.
      bq_sz: Sequences whose queries, new keys and values, and outputs are moved in one copy.
    """

    bkv_sz: int
    bkv_csz: int
    seqs_per_step: int
    num_buffers: int
    bq_sz: int

    def check(self, problem: Problem, target: Target) -> Infeasible | None:
        """None when the config can exist for `problem` on `target`, else the limit it breaks."""
        from rpa_kernels.decode.account import scratch_bytes

        bad = limits.check_positive(
            bkv_sz=self.bkv_sz, bkv_csz=self.bkv_csz, seqs_per_step=self.seqs_per_step,
            num_buffers=self.num_buffers - 1, bq_sz=self.bq_sz,
        )  # fmt: skip
        bad = bad or limits.check_blocks(bkv_sz=self.bkv_sz, bkv_csz=self.bkv_csz, problem=problem)
        if bad:
            return bad
        if self.bq_sz < self.seqs_per_step:
            return Infeasible(
                limit="bq_sz >= seqs_per_step",
                need=self.bq_sz,
                have=self.seqs_per_step,
                unit="sequences",
                hint="a step may touch two blocks of queries, not three",
            )
        return limits.check_memory(
            scratch=scratch_bytes(problem, self, target), problem=problem, target=target
        )


def search_axes(problem: Problem, target: Target) -> dict[str, tuple[int, ...]]:
    """Values worth trying, in rising order; `DecodeConfig.check` says which can be combined."""
    del target
    sizes = limits.block_sizes(problem, (128, 256, 512, 1024, 2048))
    return {
        "bkv_sz": sizes,
        "bkv_csz": tuple(sorted({*sizes, *(n for n in (128, 256, 512) if n <= max(sizes))})),
        "seqs_per_step": (1, 2, 4, 8),
        "num_buffers": (2, 3, 4),
        "bq_sz": (16, 32),
    }


def default_config(problem: Problem, target: Target) -> DecodeConfig | Infeasible:
    """A config that fits, by rule of thumb: blocks of 512 tokens, about 2 MiB in a step.

    Where one block of 512 is more than that, two of 256: as many bytes and as much code in a step,
    and tails and windows leave less of a block empty.

    Four buffers, where they fit: the tail of a sequence takes as long to attend to as a whole
    block but is fetched sooner, and the more steps are under way the longer the read engine has
    work beside tails. Queries of 16 sequences at a time are never behind the KV of their steps.

    Returns:
      The first of a falling series that passes `check`, or the last one's `Infeasible`.
    """
    target = limits.with_margin(target)
    block, seqs, buffers = limits.block_sizes(problem, (512,))[0], 4, 4
    while seqs > 1 and seqs * block * problem.kv_token_bytes > 2 << 20:
        seqs //= 2
    if block * problem.kv_token_bytes > 2 << 20:
        block, seqs = limits.block_sizes(problem, (256,))[0], 2
    while True:
        config = DecodeConfig(
            bkv_sz=block,
            bkv_csz=limits.compute_size(block, 512),
            seqs_per_step=seqs,
            num_buffers=buffers,
            bq_sz=16,
        )
        bad = config.check(problem, target)
        if bad is None:
            return config
        if buffers > 3:
            buffers -= 1
        elif seqs > 1:
            seqs //= 2
        elif smaller := limits.smaller_block(block, problem):
            block = smaller
        else:
            return bad
