"""Which configs of the prefill and mixed families are tried, and the default. No jax."""

from dataclasses import replace

from rpa_kernels import kv_blocks, layout
from rpa_kernels.blockwise.chains import CHAIN_ROWS, PASS_ROWS
from rpa_kernels.blockwise.config import BlockwiseConfig
from rpa_kernels.blockwise.fits import MIN_BQ_CSZ, check
from rpa_kernels.infeasible import Infeasible
from rpa_kernels.ints import cdiv
from rpa_kernels.limits import SCRATCH_VMEM_SHARE
from rpa_kernels.problem import Problem
from rpa_kernels.target import Target

# Tokens of a chunk that is long: so many, for each sequence, that half as many passes pay for the
# rows that a compute block of twice the tokens wastes at the diagonal and behind the last query.
LONG_CHUNK = 512
# Tokens of a step from which on most of its query rows are of chunks, whatever its sequences.
MANY_TOKENS = 2048
# Tokens of a KV block that fill and drain the pipeline seldom enough.
USUAL_KV = 1024
# KV heads of a device, at most, whose passes over so many are too few.
FEW_HEADS = 2


def search_axes(problem: Problem, target: Target) -> dict[str, tuple[int, ...]]:
    """Values worth trying, in rising order; `check` says which combinations can exist."""
    kv = kv_blocks.block_sizes(problem, (128, 256, 512, 1024, 2048))
    windowed = _default_kv(problem, _default_keys(problem, target))
    most = max(16, layout.next_power_of_2(problem.max_num_tokens))
    q = tuple(n for n in (16, 32, 64, 128, 256, 512) if n <= most)
    return {
        "bq_sz": q,
        "bq_csz": tuple(n for n in q if n <= 256),
        "bkv_sz": tuple(sorted({*kv, windowed})),
        "bkv_csz": tuple(sorted({n for n in (*kv, 256, 512) if n <= max(kv)})),
        "num_buffers": (2, 3),
        # Where a column of ones is free it can still lose: v7x at 4 query tokens, by 9 %.
        "mxu_sums": tuple(range(_default_mxu_sums(problem, target) + 1)),
    }


def _default_mxu_sums(problem: Problem, target: Target) -> int:
    """1 where ones cost no product: V leaves half the columns of an MXU free, or K's are."""
    return int(target.mxu_size >= 2 * problem.padded_head_dim or problem.fuses_kv)


