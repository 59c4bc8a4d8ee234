"""Bytes, FLOPs and steps of the decode kernel, as plain integers. No jax."""

import itertools
from typing import NamedTuple

import numpy as np

from rpa_kernels import layout, limits, operands, runs, useful
from rpa_kernels.batch import Batch
from rpa_kernels.cores import ONLY_CORE, Core
from rpa_kernels.decode import heads
from rpa_kernels.decode.config import DecodeConfig
from rpa_kernels.decode.partition import partition
from rpa_kernels.family import Traffic
from rpa_kernels.ints import cdiv
from rpa_kernels.latent import in_tiles, tile_tokens
from rpa_kernels.problem import Problem
from rpa_kernels.target import Target
from rpa_kernels.window import window_start

Shape = tuple[int, ...]


class Span(NamedTuple):
    """Positions of one sequence.

    Attributes:
      start: First one fetched or attended to.
      query: That of the first new token.
      end: After the last.
    """

    start: int
    query: int
    end: int


def buffers(problem: Problem, config: DecodeConfig, target: Target) -> dict[str, tuple[Shape, str]]:
    """Every VMEM buffer of the kernel: name to (shape, dtype); `scratch.py` allocates these."""
    q_token, lanes = problem.q_shape[1:], problem.padded_head_dim
    groups, rows = len(heads.head_groups(problem)), heads.group_rows(problem)
    items = config.seqs_per_step
    bq = (config.bq_sz + 1) * heads.query_tokens(problem)
    named = {
        **_kv_buffers(problem, config),
        "q": ((2, bq, *q_token), problem.q_dtype),
        "out": ((2, bq, *q_token), problem.q_dtype),
        "scaled_q": ((items, groups, rows, problem.k_lanes), operands.query_dtype(problem, target)),
        "item_m": ((items, groups, rows, layout.LANES), "float32"),
        "item_row_sum": ((items, groups, rows, layout.LANES), "float32"),
        "item_acc": ((items, groups, rows, lanes), "float32"),
        "m": ((groups, rows, layout.LANES), "float32"),
        "row_sum": ((groups, rows, layout.LANES), "float32"),
        "acc": ((groups, rows, lanes), "float32"),
    }
    if problem.has_sinks:
        named["sinks"] = (problem.sinks_shape, "float32")
    if problem.is_latent:
        named["q_rope"] = ((2, bq, *problem.q_rope_shape[1:]), problem.q_dtype)
    if problem.return_lse:
        named["lse"] = ((2, bq, *problem.lse_shape[1:]), "float32")
    return named


