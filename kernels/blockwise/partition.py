"""Which query blocks each core serves. No jax."""

from typing import Any

import numpy as np

from rpa_kernels import cores
from rpa_kernels.batch import BatchArrays
from rpa_kernels.blockwise.config import BlockwiseConfig
from rpa_kernels.ints import cdiv
from rpa_kernels.latent import in_tiles
from rpa_kernels.problem import Problem
from rpa_kernels.slots import slot_of
from rpa_kernels.window import window_start

# Entries of `distribution` between which a family's sequences lie.
SEQS = {"prefill": (0, 1), "mixed": (1, 2)}


def partition(
    family: str,
    problem: Problem,
    config: BlockwiseConfig,
    arrays: BatchArrays,
    num_cores: int,
    xp: Any = np,
) -> Any:
    """(sequence, query block in it) that each core starts at, and the end: int32[2 * cores + 2]."""
    ends = _block_ends(family, config, arrays, xp)
    at = _boundaries(problem, config, arrays, ends, num_cores, xp)
    seq, q_block = _seq_and_block(at, ends, xp)
    is_end = at >= ends[-1]
    seq = xp.where(is_end, arrays.distribution[SEQS[slot_of(family)][1]], seq)
    return xp.stack([seq, xp.where(is_end, 0, q_block)], axis=1).reshape(-1).astype(xp.int32)


def boundaries(
    family: str,
    problem: Problem,
    config: BlockwiseConfig,
    arrays: BatchArrays,
    num_cores: int,
    xp: Any = np,
) -> Any:
    """The same as numbers of query blocks over all sequences: int32[num_cores + 1]."""
    ends = _block_ends(family, config, arrays, xp)
    return _boundaries(problem, config, arrays, ends, num_cores, xp)


def _boundaries(
    problem: Problem,
    config: BlockwiseConfig,
    arrays: BatchArrays,
    ends: Any,
    num_cores: int,
    xp: Any,
) -> Any:
    """`boundaries`, given the `_block_ends`.

    Balances pairs of a query and a KV compute block. A KV compute block by itself, fetched and
    unpacked once for the query block, counts as one pair more; so does a query compute block,
    with its diagonal, which is masked, and its output (v5p, prefill 2048: 162.2 to 146.7 us).
    """
    most = problem.max_num_tokens // config.bq_sz + problem.max_num_seqs
    block = xp.arange(most)
    seq, q_block = _seq_and_block(block, ends, xp)
    q_len = arrays.cu_q_lens[seq + 1] - arrays.cu_q_lens[seq]
    kv_len, offset = arrays.kv_lens[seq], q_block * config.bq_sz
    num_q = xp.minimum(q_len - offset, config.bq_sz)
    first = kv_len - q_len + offset
    kv_end = first + num_q if problem.causal else kv_len
    num_kv = kv_end - window_start(first, problem, maximum=xp.maximum)
    q_tiles, kv_tiles = cdiv(num_q, config.bq_csz), cdiv(num_kv, config.bkv_csz)
    costs = q_tiles * kv_tiles + kv_tiles + q_tiles
    at = cores.balance(xp.where(block < ends[-1], costs, 0), num_cores, xp)
    if not in_tiles(problem):
        return at
    # Whole sequences: query blocks share tiles of the cache; see `tile_blocks.py`.
    _, q_block = _seq_and_block(at, ends, xp)
    return xp.where(at < ends[-1], at - q_block, at)


def _block_ends(family: str, config: BlockwiseConfig, arrays: BatchArrays, xp: Any) -> Any:
    """Query blocks up to and with each sequence; sequences of other families have none."""
    first, end = (arrays.distribution[i] for i in SEQS[slot_of(family)])
    seq = xp.arange(len(arrays.kv_lens))
    q_lens: Any = arrays.cu_q_lens[1:] - arrays.cu_q_lens[:-1]
    is_own = (seq >= first) & (seq < end)
    return xp.cumsum(xp.where(is_own, cdiv(q_lens, config.bq_sz), 0))


def _seq_and_block(block: Any, ends: Any, xp: Any) -> tuple[Any, Any]:
    """Sequence, and query block in it, of a number of a query block."""
    seq = xp.minimum(xp.sum(ends[None, :] <= block[:, None], axis=1), len(ends) - 1)
    starts = xp.where(seq > 0, ends[seq - 1], 0)
    return seq, block - starts
