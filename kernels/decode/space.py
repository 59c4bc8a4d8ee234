"""Which configs of the decode family are tried, and which is the default. No jax."""

from rpa_kernels import kv_blocks, layout
from rpa_kernels.decode import heads
from rpa_kernels.decode.config import DecodeConfig
from rpa_kernels.decode.fits import check
from rpa_kernels.infeasible import Infeasible
from rpa_kernels.ints import cdiv
from rpa_kernels.problem import Problem
from rpa_kernels.target import Target

# Query rows from which blocks of latents are long where the MXU is fastest beside HBM: of fewer the
# copies are the limit.
MANY_LATENT_ROWS = 64
# The longest context from which they are long: with shorter ones more of a step is empty (v7x,
# bfloat16, fleet's workload of up to 8192, 64 heads: 11.2 us, 10.0 with blocks of 1024; simulated).
LONG_CONTEXT = 32768
# Query rows that a compute block of latents is for, with 1024 keys at most; with more it has less
# keys: what is computed for one item is one chain, whose code and scores grow with both.
LATENT_ROWS = 128
# Bytes of a KV block of latents: 1024 tokens of 512 + 64 elements in bfloat16, 2048 in float8.
LATENT_BLOCK_BYTES = 1280 << 10
# Tokens of a KV block, and bytes of all blocks of a step, where copies cost little beside their
# bytes, and where they do not.
USUAL_BLOCK, STEP_BYTES = 512, 2 << 20
LONG_BLOCK, LONG_STEP_BYTES = 2048, 4 << 20
SMALL_PAGE = 128  # tokens; of smaller ones a block of `USUAL_BLOCK` is more than four copies
# Elements of K and V of a block and of all blocks of a step in a window that is a few blocks, where
# copies cost little. The code grows with them.
WINDOW_BLOCK, WINDOW_STEP = 512 << 10, 4 << 20
LONG_ROWS = 16  # query rows that as many keys are attended to with at once

# Tokens of a block, blocks of a step, and keys that are attended to at once, at most.
Steps = tuple[int, int, int]


def search_axes(problem: Problem, target: Target) -> dict[str, tuple[int, ...]]:
    """Values worth trying, in rising order; `check` says which can be combined."""
    sizes = kv_blocks.block_sizes(problem, (128, 256, 512, 1024, 2048))
    if problem.is_latent:
        # What begins and ends an item is work for every head.
        sizes = kv_blocks.block_sizes(problem, (256, 512, 1024, 2048, 4096, 8192))
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
        "strided_copies": (0, 1) if _form_matters(problem, target) else (0,),
    }


def _form_matters(problem: Problem, target: Target) -> bool:
    """Whether pages would be copied by linear descriptors, and those are believed to be slower."""
    is_one_piece = problem.is_seq_along_lane or problem.kv_words % 2 == 1
    return target.has_faster_strided_copies and is_one_piece and not problem.is_latent


