"""Bytes, FLOPs and steps of a blockwise kernel, as plain integers. No jax."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from rpa_kernels import layout, limits, operands, runs
from rpa_kernels.batch import Batch
from rpa_kernels.blockwise.chains import all_chains, query_rows
from rpa_kernels.blockwise.config import BlockwiseConfig
from rpa_kernels.blockwise.partition import boundaries
from rpa_kernels.cores import ONLY_CORE, Core
from rpa_kernels.family import Traffic
from rpa_kernels.ints import cdiv
from rpa_kernels.latent import in_tiles, tile_tokens
from rpa_kernels.problem import Problem
from rpa_kernels.slots import slot_of
from rpa_kernels.target import Target
from rpa_kernels.window import first_seen, window_start

Shape = tuple[int, ...]


def sums_lanes(problem: Problem, config: BlockwiseConfig) -> int:
    """Lanes that `mxu_sums` adds to V; none where K|V share a row, as ones take K's place there."""
    return 0 if problem.fuses_kv else config.mxu_sums * layout.LANES


def has_values(problem: Problem, config: BlockwiseConfig) -> bool:
    """Whether V has a buffer of its own; else p is multiplied with rows of K as they are."""
    return not (problem.fuses_kv or problem.is_latent) or bool(config.mxu_sums)