def _default_keys(problem: Problem, target: Target) -> int:
    """Keys of a compute block: two widths of an MXU, or less in a window.

    Fewer leave the latency of a product in sight; more spill scores, and waste more at the
    diagonal and at the edge of a window or chunk, which is where all of a narrow one is. Few heads
    make few products, whose latency costs more than the edge of two compute blocks (window 1024,
    2/1 heads of 256, 8192 tokens: 78.9 us for 95.5 on v6e, 75.1 for 82.9 on v7x; 4/2 of 128 on v6e
    105.1 for 115.1; simulated, libtpu 0.0.42.1).
    """
    keys = 2 * target.mxu_size
    blocks = 2 if problem.num_kv_heads <= FEW_HEADS else 4
    is_narrow = problem.reach_tokens is not None and problem.reach_tokens < blocks * keys
    return max(keys // 2, 256) if is_narrow else keys


def _is_long(problem: Problem) -> bool:
    """Whether all sequences can have long chunks at once."""
    return problem.max_num_tokens >= LONG_CHUNK * problem.max_num_seqs


def _has_short_passes(problem: Problem, target: Target) -> bool:
    """Whether a compute block fills half a pass: heads are wide, or chunks may be short.

    Of 8192 tokens of the fleet's workload a whole pass takes less time with 8 KV heads (32 query
    heads of 128 on v6e 871.7 us for 927.6, 64 of 64 1711 for 1836, 64 of 128 on v7x 1673 for 1779;
    simulated, libtpu 0.0.42.1). With MXUs of 128 nothing but half of one was timed.
    """
    if problem.padded_head_dim > target.mxu_size:  # chains have twice the code
        return True
    has_chunks = problem.max_num_tokens >= MANY_TOKENS and target.mxu_size > layout.LANES
    return not (_is_long(problem) or has_chunks)


def _default_kv(problem: Problem, keys: int) -> int:
    """Tokens of a KV block: so many that a window reaches not just a little into one more.

    Few heads make few passes of a KV block, between which the pipeline drains.
    """
    if problem.reach_tokens is None:
        drains_often = problem.num_kv_heads <= FEW_HEADS and _is_long(problem)
        return kv_blocks.block_sizes(problem, (2 * USUAL_KV if drains_often else USUAL_KV,))[0]
    # A window begins anywhere in a page.
    span = problem.reach_tokens + (problem.page_size if problem.sliding_window else 0)
    num_blocks = max(1, round(span / USUAL_KV))
    size = layout.align(cdiv(span, num_blocks), keys)
    return kv_blocks.block_sizes(problem, (max(size, USUAL_KV),))[0]


def _with_third_buffer(
    config: BlockwiseConfig, problem: Problem, target: Target, share: float
) -> BlockwiseConfig:
    """One more KV block in flight where it fits: few queries take less time than a copy's latency.

    Not in a window or chunk, which is a few KV blocks, and the first would wait behind the others.
    """
    third = replace(config, num_buffers=3)
    fits = problem.reach_tokens is None and check(problem, third, target, vmem_share=share) is None
    return third if fits else config


def default_config(problem: Problem, target: Target) -> BlockwiseConfig | Infeasible:
    """A config that fits, by rule of thumb.

    The query rows of a compute block fill one pass of the pipeline over all KV heads, or half a
    pass where chunks may be short or heads are wide; see `_default_keys` and `_default_kv` for its
    keys. Then query blocks as long as fit, so that KV is fetched and unpacked once for many
    queries; but a chunk of 512 has a block for each core.

    Returns:
      The first of a falling series that passes `check`, or the last one's `Infeasible`.
    """
    most_q = max(MIN_BQ_CSZ, layout.next_power_of_2(problem.max_num_tokens))
    rows_per_token = problem.q_words * layout.packing(problem.q_dtype)
    pass_rows = PASS_ROWS // 2 if _has_short_passes(problem, target) else PASS_ROWS
    rows = max(CHAIN_ROWS, pass_rows // problem.num_kv_heads)
    bq_csz = min(most_q, 256, max(MIN_BQ_CSZ, layout.next_power_of_2(rows // rows_per_token)))
    bq = min(most_q, max(bq_csz, 512 // target.num_cores))
    keys = _default_keys(problem, target)
    usual = kv_blocks.block_sizes(problem, (USUAL_KV,))[0]
    bkv, kv_per_q, share = _default_kv(problem, keys), 2, kv_blocks.DEFAULT_VMEM_SHARE
    if layout.LANES < problem.padded_head_dim <= target.mxu_size and _is_long(problem):
        # Unpacking wide heads for few queries is a tenth of the time; longer query blocks just fit.
        kv_per_q, share = 1, SCRATCH_VMEM_SHARE
    while True:
        config = BlockwiseConfig(
            bq_sz=bq,
            bq_csz=bq_csz,
            bkv_sz=bkv,
            bkv_csz=kv_blocks.compute_size(bkv, keys),
            num_buffers=2,
            mxu_sums=_default_mxu_sums(problem, target),
        )
        bad = check(problem, config, target, vmem_share=share)
        if bad is None:
            return _with_third_buffer(config, problem, target, share)
        smaller = kv_blocks.smaller_block(bkv, problem)
        if bkv > usual:
            bkv = usual
        elif smaller and bkv > max(kv_per_q * bq, keys):
            bkv = smaller
        elif bq > bq_csz:
            bq //= 2
        elif bq_csz > MIN_BQ_CSZ:
            bq_csz //= 2  # the buffers of a pass shrink, the query block does not
        elif smaller:
            bkv = smaller
        else:
            return kv_blocks.at_least(bad)
