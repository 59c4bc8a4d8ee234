"""The launch of a kernel of ours, for a compiler that is asked for its schedule.

The launch alone, without what lays its operands out and takes the page table apart: XLA takes
longer over those than over most kernels, and they cannot change the schedule. Where a Pallas
call's operands live is all that its surroundings could decide, and the launch keeps them in HBM
(`rpa_kernels.calls`). `tests/aot/test_own_call.py` holds it against the public call.
"""

from typing import Any

import jax
import jax.numpy as jnp

from rpa_kernels.family import KernelFamily
from rpa_kernels.problem import Problem
from rpa_kernels.target import Target
from rpa_tune.families.family import Call


def own_call(family: KernelFamily, problem: Problem, config: Any, target: Target) -> Call:
    """The launch of one family, from what `inputs.prepare` makes to what `inputs.finish` takes."""
    scalars = _metadata(problem)
    named = _optional(problem) | {"page_runs": scalars[1]}  # as many words as pages
    queries = [_array(problem.q_shape, problem.q_dtype)]
    if problem.is_latent:
        queries.append(_array(problem.q_rope_shape, problem.q_dtype))
    operands = [
        _array(problem.kv_new_shape, problem.kv_dtype),
        _array(problem.kv_cache_shape, problem.kv_dtype),
        *scalars,
    ]

    def launch(*arrays: jax.Array) -> tuple[jax.Array, ...]:
        q = arrays[: len(queries)]
        rest, given = arrays[len(queries) : -len(named)], arrays[-len(named) :]
        results: tuple[jax.Array, ...] = family.launch(
            q if problem.is_latent else q[0], *rest,
            problem=problem, config=config, target=target,
            **dict(zip(named, given, strict=True)),
        )  # fmt: skip
        return results

    arguments = (*queries, *operands, *named.values())
    written = [0, len(queries) + 1]
    if problem.return_lse:
        written.append(len(queries) + len(operands) + list(named).index("lse"))
    return Call(
        function=launch,
        arguments=arguments,
        kernel_name=family.kernel_name(problem, config),
        donated=tuple(written),
    )


def _abstract_latent_inputs(problem: Problem) -> tuple[jax.ShapeDtypeStruct, ...]:
    """Shapes and dtypes of the public MLA call."""
    tokens, heads = problem.max_num_tokens, problem.num_q_heads
    latent, rope = problem.head_dim, problem.rope_dim or 0
    shapes = [
        ((heads, tokens, latent), problem.q_dtype),
        ((tokens, heads, rope), problem.q_dtype),
        ((tokens, latent), problem.kv_dtype),
        ((tokens, rope), problem.kv_dtype),
        (problem.kv_cache_shape, problem.kv_dtype),
    ]
    arrays = (jax.ShapeDtypeStruct(shape, jnp.dtype(dtype)) for shape, dtype in shapes)
    return (*arrays, *_metadata(problem))


def _optional(problem: Problem) -> dict[str, jax.ShapeDtypeStruct]:
    """What else a launch of the problem takes, by the names of its arguments."""
    found = {}
    if problem.has_sinks:
        found["sinks"] = _array((problem.num_q_heads,), "float32")
    if problem.has_tree_mask:
        found["tree_mask"] = _array((problem.max_num_tokens,), "int32")
    if problem.return_lse:
        found["lse"] = _array(problem.lse_shape, "float32")
    return found


def _array(shape: tuple[int, ...], dtype: str) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.dtype(dtype))


def _metadata(problem: Problem) -> tuple[jax.ShapeDtypeStruct, ...]:
    seqs = problem.max_num_seqs
    sizes = (seqs, seqs * problem.pages_per_seq, seqs + 1, 3)
    return tuple(jax.ShapeDtypeStruct((size,), jnp.int32) for size in sizes)


def abstract_inputs(problem: Problem) -> tuple[jax.ShapeDtypeStruct, ...]:
    """Shapes and dtypes of the public call: q, k, v, cache, four int32 arrays, what is optional."""
    if problem.is_latent:
        return _abstract_latent_inputs(problem)
    tokens, kv_heads, dim = problem.max_num_tokens, problem.num_kv_heads, problem.head_dim
    q_dtype, kv_dtype = jnp.dtype(problem.q_dtype), jnp.dtype(problem.kv_dtype)
    shapes: list[tuple[tuple[int, ...], Any]] = [
        ((tokens, problem.num_q_heads, dim), q_dtype),
        ((tokens, kv_heads, dim), kv_dtype),
        ((tokens, kv_heads, dim), kv_dtype),
        (problem.kv_cache_shape, kv_dtype),
    ]
    optional: list[tuple[tuple[int, ...], Any]] = []
    if problem.has_sinks:
        optional.append(((problem.num_q_heads,), jnp.dtype("float32")))
    if problem.has_tree_mask:
        optional.append(((tokens,), jnp.dtype("int32")))
    arrays = [jax.ShapeDtypeStruct(shape, dtype) for shape, dtype in (*shapes, *optional)]
    return (*arrays[:4], *_metadata(problem), *arrays[4:])