def buffers(
    problem: Problem, config: BlockwiseConfig, target: Target
) -> dict[str, tuple[Shape, str]]:
    """Every VMEM buffer of the kernel: name to (shape, dtype); `scratch.py` allocates these."""
    q_token, lanes = problem.q_shape[1:], problem.padded_head_dim
    state = (problem.num_kv_heads, query_rows(problem, config.bq_sz))
    heads = problem.num_kv_heads
    paths = all_chains("mixed", problem, config, target)
    held = max(c.rows * c.num_slots for c in paths)
    score_rows = max(c.rows * c.num_slots * c.keys // config.bkv_csz for c in paths)
    mask_rows = max(c.rows * c.num_masks * c.keys // config.bkv_csz for c in paths)
    wide, unpacked = operands.matmul_dtype(problem), operands.kv_dtype(problem, target)
    v_lanes = lanes + sums_lanes(problem, config)
    named = {
        **_kv_buffers(problem, config),
        "q": ((2, config.bq_sz, *q_token), problem.q_dtype),
        "out": ((2, config.bq_sz, *q_token), problem.q_dtype),
        "k": ((heads, config.bkv_sz, problem.k_lanes), unpacked),
        "scaled_q": ((*state, problem.k_lanes), operands.query_dtype(problem, target)),
        "m": ((*state, layout.LANES), "float32"),
        "acc": ((*state, v_lanes), "float32"),
        "s": ((score_rows, config.bkv_csz), "float32"),
        "p": ((score_rows, config.bkv_csz), wide),
        "alpha": ((held, layout.LANES), "float32"),
    }
    if has_values(problem, config):
        named["v"] = ((heads, config.bkv_sz, v_lanes), unpacked)
    if not config.mxu_sums:
        named["row_sum"] = ((*state, layout.LANES), "float32")
    if target.has_result_buffers:
        named["lane_max"] = ((held, layout.LANES), "float32")
    if mask_rows:
        named["mask_cap"] = ((mask_rows, config.bkv_csz), "float32")
    if problem.is_latent:
        named["q_rope"] = ((2, config.bq_sz, *problem.q_rope_shape[1:]), problem.q_dtype)
    if problem.has_sinks:
        named["sinks"] = (problem.sinks_shape, "float32")
    if problem.return_lse:
        named["lse"] = ((2, config.bq_sz, *problem.lse_shape[1:]), "float32")
    return named


def _kv_buffers(problem: Problem, config: BlockwiseConfig) -> dict[str, tuple[Shape, str]]:
    """Buffers of KV blocks; see `buffers`."""
    if problem.is_latent:
        size, *row = problem.kv_cache_shape[2:]
        rows = config.bkv_sz // size
        # The new tokens of a block may begin anywhere in a row.
        shapes = {"kv": rows, "kv_new": rows + 1}
        return {
            name: ((config.num_buffers, count, size, *row), problem.kv_dtype)
            for name, count in shapes.items()
        }
    if problem.is_seq_along_lane:
        width = min(problem.page_size, config.bkv_sz)
        pages = (config.num_buffers, config.bkv_sz // width, *problem.lane_page_shape(width))
        # The new tokens of a block may begin anywhere in a tile.
        tiles = config.bkv_sz // layout.LANES + 1
        new = (config.num_buffers, tiles, *problem.lane_page_shape(layout.LANES))
        return {"kv": (pages, problem.kv_dtype), "kv_new": (new, problem.kv_dtype)}
    _, words, pack, lanes = problem.kv_new_shape
    kv_block = (config.num_buffers, config.bkv_sz, layout.odd(words), pack, lanes)
    return {"kv": (kv_block, problem.kv_dtype)}


def scratch_bytes(problem: Problem, config: BlockwiseConfig, target: Target) -> int:
    """VMEM scratch in bytes after tiling. Does not count what the compiler adds."""
    return sum(layout.tiled_bytes(*buffer) for buffer in buffers(problem, config, target).values())


def smem_bytes(problem: Problem, config: BlockwiseConfig) -> int:
    """SMEM in bytes: the scalar-prefetch arrays."""
    del config
    return limits.smem_bytes(problem)


@dataclass(frozen=True, kw_only=True, slots=True)
class QBlock:
    """One query block of one sequence; positions are tokens from the start of its context."""

    seq: int
    first: int  # position of its first query
    end: int  # position after its last query
    kv_first: int  # first position fetched
    kv_end: int  # position after the last key fetched
    cached_end: int  # position after the last key that is in the cache


def blocks(
    family: str, problem: Problem, config: BlockwiseConfig, batch: Batch, core: Core = ONLY_CORE
) -> Iterator[QBlock]:
    """Query blocks of a core in the order it walks them."""
    everything = _all_blocks(family, problem, config, batch)
    if core.count == 1:
        return everything
    at = boundaries(family, problem, config, batch.arrays(problem), core.count)
    return itertools.islice(everything, int(at[core.index]), int(at[core.index + 1]))


def _all_blocks(
    family: str, problem: Problem, config: BlockwiseConfig, batch: Batch
) -> Iterator[QBlock]:
    """Query blocks of all sequences."""
    for i in batch.family_seqs(family):
        q_len, kv_len = batch.q_lens[i], batch.kv_lens[i]
        for start in range(0, q_len, config.bq_sz):
            first = kv_len - q_len + start
            end = kv_len - q_len + min(start + config.bq_sz, q_len)
            yield QBlock(
                seq=i,
                first=first,
                end=end,
                kv_first=window_start(first, problem),
                kv_end=end if problem.causal else kv_len,
                cached_end=kv_len - q_len if problem.update_kv_cache else kv_len,
            )


def num_steps(
    family: str, problem: Problem, config: BlockwiseConfig, batch: Batch, core: Core = ONLY_CORE
) -> int:
    """KV blocks over all query blocks."""
    return sum(
        max(cdiv(b.kv_end - b.kv_first, config.bkv_sz), 1)
        for b in blocks(family, problem, config, batch, core)
    )


def traffic(
    family: str, problem: Problem, config: BlockwiseConfig, batch: Batch, core: Core = ONLY_CORE
) -> Traffic:
    """What the DMAs move for one batch: queries, new KV, cached KV, output and cache update."""
    q_bytes, kv_bytes = problem.q_token_bytes, problem.kv_token_bytes
    table = runs.SeqRuns.of(batch.arrays(problem), problem)
    tiles = Traffic(read_bytes=0, write_bytes=0, num_copies=0)
    read = write = copies = 0
    for b in blocks(family, problem, config, batch, core):
        read += (b.end - b.first) * q_bytes
        write += (b.end - b.first) * (problem.out_token_bytes + problem.lse_token_bytes)
        if in_tiles(problem):
            copies += 2 + problem.is_latent
            tiles += _tile_traffic(problem, config, batch, b, table)
            continue
        start = np.arange(b.kv_first, b.kv_end, config.bkv_sz)
        end = np.minimum(start + config.bkv_sz, b.kv_end)
        read += (b.kv_end - b.kv_first) * kv_bytes
        copies += 2 + problem.return_lse + int(np.sum(end > b.cached_end))
        cached_end = np.minimum(end, b.cached_end)
        if config.bkv_sz > problem.page_size:
            copies += table.count_copies(b.seq, start, cached_end)
        else:
            copies += int(np.sum(cached_end > start))
        if problem.update_kv_cache:
            # Each token is written from the KV block that its query block sees it in.
            start, end = np.maximum(start, b.first), np.minimum(end, b.end)
            write += int(np.sum(np.maximum(end - start, 0))) * kv_bytes
            copies += table.count_copies(b.seq, start, end)
    if copies and problem.has_sinks:
        read += problem.sinks_bytes
        copies += 1
    return tiles + Traffic(read_bytes=read, write_bytes=write, num_copies=copies)


def _tile_traffic(
    problem: Problem, config: BlockwiseConfig, batch: Batch, b: QBlock, table: runs.SeqRuns
) -> Traffic:
    """KV that a query block moves where it is written in tiles; see `tile_blocks.py`."""
    size, page_size = tile_tokens(problem), problem.page_size
    tile_bytes = size * problem.kv_token_bytes
    is_last = b.end == batch.kv_lens[b.seq]
    start = np.arange(b.kv_first, b.kv_end, config.bkv_sz)
    end = np.minimum(start + config.bkv_sz, b.kv_end)
    fetched = end if is_last else np.minimum(end, b.cached_end)
    width = size if problem.is_latent else min(page_size, config.bkv_sz)
    read = int(np.sum(cdiv(np.maximum(fetched - start, 0), width))) * width // size
    if config.bkv_sz > page_size:
        copies = table.count_copies(b.seq, start, fetched)
    else:
        copies = int(np.sum(fetched > start))
    if not problem.update_kv_cache:
        return Traffic(read_bytes=read * tile_bytes, write_bytes=0, num_copies=copies)
    new = np.maximum(start, b.cached_end)
    row = sum(batch.q_lens[: b.seq]) + new - b.cached_end
    tiles = np.where(end > new, cdiv(row % size + end - new, size), 0)
    copies += int(np.sum(end > new))
    last = end if is_last else np.minimum(end, window_start(b.end, problem))
    written = np.maximum(cdiv(last, size) - new // size, 0)
    return Traffic(
        read_bytes=(read + int(np.sum(tiles))) * tile_bytes,
        write_bytes=int(np.sum(written)) * tile_bytes,
        num_copies=copies + int(np.sum(written)),
    )


def mxu_flops(
    family: str,
    problem: Problem,
    config: BlockwiseConfig,
    batch: Batch,
    target: Target,
    core: Core = ONLY_CORE,
) -> int:
    """FLOPs the MXU executes, padding and masked halves of blocks included."""
    paths = all_chains(slot_of(family), problem, config, target)
    tokens_times_keys = 0
    for b in blocks(family, problem, config, batch, core):
        # A block of few queries computes one granule of them; see `walk.on_path`.
        fitting = [path for path in paths if b.end - b.first <= path.tokens]
        path = fitting[-1] if fitting else paths[0]
        tokens, csz = path.tokens, path.edge_keys
        for first in range(b.first, b.end, tokens):
            tiles = 0
            seen = min(first + tokens, b.kv_end) if problem.causal else b.kv_end
            oldest = first_seen(first, problem)
            for start in range(b.kv_first, seen, config.bkv_sz):
                end = min(start + config.bkv_sz, seen)
                tiles += cdiv(end - start, csz) - max(oldest - start, 0) // csz * (oldest < end)
                tiles -= cdiv(end - start, csz) * (oldest >= end)
            tokens_times_keys += tokens * tiles * csz
    rows = problem.num_kv_heads * query_rows(problem, 1)
    lanes = operands.score_lanes(problem, target) + problem.padded_head_dim
    lanes += sums_lanes(problem, config)
    return tokens_times_keys * 2 * rows * lanes


def kernel_name(family: str, problem: Problem, config: BlockwiseConfig) -> str:
    """Name of the Pallas call in dumps and profiles."""
    kind = "mla" if problem.is_latent else "rpa"
    return (
        f"{kind}_{slot_of(family)}-p{problem.page_size}-bq{config.bq_sz}_{config.bq_csz}"
        f"-bkv{config.bkv_sz}_{config.bkv_csz}-n{config.num_buffers}-m{config.mxu_sums}"
    )
