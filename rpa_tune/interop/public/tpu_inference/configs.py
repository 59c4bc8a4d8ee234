"""What the public RPA kernels of tpu-inference are told: block sizes, and what they refuse.

No jax, no wheel. Neighbour: `families.py` makes families of them.
"""

from dataclasses import dataclass
from typing import Any

from rpa_kernels import limits
from rpa_kernels.infeasible import Infeasible
from rpa_kernels.problem import Problem
from rpa_kernels.target import Target
from rpa_tune.interop.public.batched import (
    BatchedConfig,
    check_blocks,
    check_multiple,
    check_scratch,
)
from rpa_tune.interop.public.family import check_features, refusal
from rpa_tune.interop.public.tpu_inference.package import DEVICE_NAMES


@dataclass(frozen=True, kw_only=True, slots=True)
class V3Config:
    """Block sizes of one case of the v3 kernel; its `{d,m}_block_sizes` in this order.

    Attributes:
      bq_sz: Tokens of a query block.
      bkv_sz: Tokens of a KV block that is fetched; whole pages.
      bq_csz: Tokens of a query block that is computed at once; divides `bq_sz`.
      bkv_csz: Tokens of a KV block that is computed at once; divides `bkv_sz`, whole pages.
    """

    bq_sz: int
    bkv_sz: int
    bq_csz: int
    bkv_csz: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Hd64Config:
    """Block sizes of the hd64 kernel, which serves all sequences in one call.

    Attributes:
      bq_sz: Its `num_queries_per_block`.
      bkv_sz: Its `num_kv_pages_per_block`, in tokens.
    """

    bq_sz: int
    bkv_sz: int


def check_v3(problem: Problem, config: V3Config, target: Target) -> Infeasible | None:
    """None when the kernel takes these blocks, else the limit they break."""
    bad = limits.check_positive(
        bq_sz=config.bq_sz, bkv_sz=config.bkv_sz, bq_csz=config.bq_csz, bkv_csz=config.bkv_csz
    )
    bad = bad or check_call(problem, target)
    for name, whole, part in (
        ("bq_sz % bq_csz", config.bq_sz, config.bq_csz),
        ("bkv_sz % bkv_csz", config.bkv_sz, config.bkv_csz),
        ("bkv_csz % page_size", config.bkv_csz, problem.page_size),
    ):
        bad = bad or check_multiple(name, whole, part)
    return bad or check_scratch(v3_scratch_bytes(problem, config, target), target)


def check_hd64(problem: Problem, config: Hd64Config, target: Target) -> Infeasible | None:
    """None when the kernel takes these blocks, else the limit they break."""
    bad = limits.check_positive(bq_sz=config.bq_sz, bkv_sz=config.bkv_sz)
    bad = bad or check_call(problem, target, is_hd64=True)
    bad = bad or check_multiple("bkv_sz % page_size", config.bkv_sz, problem.page_size)
    return bad or check_scratch(v3_scratch_bytes(problem, config, target), target)


def check_batched(problem: Problem, config: BatchedConfig, target: Target) -> Infeasible | None:
    """None when the kernel takes these blocks, else the limit they break."""
    bad = check_call(problem, target)
    if bad is None and problem.kv_dtype == "int8":
        bad = refusal("kv_dtype int8", "the kernel takes floating-point caches only")
    return bad or check_blocks(problem, config, target)


def v3_scratch_bytes(problem: Problem, config: Any, target: Target) -> int:
    """Bytes of the two KV and two query buffers: less than what the kernel holds in VMEM."""
    del target
    block = config.bkv_sz * problem.kv_token_bytes + config.bq_sz * problem.q_token_bytes
    return int(2 * block)


def check_call(problem: Problem, target: Target, *, is_hd64: bool = False) -> Infeasible | None:
    """What no block sizes can mend. Source: the functions' own input checks."""
    if target.chip not in DEVICE_NAMES:
        return refusal("chip", f"the public kernels know {', '.join(DEVICE_NAMES)}")
    if problem.fuses_kv != is_hd64:
        return refusal("head_dim", "public-hd64 takes head_dim 64, the others do not")
    if problem.has_sinks and not is_hd64:
        return refusal("sinks", "only public-hd64 takes attention sinks")
    return check_features(problem)
