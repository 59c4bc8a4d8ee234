"""Blocks of the batched kernels: those of tpu-inference, and tokamax's, which came from them."""

from dataclasses import dataclass

from rpa_kernels import kv_blocks, limits
from rpa_kernels.infeasible import Infeasible
from rpa_kernels.problem import Problem
from rpa_kernels.target import Target


@dataclass(frozen=True, kw_only=True, slots=True)
class BatchedConfig:
    """Block sizes of a batched kernel, and of the stacked one, whose `n_buffer` is 2.

    Attributes:
      bq_sz: Tokens of a query block.
      bq_c_sz: Tokens of a query block that is computed at once; divides `bq_sz`.
      bkv_sz: Tokens of a KV block; whole pages.
      batch_size: Sequences, or parts of one, that are handled together.
      n_buffer: KV blocks in flight.
    """

    bq_sz: int
    bq_c_sz: int
    bkv_sz: int
    batch_size: int
    n_buffer: int


def check_blocks(problem: Problem, config: BatchedConfig, target: Target) -> Infeasible | None:
    """None when the blocks can exist and may fit, else the limit they break."""
    bad = limits.check_positive(
        bq_sz=config.bq_sz, bq_c_sz=config.bq_c_sz, bkv_sz=config.bkv_sz,
        batch_size=config.batch_size, n_buffer=config.n_buffer,
    )  # fmt: skip
    bad = bad or check_multiple("bq_sz % bq_c_sz", config.bq_sz, config.bq_c_sz)
    bad = bad or check_multiple("bkv_sz % page_size", config.bkv_sz, problem.page_size)
    return bad or check_scratch(scratch_bytes(problem, config, target), target)


def decode_axes(problem: Problem, target: Target) -> dict[str, tuple[int, ...]]:
    """What to try for decode."""
    del target
    return {
        "bq_sz": (1,),
        "bq_c_sz": (1,),
        "bkv_sz": kv_blocks.block_sizes(problem, (256, 512, 1024, 2048, 4096)),
        "batch_size": (1, 2, 4, 8, 16),
        "n_buffer": (2, 3, 4),
    }


def mixed_axes(problem: Problem, queries: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    """What to try for everything else, with query blocks of so many tokens."""
    return {
        "bq_sz": queries,
        "bq_c_sz": queries,
        "bkv_sz": kv_blocks.block_sizes(problem, (256, 512, 1024, 2048)),
        "batch_size": (1, 2),
        "n_buffer": (2, 3),
    }


def scratch_bytes(problem: Problem, config: BatchedConfig, target: Target) -> int:
    """Bytes of the KV and query buffers: less than what the kernel holds in VMEM."""
    del target
    block = config.bkv_sz * problem.kv_token_bytes + config.bq_sz * problem.q_token_bytes
    return int(config.batch_size * config.n_buffer * block)


def check_multiple(limit: str, whole: int, part: int) -> Infeasible | None:
    """The limit that a size breaks which is no multiple of another."""
    if whole % part:
        return Infeasible(limit=limit, need=whole, have=part, unit="tokens")
    return None


def check_scratch(scratch: int, target: Target) -> Infeasible | None:
    """Only what cannot fit: the compiler has the last word on the rest."""
    if scratch > target.vmem_bytes:
        return Infeasible(
            limit="vmem_bytes", need=scratch, have=target.vmem_bytes, unit="bytes",
            hint="buffers alone exceed VMEM",
        )  # fmt: skip
    return None
