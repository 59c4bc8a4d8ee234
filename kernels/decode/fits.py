"""Whether a config of the decode family can exist. No jax."""

from rpa_kernels import limits
from rpa_kernels.decode.account import scratch_bytes
from rpa_kernels.decode.config import DecodeConfig
from rpa_kernels.infeasible import Infeasible
from rpa_kernels.problem import Problem
from rpa_kernels.target import Target


def check(
    problem: Problem,
    config: DecodeConfig,
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
    bad = limits.check_sizes(config, problem, "seqs_per_step", "bq_sz")
    bad = bad or limits.check_switch(strided_copies=config.strided_copies)
    if bad:
        return bad
    if config.strided_copies and problem.is_latent:
        return Infeasible(
            limit="strided_copies",
            need=config.strided_copies,
            have=0,
            unit="",
            hint="latents are copied in one form only; use 0",
        )
    if config.bq_sz < config.seqs_per_step:
        return Infeasible(
            limit="bq_sz >= seqs_per_step",
            need=config.bq_sz,
            have=config.seqs_per_step,
            unit="sequences",
            hint="a step may touch two blocks of queries, not three",
        )
    return limits.check_memory(
        scratch=scratch_bytes(problem, config, target),
        problem=problem,
        target=target,
        vmem_share=vmem_share,
    )
