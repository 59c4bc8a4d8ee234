"""What all families' launches share: specs, aliases, compiler parameters, names of refs."""

import dataclasses
import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from rpa_kernels import inputs, online_softmax, runs, tree
from rpa_kernels.batch import BatchArrays
from rpa_kernels.pages import Meta, PagedCache
from rpa_kernels.problem import Problem
from rpa_kernels.settings import under_defaults
from rpa_kernels.target import Target

Ref = Any


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


def runs_on_chip(interpret: Any) -> bool:
    """Whether to use the chip's loads; only the race-finding interpreter can not run them."""
    return not isinstance(interpret, pltpu.InterpretParams)


@dataclass(frozen=True, kw_only=True, slots=True)
class Refs:
    """What a kernel body works on.

    Attributes:
      meta: The scalar arrays of the batch.
      core_range: This core's scalars of the family's `partition`: [own start, end), of which
        each may be several; None when one core does everything.
      q: `problem.q_shape`.
      kv_new: `problem.kv_new_shape`; None where the cache is only read.
      sinks: `problem.sinks_shape`, or None.
      q_rope: `problem.q_rope_shape` with latents, else None.
      out: The same buffer as `q`.
      cache: `problem.kv_cache_shape`, to read and to write.
      lse: `problem.lse_shape` to write, or None.
      scratch: The family's scratch.
    """

    meta: Meta
    core_range: tuple[Any, Any] | None
    q: Ref
    kv_new: Ref | None
    sinks: Ref | None
    q_rope: Ref | None
    out: Ref
    cache: PagedCache
    lse: Ref | None
    scratch: Any


