"""Sizes of KV blocks to choose from: what every family's `space.py` is made with. No jax."""

from dataclasses import replace

from rpa_kernels import layout
from rpa_kernels.infeasible import Infeasible
from rpa_kernels.problem import Problem

# Share of VMEM that the scratch of a default config may take, less than `limits` lets others have:
# nobody compiles a default before it is used.
DEFAULT_VMEM_SHARE = 0.75


def longest_block(problem: Problem) -> int:
    """Tokens of the largest KV block with a use: the longest context, in whole pages.

    At least 128 tokens and a power of two of them, before rounding up to a page.
    """
    tokens = max(problem.max_context_tokens, layout.LANES)
    return layout.align(layout.next_power_of_2(tokens), problem.page_size)


def fit_block(size: int, problem: Problem) -> int:
    """The least KV block from `size` on: a whole part of a page, or whole pages."""
    return size if problem.page_size % size == 0 else layout.align(size, problem.page_size)


def block_sizes(problem: Problem, sizes: tuple[int, ...]) -> tuple[int, ...]:
    """`sizes` made to fit pages, without repeats and none beyond the longest context."""
    longest = longest_block(problem)
    fitting = sorted({fit_block(size, problem) for size in sizes})
    return tuple(size for size in fitting if size <= longest) or (longest,)


def smaller_block(size: int, problem: Problem) -> int | None:
    """About half a KV block, or None when it is as small as is of use."""
    half = fit_block(size // 2, problem)
    return half if size > layout.LANES and half < size else None


def compute_size(bkv_sz: int, most: int) -> int:
    """The largest compute block, at most `most`, that `limits` accepts in a KV block."""
    sizes = range(layout.LANES, min(bkv_sz, most) + 1, layout.LANES)
    return max((size for size in sizes if bkv_sz % size == 0), default=bkv_sz)


def at_least(bad: Infeasible) -> Infeasible:
    """What the smallest blocks of a family break, for who asked for any that fit."""
    if bad.limit != "vmem_bytes":
        return bad
    return replace(bad, hint="with the smallest blocks; fewer query heads on a device need less")