def default_config(problem: Problem, target: Target) -> DecodeConfig | Infeasible:
    """A config that fits, by rule of thumb: `_long_steps` or `_short_steps`, in four buffers.

    Four buffers, where they fit: the tail of a sequence takes as long to attend to as a whole
    block but is fetched sooner, and the more steps are under way the longer the copy engine has
    work beside tails. Queries of 16 sequences at a time are never behind the KV of their steps.

    Latents have longer blocks: what begins and ends an item is work for every head (v7x, 128 heads,
    float8, 16 contexts of 4096: blocks of 2048 in halves 40.3 us, of 512 54.1 us; v6e in bfloat16:
    of 1024 82.4 us, of 512 87.4 us; simulated). Twice as long again with all heads where the MXU is
    fastest beside HBM, four times with many heads and long contexts (v7x, float8, 4 x 65536: 128
    heads 99.2 us twice as long, 95.1 four times, 96.7 eight times; 64 heads 71.1 us, four times
    63.7; v6e is slower already twice as long, 85.8 for 84.3).

    Returns:
      The first of a falling series that passes `check`, or the last one's `Infeasible`.
    """
    buffers, bq, form_matters = 4, 16, _form_matters(problem, target)
    if problem.is_latent:
        block, seqs, keys = _latent_steps(problem, target)
        # Several queries of a sequence are more rows of what is moved.
        buffers, bq = 3, bq // heads.query_tokens(problem)
    elif target.has_result_buffers and _is_few_blocks(problem):
        block, seqs, keys = _window_steps(problem)
    elif form_matters and _has_small_pages(problem):
        # v7x, 4 query heads on 1 KV head of 128, fleet's workload, pages of 64: 38.0 us, of eight
        # blocks of 512 47.8; 8 on 1, azure-conv, pages of 64 27.7 and 29.1, of 16 41.4 and 42.7, of
        # 128 26.5 and 25.4 (simulated, libtpu 0.0.42.1). Heads of 64 are not timed.
        block, seqs, keys = kv_blocks.block_sizes(problem, (LONG_BLOCK,))[0], 4, LONG_BLOCK
    elif target.has_result_buffers:
        block, seqs, keys = _short_steps(problem, seqs=8 if form_matters else 4)
    else:
        block, seqs, keys = _long_steps(problem)
    while True:
        config = DecodeConfig(
            bkv_sz=block,
            bkv_csz=kv_blocks.compute_size(block, keys),
            seqs_per_step=seqs,
            num_buffers=buffers,
            bq_sz=bq,
            # Along lanes vector work is the limit in both forms, and a gap is more of it (v7x, 12
            # query heads on 1, float8, 32 x 65536, pages of 2048: 373 us for 329; simulated).
            strided_copies=int(form_matters and not problem.is_seq_along_lane),
        )
        bad = check(problem, config, target, vmem_share=kv_blocks.DEFAULT_VMEM_SHARE)
        if bad is None:
            return config
        if buffers > 3:
            buffers -= 1
        elif seqs > 1:
            seqs //= 2
        elif smaller := kv_blocks.smaller_block(block, problem):
            block = smaller
        elif buffers > 2:
            buffers -= 1
        elif problem.is_latent and bq > 1:
            bq //= 2
        else:
            return kv_blocks.at_least(bad)


