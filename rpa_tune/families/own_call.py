"""The attention call of a family of ours, for a compiler or a device.

The kernel stands inside the wrapper it is used in (`prepare`, launch, `finish`), because XLA
decides from the surroundings where operands live.
"""

from typing import Any

import jax
import jax.numpy as jnp

from rpa_kernels import inputs
from rpa_kernels.family import KernelFamily
from rpa_kernels.problem import Problem
from rpa_kernels.target import Target
from rpa_tune.families.family import Call


def own_call(family: KernelFamily, problem: Problem, config: Any, target: Target) -> Call:
    """The call of one family, from public arrays to public arrays."""
    if problem.is_latent:
        return _latent_call(family, problem, config, target)

    def attend(
        queries: jax.Array, keys: jax.Array, values: jax.Array, kv_cache: jax.Array,
        *rest: jax.Array,
    ) -> tuple[jax.Array, ...]:  # fmt: skip
        q, kv_new = inputs.prepare(queries, keys, values, problem)
        scalars, more = rest[:4], list(rest[4:])
        sinks = more.pop(0) if problem.has_sinks else None
        tree_mask = more.pop(0) if problem.has_tree_mask else None
        out, kv_cache, *lse = family.launch(
            q, kv_new, kv_cache, *scalars,
            problem=problem, config=config, target=target, sinks=sinks,
            tree_mask=tree_mask,
        )  # fmt: skip
        return inputs.finish(out, problem), kv_cache, *(inputs.finish_lse(x, problem) for x in lse)

    return Call(
        function=attend,
        arguments=abstract_inputs(problem),
        kernel_name=family.kernel_name(problem, config),
        donated=(3,),
    )


def _latent_call(family: KernelFamily, problem: Problem, config: Any, target: Target) -> Call:
    def attend(
        ql_nope: jax.Array, q_pe: jax.Array, new_kv_c: jax.Array, new_k_pe: jax.Array,
        *rest: jax.Array,
    ) -> tuple[jax.Array, ...]:  # fmt: skip
        q, kv_new = inputs.prepare_latent(ql_nope, q_pe, new_kv_c, new_k_pe, problem)
        out, kv_cache = family.launch(
            q, kv_new, *rest, problem=problem, config=config, target=target
        )
        return inputs.finish_latent(out, problem), kv_cache

    return Call(
        function=attend,
        arguments=abstract_inputs(problem),
        kernel_name=family.kernel_name(problem, config),
        donated=(4,),
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