@dataclass(frozen=True, kw_only=True, slots=True)
class KernelLaunch:
    """A family's `launch`.

    Attributes:
      kernel: The body; takes `Refs`, `problem`, `config`, `target` and `on_chip`, which says
        which loads of `packed` to use.
      kernel_name: See `KernelFamily`.
      scratch_shapes: `(problem, config, target) ->` pytree of scratch.
      partition: See `KernelFamily`.
    """

    kernel: Callable[..., None]
    kernel_name: Callable[[Problem, Any], str]
    scratch_shapes: Callable[[Problem, Any, Target], Any]
    partition: Callable[..., Any]

    @under_defaults
    def __call__(
        self,
        q: jax.Array | tuple[jax.Array, jax.Array],
        kv_new: jax.Array,
        kv_cache: jax.Array,
        kv_lens: jax.Array,
        page_indices: jax.Array,
        cu_q_lens: jax.Array,
        distribution: jax.Array,
        *,
        problem: Problem,
        config: Any,
        target: Target,
        interpret: Any = None,
        sinks: jax.Array | None = None,
        page_runs: jax.Array | None = None,
        lse: jax.Array | None = None,
        tree_mask: jax.Array | None = None,
    ) -> tuple[jax.Array, ...]:
        """Attends the family's sequences.

        Args:
          q: `problem.q_shape`; its buffer becomes the output. With latents it, and after it
            `problem.q_rope_shape`.
          kv_new: `problem.kv_new_shape`. The kernel does not get it where
            `problem.update_kv_cache` is false, so that XLA makes nothing that nobody reads.
          kv_cache: `problem.kv_cache_shape`; updated in place.
          kv_lens: int32[max_num_seqs].
          page_indices: int32[max_num_seqs * pages_per_seq].
          cu_q_lens: int32[max_num_seqs + 1].
          distribution: int32[3].
          problem: Static shapes and features.
          config: Block sizes that pass `config.check`.
          target: The chip to compile for.
          interpret: None on the chip, else what `pallas_call` takes.
          sinks: float32[num_q_heads] when `problem.has_sinks`.
          page_runs: `runs.pack` of the lengths and pages, where the caller has it: it is the same
            for all layers of a step. Made here if None.
          lse: `problem.lse_shape` when `problem.return_lse`, what launches before this one wrote;
            its buffer becomes the result's. Made here if None.
          tree_mask: int32[max_num_tokens] when `problem.has_tree_mask`. Bit j of a token of a
            decode sequence: it sees new token j of its sequence. Itself it sees whatever its own
            bit says. Tokens of other sequences see those up to themselves.

        Returns:
          (q with the rows of the family's sequences replaced by their output, updated KV cache),
          and with `problem.return_lse` the log-sum-exp, in the same way, as the third.

        Raises:
          ValueError: Operands do not have the problem's shapes, or sinks or a tree mask are missing
            or unexpected, or there is a log-sum-exp that nobody asked for.
        """
        scalars: tuple[jax.Array, ...] = (kv_lens, page_indices, cu_q_lens, distribution)
        q, *rope = q if isinstance(q, tuple) else (q,)
        check_operands((*scalars, q, kv_new, kv_cache, *rope), sinks, lse, problem)
        tree.check(tree_mask, problem)
        names = (field.name for field in dataclasses.fields(BatchArrays))
        # The record of the host's arrays, here with those of the call.
        traced: dict[str, Any] = dict(zip(names, scalars, strict=True))
        arrays = BatchArrays(**traced)
        if page_runs is None:
            page_runs = runs.pack(arrays, problem, jnp)
        scalars = (kv_lens, page_runs, *scalars[2:])
        if target.num_cores > 1:
            scalars = (*scalars, self.partition(problem, config, arrays, target.num_cores, jnp))
        if tree_mask is not None:
            scalars = (*scalars, tree_mask)
        body = functools.partial(
            self.kernel,
            problem=problem,
            config=config,
            target=target,
            on_chip=runs_on_chip(interpret),
        )
        # Page behind page: see `pages.PagedCache`.
        flat_cache = kv_cache
        if not problem.is_seq_along_lane:
            flat_cache = kv_cache.reshape(-1, *kv_cache.shape[2:])
        # No operand that the kernel never reads: libtpu 0.0.43 to 0.0.45 can then read zeros.
        # Source: https://github.com/jax-ml/jax/issues/39744
        new = [kv_new] if problem.update_kv_cache else []
        operands = [q, *new, flat_cache]
        written = [0, len(new) + 1]
        operands += [] if sinks is None else [prepare_sinks(sinks, problem)]
        operands += rope
        if problem.return_lse:
            written.append(len(operands))
            operands.append(inputs.no_lse(problem) if lse is None else lse)
        out, cache, *more = _call(
            lambda *refs: body(_name_refs(refs, problem, target.num_cores)),
            name=self.kernel_name(problem, config),
            scalars=scalars,
            arrays=tuple(operands),
            written=tuple(written),
            scratch_shapes=self.scratch_shapes(problem, config, target),
            target=target,
            interpret=interpret,
        )
        return out, cache.reshape(kv_cache.shape), *more


def _call(
    body: Callable[..., None],
    *,
    name: str,
    scalars: tuple[jax.Array, ...],
    arrays: tuple[jax.Array, ...],
    written: tuple[int, ...],
    scratch_shapes: Any,
    target: Target,
    interpret: Any,
) -> tuple[jax.Array, ...]:
    """The `pallas_call`: (output, KV cache) in the buffers of q and kv_cache, maybe a log-sum-exp.

    `written` has the places of the arrays whose buffers become the results'.
    """
    hbm = pl.BlockSpec(memory_space=pl.ANY)
    # `pl.ANY` lets XLA place small arrays in VMEM or CMEM, where the kernel's copies would be
    # other copies than `traffic` counts. The memory space in their types keeps them in HBM.
    result: Any = jax.ShapeDtypeStruct
    if interpret is None:
        arrays = tuple(pltpu.with_memory_space_constraint(x, pltpu.HBM) for x in arrays)
        result = pltpu.HBM
    results = pl.pallas_call(
        body,
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=len(scalars),
            grid=(target.num_cores,),
            in_specs=[hbm] * len(arrays),
            out_specs=[hbm] * len(written),
            scratch_shapes=(scratch_shapes,),
        ),
        out_shape=[result(arrays[i].shape, arrays[i].dtype) for i in written],
        input_output_aliases={len(scalars) + i: place for place, i in enumerate(written)},
        compiler_params=_compiler_params(target),
        interpret=False if interpret is None else interpret,
        name=name,
    )(*scalars, *arrays)
    if interpret is None:
        # XLA (jax 0.10.2) fails on memory spaces in results that are all that a program returns.
        results = jax.lax.optimization_barrier(tuple(results))
    return tuple(results)


