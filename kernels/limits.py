"""Limits that every family checks the same way. No jax."""

from collections.abc import Callable
from typing import Any

from rpa_kernels import layout
from rpa_kernels.infeasible import Infeasible
from rpa_kernels.problem import Problem
from rpa_kernels.slots import families_of, is_latent
from rpa_kernels.target import Target

# Share of VMEM that scratch may take. The rest is the compiler's: register-allocator spills and
# the intermediate values of a block. A guess with margin; the compiler has the last word.
SCRATCH_VMEM_SHARE = 0.85

# Share of SMEM that the scalar-prefetch arrays may take; the compiler keeps spilled scalars and
# DMA descriptors there too. A guess with margin; the compiler has the last word.
PREFETCH_SMEM_SHARE = 0.9


def smem_bytes(problem: Problem) -> int:
    """SMEM of the scalar-prefetch arrays, each padded to a row of 128 words."""
    seqs = problem.max_num_seqs
    sizes = [seqs, seqs * problem.pages_per_seq, seqs + 1, 3]
    sizes += [problem.max_num_tokens] if problem.has_tree_mask else []
    return sum(layout.align(size, layout.LANES) * layout.WORD_BYTES for size in sizes)


def check_blocks(*, bkv_sz: int, bkv_csz: int, problem: Problem) -> Infeasible | None:
    """Whether a fetch block is whole pages, or a part of one, and whole compute blocks.

    A compute block need not be whole pages. It is a multiple of 128 keys, one vector register of
    scores, or the whole fetch block when that is smaller.
    """
    if bkv_sz % problem.page_size and problem.page_size % bkv_sz:
        return Infeasible(
            limit="bkv_sz % page_size",
            need=bkv_sz,
            have=problem.page_size,
            unit="tokens",
            hint=f"use a multiple of {problem.page_size}, or a size that divides it",
        )
    if bkv_sz % bkv_csz:
        return Infeasible(
            limit="bkv_sz % bkv_csz",
            need=bkv_sz,
            have=bkv_csz,
            unit="tokens",
            hint="bkv_csz must divide bkv_sz",
        )
    if bkv_sz % problem.row_tokens or bkv_csz % problem.row_tokens:
        return Infeasible(
            limit="bkv_csz % kv_packing",
            need=bkv_csz,
            have=problem.row_tokens,
            unit="tokens",
            hint=f"KV blocks must be whole rows of {problem.row_tokens} tokens",
        )
    if bkv_csz % layout.LANES and (bkv_csz != bkv_sz or problem.is_seq_along_lane):
        return Infeasible(
            limit="bkv_csz % 128",
            need=bkv_csz,
            have=layout.LANES,
            unit="tokens",
            hint="use a multiple of 128" + ("" if problem.is_seq_along_lane else ", or bkv_sz"),
        )
    return None


def check_memory(
    *, scratch: int, problem: Problem, target: Target, vmem_share: float
) -> Infeasible | None:
    """Whether scratch fits its share of VMEM, and the page table SMEM."""
    have = int(target.vmem_bytes * vmem_share)
    if scratch > have:
        return Infeasible(
            limit="vmem_bytes",
            need=scratch,
            have=have,
            unit="bytes",
            hint=f"{vmem_share:.0%} of {target.chip}'s VMEM; use smaller blocks",
        )
    need, have = smem_bytes(problem), int(target.smem_bytes * PREFETCH_SMEM_SHARE)
    if need > have:
        return Infeasible(
            limit="smem_bytes",
            need=need,
            have=have,
            unit="bytes",
            hint="the page table lives in SMEM: larger pages, fewer sequences or fewer "
            "pages_per_seq",
        )
    return None


def for_kind(function: Callable[..., Any], family: str) -> Callable[..., Any]:
    """A family's `check` or `default_config`, which answers for the problems that it serves.

    Args:
      function: Takes a problem first; may return an `Infeasible`.
      family: Name.
    """

    def answer(problem: Problem, *args: Any, **options: Any) -> Any:
        if family in families_of(problem):
            return function(problem, *args, **options)
        return Infeasible(
            limit="rope_dim",
            need=problem.rope_dim or 0,
            have=0,
            unit="elements",
            hint=f"{family} serves {'latent' if is_latent(family) else 'no latent'} attention; "
            f"this problem is for {', '.join(families_of(problem))}",
        )

    return answer


def check_sizes(config: Any, problem: Problem, *others: str) -> Infeasible | None:
    """What every family's `check` begins with: sizes that are positive, and KV blocks that fit.

    Args:
      config: A family's config; has `bkv_sz`, `bkv_csz` and `num_buffers`.
      problem: Static shapes.
      others: Its other fields that are sizes.
    """
    sizes = {name: getattr(config, name) for name in ("bkv_sz", "bkv_csz", *others)}
    bad = check_positive(**sizes, num_buffers=config.num_buffers - 1)
    return bad or check_blocks(bkv_sz=config.bkv_sz, bkv_csz=config.bkv_csz, problem=problem)


def check_switch(**fields: int) -> Infeasible | None:
    """Whether every field is 0 or 1."""
    for name, value in fields.items():
        if value not in (0, 1):
            return Infeasible(limit=name, need=value, have=1, unit="", hint="must be 0 or 1")
    return None


def check_positive(**fields: int) -> Infeasible | None:
    """Whether every field is at least 1."""
    for name, value in fields.items():
        if value < 1:
            return Infeasible(limit=name, need=value, have=1, unit="", hint="must be positive")
    return None
