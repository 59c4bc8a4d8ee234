"""Abstract arrays of a call of tpu-inference's functions, in the order of their parameters.

Each function takes queries, new keys and values, and its cache; then four int32 arrays; then
sinks if the problem has them (hd64 only). The latent function takes its queries in two parts, the
first with heads before tokens.
"""

import jax

from rpa_kernels import layout
from rpa_kernels.ints import cdiv
from rpa_kernels.problem import Problem

_Shape = tuple[tuple[int, ...], str]


def num_leading(kernel: str) -> int:
    """Arrays before the four int32 ones; the cache, which is donated, is the last of them."""
    return 5 if kernel == "mla" else 4


def abstract_arguments(kernel: str, problem: Problem) -> tuple[jax.ShapeDtypeStruct, ...]:
    """All arrays of a call.

    Args:
      kernel: `v3`, `hd64`, `batched`, `stacked` or `mla`.
      problem: Static shapes and dtypes.
    """
    seqs = problem.max_num_seqs
    shapes = _latent_arrays(problem) if kernel == "mla" else _arrays(kernel, problem)
    shapes += [
        ((seqs,), "int32"),
        ((seqs * problem.pages_per_seq,), "int32"),
        ((seqs + 1,), "int32"),
        ((3,), "int32"),
    ]
    if problem.has_sinks:
        shapes.append(((problem.num_q_heads,), "float32"))
    return tuple(jax.ShapeDtypeStruct(shape, dtype) for shape, dtype in shapes)


def _arrays(kernel: str, problem: Problem) -> list[_Shape]:
    tokens = problem.max_num_tokens
    new = (tokens, problem.num_kv_heads, problem.head_dim)
    return [
        ((tokens, problem.num_q_heads, problem.head_dim), problem.q_dtype),
        (new, problem.kv_dtype),
        (new, problem.kv_dtype),
        (_cache_shape(kernel, problem), problem.kv_dtype),
    ]


def _latent_arrays(problem: Problem) -> list[_Shape]:
    """`ql_nope`, `q_pe`, `new_kv_c`, `new_k_pe`, `cache_kv`."""
    assert problem.rope_dim is not None
    tokens, heads = problem.max_num_tokens, problem.num_q_heads
    return [
        ((heads, tokens, problem.head_dim), problem.q_dtype),
        ((tokens, heads, problem.rope_dim), problem.q_dtype),
        ((tokens, problem.head_dim), problem.kv_dtype),
        ((tokens, problem.rope_dim), problem.kv_dtype),
        (problem.kv_cache_shape, problem.kv_dtype),
    ]


def _cache_shape(kernel: str, problem: Problem) -> tuple[int, ...]:
    pack = layout.packing(problem.kv_dtype)
    if kernel == "hd64":
        heads = cdiv(problem.num_kv_heads, pack)
        return (problem.num_pages, problem.page_size, heads, pack, layout.LANES)
    if problem.is_seq_along_lane:
        return problem.kv_cache_shape
    if kernel == "stacked":
        rows = layout.align(problem.head_dim, layout.SUBLANES * pack)
        return (problem.num_pages, 2 * problem.num_kv_heads, rows, problem.page_size)
    return layout.kv_cache_shape(
        num_pages=problem.num_pages,
        page_size=problem.page_size,
        num_kv_heads=problem.num_kv_heads,
        head_dim=problem.head_dim,
        kv_dtype=problem.kv_dtype,
    )
