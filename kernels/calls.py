"""The `pallas_call` plumbing that all families share: specs, aliases, compiler parameters."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from rpa_kernels import online_softmax
from rpa_kernels.problem import Problem
from rpa_kernels.target import Target

NUM_SCALARS = 4  # kv_lens, page_indices, cu_q_lens, distribution


def prepare_sinks(sinks: jax.Array, problem: Problem) -> jax.Array:
    """Sink logits in base 2, equal in all lanes: `problem.sinks_shape`.

    Args:
      sinks: float32[num_q_heads], natural-log units, not multiplied by `sm_scale`.
      problem: Static shapes.
    """
    heads, padded, _ = problem.sinks_shape
    rows = sinks.astype(jnp.float32).reshape(heads, problem.q_heads_per_kv_head)
    rows = jnp.pad(rows * online_softmax.LOG2_E, ((0, 0), (0, padded - rows.shape[1])))
    return jnp.broadcast_to(rows[..., None], problem.sinks_shape)


def uses_strided_loads(interpret: Any) -> bool:
    """Whether to use the chip's loads; only the race-finding interpreter can not run them."""
    return not isinstance(interpret, pltpu.InterpretParams)


def call(
    body: Callable[..., None],
    *,
    name: str,
    operands: tuple[jax.Array, ...],
    sinks: jax.Array | None,
    scratch_shapes: Any,
    problem: Problem,
    target: Target,
    interpret: Any,
) -> tuple[jax.Array, jax.Array]:
    """Runs a kernel body over one batch.

    Args:
      body: Takes scalar, operand, output and scratch refs in this order.
      name: Kernel name in dumps and profiles.
      operands: The four scalar arrays, q, kv_new, kv_cache.
      sinks: float32[num_q_heads], or None.
      scratch_shapes: Pytree of scratch.
      problem: Static shapes.
      target: Limits of the chip.
      interpret: None for the chip, else what `pallas_call` takes.

    Returns:
      (output in `problem.q_shape`, KV cache): the buffers of q and kv_cache, changed in place.

    Raises:
      ValueError: Operands do not have the problem's shapes, or sinks are missing or unexpected.
    """
    check_operands(operands, sinks, problem)
    hbm = pl.BlockSpec(memory_space=pl.ANY)
    scalars, arrays = operands[:NUM_SCALARS], operands[NUM_SCALARS:]
    if sinks is not None:
        arrays = (*arrays, prepare_sinks(sinks, problem))
    # `pl.ANY` lets XLA place small arrays in VMEM or CMEM, where the kernel's copies would be
    # other copies than `traffic` counts. The memory space in their types keeps them in HBM.
    result: Any = jax.ShapeDtypeStruct
    if interpret is None:
        arrays = tuple(pltpu.with_memory_space_constraint(x, pltpu.HBM) for x in arrays)
        result = pltpu.HBM
    q, _, kv_cache, *_ = arrays
    out, cache = pl.pallas_call(
        body,
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=NUM_SCALARS,
            grid=(1,),
            in_specs=[hbm] * len(arrays),
            out_specs=[hbm, hbm],
            scratch_shapes=(scratch_shapes,),
        ),
        out_shape=[result(q.shape, q.dtype), result(kv_cache.shape, kv_cache.dtype)],
        input_output_aliases={NUM_SCALARS: 0, NUM_SCALARS + 2: 1},
        compiler_params=_compiler_params(target),
        interpret=False if interpret is None else interpret,
        name=name,
    )(*scalars, *arrays)
    if interpret is None:
        # XLA (jax 0.10.2) fails on memory spaces in results that are all that a program returns.
        out, cache = jax.lax.optimization_barrier((out, cache))
    return out, cache


def _compiler_params(target: Target) -> pltpu.CompilerParams:
    """What the compiler is told beside the kernel."""
    return pltpu.CompilerParams(
        dimension_semantics=("arbitrary",),
        vmem_limit_bytes=target.vmem_bytes,
        # A page copy is a few bundles; its bounds check would double them. Sizes and pages
        # come from `Batch`, which refuses what does not fit.
        disable_bounds_checks=True,
        disable_semaphore_checks=True,
    )


def check_operands(
    operands: tuple[jax.Array, ...], sinks: jax.Array | None, problem: Problem
) -> None:
    """Refuses operands that are not what the kernel was built for."""
    seqs = problem.max_num_seqs
    expected = (
        ("kv_lens", (seqs,), "int32"),
        ("page_indices", (seqs * problem.pages_per_seq,), "int32"),
        ("cu_q_lens", (seqs + 1,), "int32"),
        ("distribution", (3,), "int32"),
        ("q", problem.q_shape, problem.q_dtype),
        ("kv_new", problem.kv_new_shape, problem.kv_dtype),
        ("kv_cache", problem.kv_cache_shape, problem.kv_dtype),
    )
    for (name, shape, dtype), operand in zip(expected, operands, strict=True):
        if operand.shape != shape or operand.dtype != jnp.dtype(dtype):
            raise ValueError(f"{name} is {operand.dtype}{operand.shape}, not {dtype}{shape}")
    if (sinks is not None) != problem.has_sinks:
        raise ValueError(f"has_sinks={problem.has_sinks}, but sinks is {sinks}")