def _short_steps(problem: Problem, seqs: int = 4) -> Steps:
    """Blocks of 512 tokens, about 2 MiB in a step: for chips that fetch faster than they attend.

    Where one block of 512 is more than that, two of 256: as many bytes and as much code in a step,
    and tails and windows leave less of a block empty. So it is in a window that is half a block,
    where blocks are large. Where heads are attended to in pairs, a step has half as many chains for
    its bytes, and twice as many cover the latency of its products.

    Where copies are strided because that is believed to be quicker, vector work is the limit, and
    `seqs` of eight, if they are not more bytes, cover their latency (v7x, 8 query heads on
    1 KV head, 32 x 8192: 60.5 us, with four blocks 73.0; trace batch 0 of azure-conv 28.6 for 32.4;
    32 x 512 9.3 for 8.7; simulated).
    """
    block = kv_blocks.block_sizes(problem, (USUAL_BLOCK,))[0]
    most = STEP_BYTES * (2 if heads.pairs_heads(problem) else 1)
    reach = problem.reach_tokens
    is_narrow = reach is not None and 2 * reach <= block
    if is_narrow and block * problem.kv_token_bytes >= STEP_BYTES // 2:
        block = kv_blocks.block_sizes(problem, (USUAL_BLOCK // 2,))[0]
    while seqs > 1 and seqs * block * problem.kv_token_bytes > most:
        seqs //= 2
    if block * problem.kv_token_bytes > STEP_BYTES:
        block, seqs = kv_blocks.block_sizes(problem, (USUAL_BLOCK // 2,))[0], 2
    return block, seqs, USUAL_BLOCK


def _has_small_pages(problem: Problem) -> bool:
    """Whether a short block is many copies of pages, of heads that fill their lanes."""
    return problem.page_size < SMALL_PAGE and problem.head_dim == problem.padded_head_dim


def _is_few_blocks(problem: Problem) -> bool:
    """Whether a window or chunk is a few blocks, whatever the context."""
    return problem.reach_tokens is not None and problem.reach_tokens <= 4 * USUAL_BLOCK


def _window_steps(problem: Problem) -> Steps:
    """Eight sequences, or as many as `WINDOW_STEP` allows: a sequence ends after a few blocks.

    Each end is the latency of a chain that other sequences cover (v7x, windows of 1024, 1024 and
    128, fleet's workload, against 2 MiB in a step: 8 query heads on 4 KV heads of 256 78.0 us for
    95.6, 16 on 8 of 128 86.0 for 103.5, 32 on 4 of 64 17.7 for 19.1; simulated, libtpu 0.0.42.1).
    Blocks of more than `WINDOW_BLOCK`, or of a quarter of it in a window that is half a block, have
    256 tokens: less of them is outside the window.
    """
    elements = problem.kv_token_bytes * layout.packing(problem.kv_dtype) // 4
    block = kv_blocks.block_sizes(problem, (USUAL_BLOCK,))[0]
    is_narrow = problem.reach_tokens is not None and 2 * problem.reach_tokens <= block
    if block * elements > WINDOW_BLOCK // (4 if is_narrow else 1):
        block = kv_blocks.block_sizes(problem, (USUAL_BLOCK // 2,))[0]
    seqs = 8
    while seqs > 1 and seqs * block * elements > WINDOW_STEP:
        seqs //= 2
    return block, seqs, USUAL_BLOCK


def _long_steps(problem: Problem) -> Steps:
    """Blocks of up to 2048 tokens, 4 MiB in a step: for chips where a copy has a price.

    On v6e a copy takes 89 ns before its first byte, in which 100 KB would come (fitted; guessed to
    be so on older chips), and a block is one copy for each run of pages that follow each other.
    Few heads are bound by that: blocks of 512 tokens of one KV head are copies of 256 KiB at most,
    and a third of their time is its price. Two sequences of 2048 tokens instead of four of 512 take
    15 % less with one KV head and 9 % with two (v6e, 80.9 and 95.6 us, 140.9 and 155.6 us on the
    fleet's workload with pages of 256; simulated, libtpu 0.0.42.1). Where pages do not follow each
    other there are as many copies either way.

    Not in a window, of which a longer block holds just more that is not seen. The fewer heads there
    are, the more keys of each are attended to at once, or the latency of products is in sight. Of
    pairs of heads a step has twice the bytes, as in `_short_steps`.
    """
    reach = problem.reach_tokens
    longest = LONG_BLOCK if reach is None else min(LONG_BLOCK, layout.next_power_of_2(reach))
    block = longest
    while block > USUAL_BLOCK and block * problem.kv_token_bytes > LONG_STEP_BYTES:
        block //= 2
    if longest <= USUAL_BLOCK or block * problem.kv_token_bytes > LONG_STEP_BYTES:
        return _short_steps(problem)
    block = kv_blocks.block_sizes(problem, (block,))[0]
    most = LONG_STEP_BYTES * (2 if heads.pairs_heads(problem) else 1)
    seqs = 2 if 2 * block * problem.kv_token_bytes <= most else 1
    # More rows of keys are more scores than registers hold.
    groups, rows = len(heads.head_groups(problem)), heads.group_rows(problem)
    return block, seqs, max(USUAL_BLOCK, min(LONG_BLOCK // groups, LONG_BLOCK * LONG_ROWS // rows))


def _latent_steps(problem: Problem, target: Target) -> Steps:
    """Two blocks of `LATENT_BLOCK_BYTES`, or one: see `default_config`."""
    rows, is_fast = heads.group_rows(problem), target.has_fast_fp8_mxu
    scale = 2 if is_fast and rows >= LATENT_ROWS else 1
    is_long = problem.max_context_tokens >= LONG_CONTEXT
    length = 4 if is_fast and is_long and rows >= MANY_LATENT_ROWS else scale
    tokens = LATENT_BLOCK_BYTES // problem.kv_token_bytes
    block, seqs = kv_blocks.block_sizes(problem, (length * tokens,))[0], 2
    keys = max(scale * USUAL_BLOCK, tokens // 2)
    # Several queries of a sequence are more rows of what is computed.
    keys = max(256, keys // cdiv(rows, LATENT_ROWS))
    largest = 2 * length * LATENT_BLOCK_BYTES
    if seqs * block * problem.kv_token_bytes > largest:
        seqs = 1
    if block * problem.kv_token_bytes > largest:
        block, seqs = kv_blocks.block_sizes(problem, (256,))[0], 2
    return block, seqs, keys
