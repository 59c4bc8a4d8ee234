"""Block sizes of the prefill and mixed families. No jax."""

from dataclasses import dataclass

from rpa_kernels import layout, limits
from rpa_kernels.infeasible import Infeasible
from rpa_kernels.problem import Problem
from rpa_kernels.target import Target

# A chain needs whole tiles of query rows, and an odd number of heads is split in two chains.
MIN_BQ_CSZ = 16


@dataclass(frozen=True, kw_only=True, slots=True)
class BlockwiseConfig:
    """Tunables of a kernel that walks query blocks and, for each, KV blocks.

    Attributes:
      bq_sz: Query tokens of one sequence that are fetched, and held, together.
      bq_csz: Query tokens of one compute block; a power of two that divides `bq_sz`.
      bkv_sz: Tokens of one KV block: what is fetched at a time.
      bkv_csz: Tokens of one compute block; divides `bkv_sz`.
      num_buffers: KV blocks in flight: one computes, the others fetch. 2 is double buffering.
      mxu_sums: 1 to get the softmax sums from a column of ones beside V, which saves a widening
        and an addition for each score and is free where V fills half the columns of an MXU.
    """

    bq_sz: int
    bq_csz: int
    bkv_sz: int
    bkv_csz: int
    num_buffers: int
    mxu_sums: int

    def check(self, problem: Problem, target: Target) -> Infeasible | None:
        """None when the config can exist for `problem` on `target`, else the limit it breaks."""
        from rpa_kernels.blockwise.account import scratch_bytes

        bad = limits.check_positive(
            bq_sz=self.bq_sz, bq_csz=self.bq_csz, bkv_sz=self.bkv_sz, bkv_csz=self.bkv_csz,
            num_buffers=self.num_buffers - 1,
        )  # fmt: skip
        bad = bad or limits.check_blocks(bkv_sz=self.bkv_sz, bkv_csz=self.bkv_csz, problem=problem)
        if bad:
            return bad
        if self.bq_csz < MIN_BQ_CSZ or self.bq_sz % self.bq_csz or self.bq_csz & (self.bq_csz - 1):
            return Infeasible(
                limit="bq_sz % bq_csz",
                need=self.bq_sz,
                have=self.bq_csz,
                unit="tokens",
                hint=f"bq_csz must be a power of two from {MIN_BQ_CSZ} that divides bq_sz",
            )
        if self.mxu_sums not in (0, 1) or (self.mxu_sums and problem.fuses_kv):
            return Infeasible(
                limit="mxu_sums",
                need=self.mxu_sums,
                have=int(not problem.fuses_kv),
                unit="",
                hint="0 or 1; 0 when K and V share a row (head_dim 64)",
            )
        return limits.check_memory(
            scratch=scratch_bytes(problem, self, target), problem=problem, target=target
        )


def search_axes(problem: Problem, target: Target) -> dict[str, tuple[int, ...]]:
    """Values worth trying, in rising order; `check` says which combinations can exist."""
    kv = limits.block_sizes(problem, (128, 256, 512, 1024, 2048))
    most = max(16, layout.next_power_of_2(problem.max_num_tokens))
    q = tuple(n for n in (16, 32, 64, 128, 256, 512) if n <= most)
    return {
        "bq_sz": q,
        "bq_csz": tuple(n for n in q if n <= 256),
        "bkv_sz": kv,
        "bkv_csz": tuple(sorted({n for n in (*kv, 256, 512) if n <= max(kv)})),
        "num_buffers": (2, 3),
        # Where a column of ones is free it can still lose: v7x at 4 query tokens, by 9 %.
        "mxu_sums": tuple(range(_default_mxu_sums(problem, target) + 1)),
    }


def _default_mxu_sums(problem: Problem, target: Target) -> int:
    """1 where V leaves half the columns of an MXU free."""
    return int(target.mxu_size >= 2 * problem.padded_head_dim and not problem.fuses_kv)


def default_config(problem: Problem, target: Target) -> BlockwiseConfig | Infeasible:
    """A config that fits, by rule of thumb.

    At least 512 query rows a KV head in a compute block, so that a weight load of the MXU is
    reused, and 2048 over all KV heads, so that the chains of a pass fill the pipeline; four
    compute blocks in a query block, so that KV is fetched once for many queries.

    Returns:
      The first of a falling series that passes `check`, or the last one's `Infeasible`.
    """
    most_q = max(MIN_BQ_CSZ, layout.next_power_of_2(problem.max_num_tokens))
    rows_per_token = problem.q_words * layout.packing(problem.q_dtype)
    rows = max(512, 2048 // problem.num_kv_heads)
    bq_csz = min(most_q, 256, max(MIN_BQ_CSZ, layout.next_power_of_2(rows // rows_per_token)))
    bq = min(most_q, max(bq_csz, min(4 * bq_csz, 512)))
    bkv, usual = (limits.block_sizes(problem, (size,))[0] for size in (1024, 512))
    while True:
        config = BlockwiseConfig(
            bq_sz=bq,
            bq_csz=min(bq, bq_csz),
            bkv_sz=bkv,
            bkv_csz=limits.compute_size(bkv, 512),
            num_buffers=2,
            mxu_sums=_default_mxu_sums(problem, target),
        )
        bad = config.check(problem, target)
        if bad is None:
            return config
        if bkv > usual:
            bkv = usual
        elif bq > MIN_BQ_CSZ:
            bq //= 2
        elif smaller := limits.smaller_block(bkv, problem):
            bkv = smaller
        else:
            return bad
