"""Bytes, FLOPs and steps of a blockwise kernel, as plain integers. No jax."""

from collections.abc import Iterator
from dataclasses import dataclass

from rpa_kernels import layout, limits, useful
from rpa_kernels.batch import Batch
from rpa_kernels.blockwise.config import BlockwiseConfig
from rpa_kernels.family import Traffic
from rpa_kernels.problem import Problem

Shape = tuple[int, ...]


def buffers(problem: Problem, config: BlockwiseConfig) -> dict[str, tuple[Shape, str]]:
    """Every VMEM buffer of the kernel: name to (shape, dtype); `scratch.py` allocates these."""
    _, words, pack, lanes = problem.kv_new_shape
    q_token = problem.q_shape[1:]
    heads, rows_per_token = problem.num_kv_heads, problem.q_words * q_token[-2]
    tiles, rows = config.bq_sz // config.bq_csz, config.bq_csz * rows_per_token
    wide = "float32" if "float32" in (problem.q_dtype, problem.kv_dtype) else "bfloat16"
    kv_block = (config.num_buffers, config.bkv_sz, layout.odd(words), pack, lanes)
    unpacked = (heads, config.bkv_sz, lanes)
    sizes: dict[str, tuple[Shape, str]] = {
        "kv": (kv_block, problem.kv_dtype),
        "q": ((2, config.bq_sz, *q_token), problem.q_dtype),
        "out": ((2, config.bq_sz, *q_token), problem.q_dtype),
        "k": (unpacked, wide),
        "v": ((1, layout.SUBLANES, lanes) if problem.fuses_kv else unpacked, wide),
        "scaled_q": ((heads, tiles, rows, lanes), wide),
        "m": ((heads, tiles, rows, layout.LANES), "float32"),
        "l": ((heads, tiles, rows, layout.LANES), "float32"),
        "acc": ((heads, tiles, rows, lanes), "float32"),
    }
    return sizes


def scratch_bytes(problem: Problem, config: BlockwiseConfig) -> int:
    """VMEM scratch in bytes after tiling. Does not count what the compiler adds."""
    return sum(layout.tiled_bytes(*buffer) for buffer in buffers(problem, config).values())


def smem_bytes(problem: Problem, config: BlockwiseConfig) -> int:
    """SMEM in bytes: the scalar-prefetch arrays."""
    del config
    return limits.smem_bytes(problem)


@dataclass(frozen=True, kw_only=True, slots=True)
class Block:
    """One query block of one sequence; positions are tokens from the start of its context."""

    first: int  # position of its first query
    end: int  # position after its last query
    kv_first: int  # first position fetched
    kv_end: int  # position after the last key fetched
    cached_end: int  # position after the last key that is in the cache


def blocks(family: str, problem: Problem, config: BlockwiseConfig, batch: Batch) -> Iterator[Block]:
    """Query blocks in the order the kernel walks them."""
    for i in batch.family_seqs(family):
        q_len, kv_len = batch.q_lens[i], batch.kv_lens[i]
        for start in range(0, q_len, config.bq_sz):
            first = kv_len - q_len + start
            end = kv_len - q_len + min(start + config.bq_sz, q_len)
            yield Block(
                first=first,
                end=end,
                kv_first=useful.window_start(first, problem),
                kv_end=end if problem.causal else kv_len,
                cached_end=kv_len - q_len if problem.update_kv_cache else kv_len,
            )


def num_steps(family: str, problem: Problem, config: BlockwiseConfig, batch: Batch) -> int:
    """KV blocks over all query blocks."""
    return sum(
        layout.cdiv(b.kv_end - b.kv_first, config.bkv_sz)
        for b in blocks(family, problem, config, batch)
    )


def traffic(family: str, problem: Problem, config: BlockwiseConfig, batch: Batch) -> Traffic:
    """What the DMAs move for one batch: queries, new KV, cached KV, output and cache update."""
    page, q_bytes, kv_bytes = problem.page_size, problem.q_token_bytes, problem.kv_token_bytes
    read = write = copies = 0
    for b in blocks(family, problem, config, batch):
        read += (b.end - b.first) * q_bytes
        write += (b.end - b.first) * q_bytes
        copies += 2
        for start in range(b.kv_first, b.kv_end, config.bkv_sz):
            end = min(start + config.bkv_sz, b.kv_end)
            read += (end - start) * kv_bytes
            copies += layout.cdiv(max(min(end, b.cached_end) - start, 0), page)
            copies += end > b.cached_end
            written = range(max(start, b.first), min(end, b.end))
            if problem.update_kv_cache and written:
                write += len(written) * kv_bytes
                copies += layout.cdiv(written.start % page + len(written), page)
    return Traffic(read_bytes=read, write_bytes=write, num_copies=copies)


def mxu_flops(family: str, problem: Problem, config: BlockwiseConfig, batch: Batch) -> int:
    """FLOPs the MXU executes, padding and masked halves of blocks included."""
    tiles = 0
    csz = config.bkv_csz
    for b in blocks(family, problem, config, batch):
        for first in range(b.first, b.end, config.bq_csz):
            seen = min(first + config.bq_csz, b.kv_end) if problem.causal else b.kv_end
            oldest = 0
            if problem.sliding_window is not None:
                oldest = max(first + 1 - problem.sliding_window, 0)
            for start in range(b.kv_first, seen, config.bkv_sz):
                end = min(start + config.bkv_sz, seen)
                tiles += layout.cdiv(end - start, csz) - max(oldest - start, 0) // csz * (
                    oldest < end
                )
                tiles -= layout.cdiv(end - start, csz) * (oldest >= end)
    rows = config.bq_csz * problem.num_kv_heads * problem.q_words
    rows *= layout.packing(problem.q_dtype)
    return tiles * 4 * rows * csz * problem.padded_head_dim


def kernel_name(family: str, problem: Problem, config: BlockwiseConfig) -> str:
    """Name of the Pallas call in dumps and profiles."""
    return (
        f"rpa_{family}-p{problem.page_size}-bq{config.bq_sz}_{config.bq_csz}"
        f"-bkv{config.bkv_sz}_{config.bkv_csz}-n{config.num_buffers}"
    )
