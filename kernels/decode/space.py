"""The search space of the decode family: axes, default, check. No jax."""

from rpa_kernels import limits
from rpa_kernels.decode import heads
from rpa_kernels.decode.account import scratch_bytes
from rpa_kernels.decode.config import DecodeConfig
from rpa_kernels.infeasible import Infeasible
from rpa_kernels.ints import cdiv
from rpa_kernels.problem import Problem
from rpa_kernels.target import Target

# Query rows that a compute block of latents is for, with 1024 keys at most; with more it has less
# keys: what is computed for one item is one chain, whose code and scores grow with both.
LATENT_ROWS = 128
# Bytes of a KV block of latents: 1024 tokens of 512 + 64 elements in bfloat16, 2048 in float8.
LATENT_BLOCK_BYTES = 1280 << 10


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
    if bad:
        return bad
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


def search_axes(problem: Problem, target: Target) -> dict[str, tuple[int, ...]]:
    """Values worth trying, in rising order; `check` says which can be combined."""
    del target
    sizes = limits.block_sizes(problem, (128, 256, 512, 1024, 2048))
    if problem.is_latent:
        # What begins and ends an item is work for every head.
        sizes = limits.block_sizes(problem, (256, 512, 1024, 2048, 4096))
        queries = heads.query_tokens(problem)
        return {
            "bkv_sz": sizes,
            "bkv_csz": tuple(sorted({*sizes, *(n for n in (256, 512, 1024) if n <= max(sizes))})),
            "seqs_per_step": (1, 2, 4),
            "num_buffers": (2, 3, 4),
            "bq_sz": tuple(n // queries for n in ((8, 16, 32) if queries > 1 else (16, 32))),
        }
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
    and tails and windows leave less of a block empty. Where heads are attended to in pairs, a step
    has half as many chains for its bytes, and twice as many cover the latency of its products.

    Four buffers, where they fit: the tail of a sequence takes as long to attend to as a whole
    block but is fetched sooner, and the more steps are under way the longer the copy engine has
    work beside tails. Queries of 16 sequences at a time are never behind the KV of their steps.

    Latents have longer blocks: what begins and ends an item is work for every head (v7x, 128 heads,
    float8, 16 contexts of 4096: blocks of 2048 in halves 40.3 us, of 512 54.1 us; v6e in bfloat16:
    of 1024 82.4 us, of 512 87.4 us; simulated). Twice as long again with all heads where the MXU
    is fastest beside HBM (v7x: 34.5 and 33.3 us; but v6e 84.3 and 85.8).

    Returns:
      The first of a falling series that passes `check`, or the last one's `Infeasible`.
    """
    block, seqs, buffers, keys = limits.block_sizes(problem, (512,))[0], 4, 4, 512
    bq, scale = 16, 1
    if problem.is_latent and target.has_fast_fp8_mxu:
        scale = 2 if heads.group_rows(problem) >= LATENT_ROWS else 1
    if problem.is_latent:
        tokens = LATENT_BLOCK_BYTES // problem.kv_token_bytes
        block, seqs, buffers = limits.block_sizes(problem, (scale * tokens,))[0], 2, 3
        keys = max(scale * keys, tokens // 2)
        # Several queries of a sequence are more rows of what is computed, and of what is moved.
        more = cdiv(heads.group_rows(problem), LATENT_ROWS)
        keys, bq = max(256, keys // more), bq // heads.query_tokens(problem)
    largest = 2 * scale * LATENT_BLOCK_BYTES if problem.is_latent else 2 << 20
    most = 2 * largest if heads.pairs_heads(problem) else largest
    while seqs > 1 and seqs * block * problem.kv_token_bytes > most:
        seqs //= 2
    if block * problem.kv_token_bytes > largest:
        block, seqs = limits.block_sizes(problem, (256,))[0], 2
    while True:
        config = DecodeConfig(
            bkv_sz=block,
            bkv_csz=limits.compute_size(block, keys),
            seqs_per_step=seqs,
            num_buffers=buffers,
            bq_sz=bq,
        )
        bad = check(problem, config, target, vmem_share=limits.DEFAULT_VMEM_SHARE)
        if bad is None:
            return config
        if buffers > 3:
            buffers -= 1
        elif seqs > 1:
            seqs //= 2
        elif smaller := limits.smaller_block(block, problem):
            block = smaller
        elif buffers > 2:
            buffers -= 1
        elif problem.is_latent and bq > 1:
            bq //= 2
        else:
            return limits.at_least(bad)
