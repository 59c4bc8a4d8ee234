"""The search space of the decode family: axes, default, check. No jax."""

from dataclasses import replace

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
    bad = bad or limits.check_switch(strided_copies=config.strided_copies)
    if bad:
        return bad
    if config.strided_copies and problem.is_latent:
        return Infeasible(
            limit="strided_copies",
            need=config.strided_copies,
            have=0,
            unit="",
            hint="rows of latents have nothing that could be padded; use 0",
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


def search_axes(problem: Problem, target: Target) -> dict[str, tuple[int, ...]]:
    """Values worth trying, in rising order; `check` says which can be combined."""
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
            "strided_copies": (0,),
        }
    return {
        "bkv_sz": sizes,
        "bkv_csz": tuple(sorted({*sizes, *(n for n in (128, 256, 512) if n <= max(sizes))})),
        "seqs_per_step": (1, 2, 4, 8),
        "num_buffers": (2, 3, 4),
        "bq_sz": (16, 32),
        "strided_copies": tuple(range(_default_strided_copies(problem, target) + 1)),
    }


def _default_strided_copies(problem: Problem, target: Target) -> int:
    """1 where pages would be copied by linear descriptors, and those are believed to be slower."""
    is_one_piece = problem.is_seq_along_lane or problem.kv_words % 2 == 1
    return int(target.has_faster_strided_copies and is_one_piece and not problem.is_latent)


def default_config(problem: Problem, target: Target) -> DecodeConfig | Infeasible:
    """A config that fits, by rule of thumb: blocks of 512 tokens, about 2 MiB in a step.

    Where one block of 512 is more than that, two of 256: as many bytes and as much code in a step,
    and tails and windows leave less of a block empty. Where heads are attended to in pairs, a step
    has half as many chains for its bytes, and twice as many cover the latency of its products.

    Where copies are strided because that is believed to be quicker, vector work is the limit, and
    eight blocks in a step, if they are not more bytes, cover the latency of its products (v7x, 8
    query heads on 1 KV head, 32 x 8192: 60.5 us, with four blocks 73.0; trace batch 0 of azure-conv
    28.6 for 32.4; 32 x 512 9.3 for 8.7; simulated).

    Four buffers, where they fit: the tail of a sequence takes as long to attend to as a whole
    block but is fetched sooner, and the more steps are under way the longer the copy engine has
    work beside tails. Queries of 16 sequences at a time are never behind the KV of their steps.

    Latents have longer blocks: what begins and ends an item is work for every head (v7x, 128 heads,
    float8, 16 contexts of 4096: blocks of 2048 in halves 40.3 us, of 512 54.1 us; v6e in bfloat16:
    of 1024 82.4 us, of 512 87.4 us; simulated).

    Returns:
      The first of a falling series that passes `check`, or the last one's `Infeasible`.
    """
    first = _first_config(problem, target)
    block, seqs, buffers, bq = first.bkv_sz, first.seqs_per_step, first.num_buffers, first.bq_sz
    while True:
        config = replace(
            first,
            bkv_sz=block,
            bkv_csz=limits.compute_size(block, first.bkv_csz),
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


def _first_config(problem: Problem, target: Target) -> DecodeConfig:
    """The largest of the default's series; `bkv_csz` is the most keys of a compute block."""
    strided_copies = _default_strided_copies(problem, target)
    block, keys = limits.block_sizes(problem, (512,))[0], 512
    seqs, buffers, bq = (8 if strided_copies else 4), 4, 16
    if problem.is_latent:
        tokens = LATENT_BLOCK_BYTES // problem.kv_token_bytes
        block, seqs, buffers = limits.block_sizes(problem, (tokens,))[0], 2, 3
        keys = max(keys, tokens // 2)
        # Several queries of a sequence are more rows of what is computed, and of what is moved.
        more = cdiv(heads.group_rows(problem), LATENT_ROWS)
        keys, bq = max(256, keys // more), bq // heads.query_tokens(problem)
    largest = 2 * LATENT_BLOCK_BYTES if problem.is_latent else 2 << 20
    most = 2 * largest if heads.pairs_heads(problem) else largest
    while seqs > 1 and seqs * block * problem.kv_token_bytes > most:
        seqs //= 2
    if block * problem.kv_token_bytes > largest:
        block, seqs = limits.block_sizes(problem, (256,))[0], 2
    return DecodeConfig(
        bkv_sz=block,
        bkv_csz=keys,
        seqs_per_step=seqs,
        num_buffers=buffers,
        bq_sz=bq,
        strided_copies=strided_copies,
    )