def _name_refs(refs: tuple[Any, ...], problem: Problem, num_cores: int) -> Refs:
    """Sorts out the refs of a body: scalars, operands, outputs, scratch."""
    kv_lens, page_runs, cu_q_lens, distribution, *rest, scratch = refs
    core_range = None
    if num_cores > 1:
        bounds = rest.pop(0)
        width = bounds.shape[0] // (num_cores + 1)
        core = pl.program_id(0)
        first, end = (tuple(bounds[(core + i) * width + j] for j in range(width)) for i in range(2))
        core_range = (first, end)
    tree_mask = rest.pop(0) if problem.has_tree_mask else None
    q = rest.pop(0)
    kv_new = rest.pop(0) if problem.update_kv_cache else None
    del rest[0]  # the cache to read: its buffer is that of the result
    sinks = rest.pop(0) if problem.has_sinks else None
    q_rope = rest.pop(0) if problem.is_latent else None
    if problem.return_lse:
        del rest[0]  # so is this one's
    out, cache, *lse = rest
    meta = Meta(
        kv_lens=kv_lens,
        page_runs=page_runs,
        cu_q_lens=cu_q_lens,
        distribution=distribution,
        pages_per_seq=problem.pages_per_seq,
        num_pages=problem.num_pages,
        tree_mask=tree_mask,
    )
    return Refs(
        meta=meta,
        core_range=core_range,
        q=q,
        kv_new=kv_new,
        sinks=sinks,
        q_rope=q_rope,
        out=out,
        cache=PagedCache(meta=meta, hbm=cache, problem=problem),
        lse=lse[0] if lse else None,
        scratch=scratch,
    )


def _compiler_params(target: Target) -> pltpu.CompilerParams:
    """What the compiler is told beside the kernel."""
    return pltpu.CompilerParams(
        # With as many grid points as cores, a parallel dimension is one point a core.
        dimension_semantics=("parallel" if target.num_cores > 1 else "arbitrary",),
        vmem_limit_bytes=target.vmem_bytes,
        # A page copy is a few bundles; its bounds check would double them. Sizes and pages
        # come from `Batch`, which refuses what does not fit.
        disable_bounds_checks=True,
        disable_semaphore_checks=True,
    )


def check_operands(
    operands: tuple[jax.Array, ...],
    sinks: jax.Array | None,
    lse: jax.Array | None,
    problem: Problem,
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
        *([("q_rope", problem.q_rope_shape, problem.q_dtype)] if problem.is_latent else []),
    )
    if len(operands) != len(expected):
        raise ValueError(f"q must be {'two arrays' if problem.is_latent else 'one array'}")
    for (name, shape, dtype), operand in zip(expected, operands, strict=True):
        if operand.shape != shape or operand.dtype != jnp.dtype(dtype):
            raise ValueError(f"{name} is {operand.dtype}{operand.shape}, not {dtype}{shape}")
    if (sinks is not None) != problem.has_sinks:
        raise ValueError(f"has_sinks={problem.has_sinks}, but sinks is {sinks}")
    if lse is None:
        return
    if not problem.return_lse:
        raise ValueError("return_lse=False, but there is a log-sum-exp to write to")
    if lse.shape != problem.lse_shape or lse.dtype != jnp.float32:
        raise ValueError(f"lse is {lse.dtype}{lse.shape}, not float32{problem.lse_shape}")