def _kv_buffers(problem: Problem, config: DecodeConfig) -> dict[str, tuple[Shape, str]]:
    """Buffers of KV blocks and of new tokens; see `buffers`."""
    items, dtype = config.seqs_per_step, problem.kv_dtype
    if problem.is_latent:
        row = problem.kv_cache_shape[2:]
        # One register of lanes more than a row: copies into the buffer are strided ones, which
        # reach 93 % of HBM's bandwidth on v7x and others 55 % (public times of page copies).
        padded = (row[0], row[1] + layout.LANES)
        return {
            "kv": ((config.num_buffers, items * config.bkv_sz // row[0], *padded), dtype),
            "kv_new": ((2, new_tiles(problem, config), *row), dtype),
            "kv_out": ((config.num_buffers, items * item_tiles(problem), *row), dtype),
        }
    if problem.is_seq_along_lane:
        width = min(problem.page_size, config.bkv_sz)
        pages = items * (config.bkv_sz // width)
        tile = problem.lane_page_shape(layout.LANES)
        parts, words, pack, _ = tile
        gap = config.strided_copies * layout.SUBLANES  # words of a head stay whole registers
        return {
            "kv": ((config.num_buffers, pages, parts, words + gap, pack, width), dtype),
            "kv_new": ((2, new_tiles(problem, config), *tile), dtype),
            "kv_out": ((config.num_buffers, items * item_tiles(problem), *tile), dtype),
        }
    _, words, pack, lanes = problem.kv_new_shape
    # An even number of words has a gap behind it without that, too.
    gap = config.strided_copies
    # One row more than the blocks: where a store goes that has nothing to do.
    bkv, bq = items * config.bkv_sz + 1, (config.bq_sz + 1) * heads.query_tokens(problem)
    return {
        "kv": ((config.num_buffers, bkv, layout.odd(words + gap), pack, lanes), dtype),
        "kv_new": ((2, bq, words, pack, lanes), dtype),
    }


def new_tiles(problem: Problem, config: DecodeConfig) -> int:
    """Tiles of new tokens that a block of sequences may lie in, where it begins anywhere."""
    return cdiv(config.bq_sz * problem.decode_query_size - 1, tile_tokens(problem)) + 1


def item_tiles(problem: Problem) -> int:
    """Tiles of the cache that the new tokens of one item may lie in."""
    return cdiv(problem.decode_query_size - 1, tile_tokens(problem)) + 1


def scratch_bytes(problem: Problem, config: DecodeConfig, target: Target) -> int:
    """VMEM scratch in bytes after tiling. Does not count what the compiler adds."""
    return sum(layout.tiled_bytes(*buffer) for buffer in buffers(problem, config, target).values())


def smem_bytes(problem: Problem, config: DecodeConfig) -> int:
    """SMEM in bytes: the scalar-prefetch arrays."""
    del config
    return limits.smem_bytes(problem)


def _seqs(problem: Problem, config: DecodeConfig, batch: Batch, core: Core) -> range:
    """Decode sequences of a core."""
    if core.count == 1:
        return batch.family_seqs("decode")
    bounds = partition(problem, config, batch.arrays(problem), core.count)
    return range(bounds[core.index], bounds[core.index + 1])


def _spans(problem: Problem, config: DecodeConfig, batch: Batch, core: Core) -> list[Span]:
    """Positions of every decode sequence of a core."""
    pairs = [(batch.kv_lens[i] - batch.q_lens[i], batch.kv_lens[i])
             for i in _seqs(problem, config, batch, core)]  # fmt: skip
    return [Span(window_start(query, problem), query, end) for query, end in pairs]


def _fetch_copies(problem: Problem, config: DecodeConfig, batch: Batch, core: Core) -> int:
    """Copies that fetch cached tokens."""
    seqs, size = _seqs(problem, config, batch, core), config.bkv_sz
    spans = _spans(problem, config, batch, core)
    # Whole pages or rows come in tiles, with the places of new tokens.
    is_exact = problem.update_kv_cache and not in_tiles(problem)
    ends = [span.query if is_exact else span.end for span in spans]
    if size <= problem.page_size:
        return sum(cdiv(end - span.start, size) for span, end in zip(spans, ends, strict=True))
    table, copies = runs.SeqRuns.of(batch.arrays(problem), problem), 0
    for seq, span, end in zip(seqs, spans, ends, strict=True):
        start = np.arange(span.start, end, size)
        copies += table.count_copies(seq, start, np.minimum(start + size, end))
    return copies


def _write_copies(problem: Problem, config: DecodeConfig, batch: Batch, core: Core) -> int:
    """Copies that write new tokens to the cache: runs of pages, or tiles."""
    spans = _spans(problem, config, batch, core)
    if in_tiles(problem):
        size = tile_tokens(problem)
        return sum((end - 1) // size - new // size + 1 for _, new, end in spans)
    if problem.decode_query_size == 1:
        return len(spans)
    table = runs.SeqRuns.of(batch.arrays(problem), problem)
    seqs = _seqs(problem, config, batch, core)
    return sum(
        table.count_copies(seq, np.array([span.query]), np.array([span.end]))
        for seq, span in zip(seqs, spans, strict=True)
    )


def _new_tiles_read(problem: Problem, config: DecodeConfig, batch: Batch, core: Core) -> int:
    """Tiles of new tokens that are read, block of sequences by block."""
    seqs, tiles, size = _seqs(problem, config, batch, core), 0, tile_tokens(problem)
    starts = [0, *itertools.accumulate(batch.q_lens)]
    for first in range(seqs.start, seqs.stop, config.bq_sz):
        last = starts[min(first + config.bq_sz, seqs.stop)] - 1
        tiles += last // size - starts[first] // size + 1
    return tiles


def num_items(problem: Problem, config: DecodeConfig, batch: Batch, core: Core = ONLY_CORE) -> int:
    """KV blocks over all sequences."""
    spans = _spans(problem, config, batch, core)
    return sum(max(cdiv(span.end - span.start, config.bkv_sz), 1) for span in spans)


def num_steps(problem: Problem, config: DecodeConfig, batch: Batch, core: Core = ONLY_CORE) -> int:
    """Steps walked: `seqs_per_step` KV blocks each."""
    return cdiv(num_items(problem, config, batch, core), config.seqs_per_step)


def traffic(
    problem: Problem, config: DecodeConfig, batch: Batch, core: Core = ONLY_CORE
) -> Traffic:
    """What the DMAs move for one batch: queries, new KV, cached KV, output and cache update."""
    spans = _spans(problem, config, batch, core)
    num_tokens, new = sum(end - query for _, query, end in spans), int(problem.update_kv_cache)
    new_rows, written = num_tokens, num_tokens
    write_copies = new * _write_copies(problem, config, batch, core)
    if in_tiles(problem):
        size = tile_tokens(problem)
        width = size if problem.is_latent else min(problem.page_size, config.bkv_sz)
        cached = [cdiv(span.end - span.start, width) * width for span in spans]
        new_rows = _new_tiles_read(problem, config, batch, core) * size
        written = write_copies * size
    else:
        cached = [(span.query if new else span.end) - span.start for span in spans]
    seq_blocks = cdiv(len(spans), config.bq_sz)
    q_bytes, kv_bytes = num_tokens * problem.q_token_bytes, problem.kv_token_bytes
    out_bytes = num_tokens * problem.out_token_bytes
    return Traffic(
        read_bytes=sum(cached) * kv_bytes
        + q_bytes
        + new * new_rows * kv_bytes
        + bool(spans) * problem.sinks_bytes,
        write_bytes=out_bytes + new * written * kv_bytes + num_tokens * problem.lse_token_bytes,
        num_copies=(2 + new + problem.return_lse + problem.is_latent) * seq_blocks
        + write_copies
        + _fetch_copies(problem, config, batch, core)
        + bool(spans) * problem.has_sinks,
    )


def mxu_flops(
    problem: Problem, config: DecodeConfig, batch: Batch, target: Target, core: Core = ONLY_CORE
) -> int:
    """FLOPs the MXU executes, padding included: every item runs its step's longest tile count."""
    items = [
        cdiv(min(config.bkv_sz, end - block), config.bkv_csz)
        for start, _, end in _spans(problem, config, batch, core)
        for block in range(start, max(end, start + 1), config.bkv_sz)
    ]
    width = config.seqs_per_step
    tiles = sum(max(items[i : i + width]) * width for i in range(0, len(items), width))
    # Heads that are attended to together are multiplied with each other's keys, too.
    groups = heads.head_groups(problem)
    scores = sum(group.rows(problem) * heads.columns_of(group, problem) for group in groups)
    lanes = operands.score_lanes(problem, target) + problem.padded_head_dim
    return tiles * 2 * scores * config.bkv_csz * lanes


def useful_bytes(problem: Problem, batch: Batch) -> int:
    """Bytes that no kernel could avoid moving."""
    return useful.useful_bytes("decode", problem, batch)


def useful_flops(problem: Problem, batch: Batch) -> int:
    """FLOPs of the attention alone."""
    return useful.useful_flops("decode", problem, batch)


def kernel_name(problem: Problem, config: DecodeConfig) -> str:
    """Name of the Pallas call in dumps and profiles."""
    kind = "mla" if problem.is_latent else "rpa"
    return (
        f"{kind}_decode-p{problem.page_size}-bkv{config.bkv_sz}_{config.bkv_csz}"
        f"-s{config.seqs_per_step}-n{config.num_buffers}-q{config.bq_sz}"
        + ("-strided" if config.strided_copies else "")
        + (f"-t{problem.decode_query_size}" if problem.decode_query_size > 1 else "")
    )
