"""Whether a config of the prefill and mixed families can exist. No jax."""

from rpa_kernels import limits
from rpa_kernels.blockwise.account import scratch_bytes
from rpa_kernels.blockwise.config import BlockwiseConfig
from rpa_kernels.infeasible import Infeasible
from rpa_kernels.problem import Problem
from rpa_kernels.target import Target

# A chain needs whole tiles of query rows, and an odd number of heads is split in two chains.
MIN_BQ_CSZ = 16


def check(
    problem: Problem,
    config: BlockwiseConfig,
    target: Target,
    *,
    vmem_share: float = limits.SCRATCH_VMEM_SHARE,
) -> Infeasible | None:
    """None when a config can exist for `problem` on `target`, else the limit it breaks.

    Args:
      problem: Static shapes and features.
      config: Block sizes.
      target: The chip.
      vmem_share: Share of VMEM that scratch may take.
    """
    bad = limits.check_sizes(config, problem, "bq_sz", "bq_csz")
    if bad:
        return bad
    if (
        config.bq_csz < MIN_BQ_CSZ
        or config.bq_sz % config.bq_csz
        or config.bq_csz & (config.bq_csz - 1)
    ):
        return Infeasible(
            limit="bq_sz % bq_csz",
            need=config.bq_sz,
            have=config.bq_csz,
            unit="tokens",
            hint=f"bq_csz must be a power of two from {MIN_BQ_CSZ} that divides bq_sz",
        )
    if bad := limits.check_switch(mxu_sums=config.mxu_sums):
        return bad
    return limits.check_memory(
        scratch=scratch_bytes(problem, config, target),
        problem=problem,
        target=target,
        vmem_share=vmem_share,
    )
