"""Runs a launch plan: the public RPA v3 call, with the plan in place of block sizes.

Arguments, meaning and validation are those of the public function; what this call adds is `plan`,
`sinks` and `interpret`. Nothing is looked up here: the plan says everything.
"""

import functools
from typing import Any, TypedDict, Unpack

import jax
import jax.numpy as jnp
import numpy as np

from rpa_kernels import inputs, load_family
from rpa_kernels.problem import Problem
from rpa_tune.dispatch.plan import LaunchPlan
from rpa_tune.tables.key import differences, tuning_key


class Features(TypedDict, total=False):
    """Keyword arguments of the public function that change what is computed; all static.

    Attributes:
      use_causal_mask: Whether a query sees only keys at or before its own position.
      update_kv_cache: Whether new keys and values are written to the cache.
      skip_kv_mask: A promise of the caller that lets the public kernel skip work, only without a
        causal mask; these kernels need no such promise and compute the same either way.
      sm_scale: Factor on q @ k.T.
      sliding_window: Tokens a query may look back, or None.
      soft_cap: Cap of the logits, or None.
      out_dtype: Dtype of the output, or None.
      mask_value: Logit of a masked position, or None.
      q_scale: Scale of the queries, or None.
      k_scale: Scale of the stored keys, or None.
      v_scale: Scale of the stored values, or None.
      chunk_prefill_size: Static query length of the sequences in the prefill slot, or None.
    """

    use_causal_mask: bool
    update_kv_cache: bool
    skip_kv_mask: bool
    sm_scale: float
    sliding_window: int | None
    soft_cap: float | None
    out_dtype: Any
    mask_value: float | None
    q_scale: float | None
    k_scale: float | None
    v_scale: float | None
    chunk_prefill_size: int | None


def ragged_paged_attention(
    queries: jax.Array,
    keys: jax.Array,
    values: jax.Array,
    kv_cache: jax.Array,
    *metadata: jax.Array,
    plan: LaunchPlan,
    sinks: jax.Array | None = None,
    interpret: Any = None,
    **features: Unpack[Features],
) -> tuple[jax.Array, jax.Array]:
    """Ragged paged attention over decode, prefill and mixed sequences of one batch.

    Queries and cache are donated, as by the public function: the output takes the queries' place
    and the cache is updated in its own. The public function donates keys and values too, which no
    output can take; here they stay usable.

    Args:
      queries: [max_num_tokens, num_q_heads, head_dim].
      keys: New keys, [max_num_tokens, num_kv_heads, head_dim].
      values: New values, the same shape.
      kv_cache: [num_pages, page_size, packed heads, packing, padded head_dim].
      metadata: kv_lens int32[max_num_seqs], page_indices int32[max_num_seqs * pages_per_seq],
        cu_q_lens int32[max_num_seqs + 1] and distribution int32[3], in this order.
      plan: From `Dispatcher.plan`; static to `jit`.
      sinks: float32[num_q_heads], or None.
      interpret: None to run on the TPU, or `pltpu.InterpretParams`.
      features: See `Features`.

    Returns:
      (output [max_num_tokens, num_q_heads, head_dim], updated KV cache).

    Raises:
      ValueError: Shapes, dtypes or features that cannot be, or that are not the plan's.
    """
    unknown = set(features) - set(Features.__annotations__)
    if unknown:
        raise TypeError(f"unknown arguments: {', '.join(sorted(unknown))}")
    kv_lens, page_indices, cu_q_lens, distribution = metadata
    problem = problem_of(
        queries, keys, values, kv_cache, *metadata[:3], has_sinks=sinks is not None, **features
    )
    _check_plan(plan, problem)
    if isinstance(distribution, np.ndarray):
        _check_served(plan, distribution)
    return _run(  # type: ignore[no-any-return]
        queries, keys, values, kv_cache,
        (jnp.asarray(kv_lens), jnp.asarray(page_indices), jnp.asarray(cu_q_lens),
         jnp.asarray(distribution), sinks),
        problem=problem, plan=plan, interpret=interpret,
    )  # fmt: skip


def problem_of(
    queries: Any,
    keys: Any,
    values: Any,
    kv_cache: Any,
    *metadata: Any,
    has_sinks: bool = False,
    **features: Unpack[Features],
) -> Problem:
    """The problem that a call's arrays and features describe.

    Args:
      queries: [max_num_tokens, num_q_heads, head_dim]; only shape and dtype are read.
      keys: [max_num_tokens, num_kv_heads, head_dim].
      values: The same.
      kv_cache: See `ragged_paged_attention`.
      metadata: kv_lens, page_indices, cu_q_lens.
      has_sinks: Whether sinks are given.
      features: See `Features`.

    Raises:
      ValueError: The shapes or dtypes do not belong together; the message names them.
    """
    _check_shapes(queries, keys, values, kv_cache)
    _check_metadata(*metadata)
    num_seqs = metadata[0].shape[0]
    causal = features.get("use_causal_mask", True)
    if causal and features.get("skip_kv_mask", False):
        raise ValueError("skip_kv_mask=True needs use_causal_mask=False")
    chunk = features.get("chunk_prefill_size")
    if chunk is not None and chunk <= 0:
        raise ValueError(f"chunk_prefill_size={chunk} must be above zero")
    out_dtype = features.get("out_dtype")
    return Problem(
        num_q_heads=queries.shape[1],
        num_kv_heads=keys.shape[1],
        head_dim=queries.shape[2],
        page_size=kv_cache.shape[1],
        max_num_tokens=queries.shape[0],
        max_num_seqs=num_seqs,
        pages_per_seq=metadata[1].shape[0] // num_seqs,
        num_pages=kv_cache.shape[0],
        q_dtype=str(queries.dtype),
        kv_dtype=str(kv_cache.dtype),
        out_dtype=None if out_dtype is None else str(jnp.dtype(out_dtype)),
        sm_scale=features.get("sm_scale", 1.0),
        sliding_window=features.get("sliding_window"),
        soft_cap=features.get("soft_cap"),
        mask_value=features.get("mask_value"),
        causal=causal,
        update_kv_cache=features.get("update_kv_cache", True),
        has_sinks=has_sinks,
        q_scale=features.get("q_scale"),
        k_scale=features.get("k_scale"),
        v_scale=features.get("v_scale"),
    )


def _check_shapes(queries: Any, keys: Any, values: Any, kv_cache: Any) -> None:
    if not queries.ndim == keys.ndim == 3:
        raise ValueError(
            f"queries and keys must be [tokens, heads, head_dim], "
            f"got {queries.shape} and {keys.shape}"
        )
    if keys.shape != values.shape:
        raise ValueError(f"keys {keys.shape} and values {values.shape} must have one shape")
    if (queries.shape[0], queries.shape[2]) != (keys.shape[0], keys.shape[2]):
        raise ValueError(
            f"queries {queries.shape} and keys {keys.shape} must agree in tokens and head_dim"
        )
    if not kv_cache.dtype == keys.dtype == values.dtype:
        raise ValueError(
            f"kv_cache {kv_cache.dtype}, keys {keys.dtype} and values {values.dtype} "
            "must have one dtype; quantise new keys and values before the call"
        )
    if kv_cache.ndim != 5:
        raise ValueError(f"kv_cache must have 5 dimensions, got {kv_cache.shape}")


def _check_metadata(kv_lens: Any, page_indices: Any, cu_q_lens: Any) -> None:
    for name, array in (
        ("kv_lens", kv_lens), ("page_indices", page_indices), ("cu_q_lens", cu_q_lens)
    ):  # fmt: skip
        if array.ndim != 1 or array.dtype != jnp.int32:
            raise ValueError(f"{name} must be int32 and flat, got {array.dtype}{array.shape}")
    num_seqs = kv_lens.shape[0]
    if page_indices.shape[0] % num_seqs or cu_q_lens.shape[0] != num_seqs + 1:
        raise ValueError(
            f"kv_lens says {num_seqs} sequences; page_indices has {page_indices.shape[0]} entries "
            f"and cu_q_lens {cu_q_lens.shape[0]}, need a multiple of it and one more"
        )


def _check_plan(plan: LaunchPlan, problem: Problem) -> None:
    """A plan serves the calls of its own tuning key, and its configs must fit this one."""
    if problem != plan.problem:
        ours, theirs = (tuning_key(p, plan.target.chip, "") for p in (problem, plan.problem))
        if wrong := differences(ours, theirs):
            text = ", ".join(f"{name}={a!r} (plan: {b!r})" for name, (a, b) in wrong.items())
            raise ValueError(f"this plan was made for another problem: {text}")
        for launch in plan.launches:
            if blocked := launch.config.check(problem, plan.target):
                raise ValueError(f"{launch.family} config of the plan does not fit: {blocked}")


def _check_served(plan: LaunchPlan, distribution: Any) -> None:
    d, p, n = (int(end) for end in distribution)
    if left := plan.unserved((d, p, n)):
        raise ValueError(
            f"the plan launches {plan.families or 'nothing'}, "
            f"but distribution ({d}, {p}, {n}) has {left} sequences that it would leave out"
        )


@functools.partial(
    jax.jit,
    static_argnames=("problem", "plan", "interpret"),
    donate_argnames=("queries", "kv_cache"),
)
def _run(
    queries: jax.Array,
    keys: jax.Array,
    values: jax.Array,
    kv_cache: jax.Array,
    metadata: tuple[jax.Array, jax.Array, jax.Array, jax.Array, jax.Array | None],
    *,
    problem: Problem,
    plan: LaunchPlan,
    interpret: Any,
) -> tuple[jax.Array, jax.Array]:
    """Lays out the operands once and chains the kernels over them."""
    kv_lens, page_indices, cu_q_lens, distribution, sinks = metadata
    if kv_cache.shape != problem.kv_cache_shape:
        raise ValueError(f"kv_cache is {kv_cache.shape}, must be {problem.kv_cache_shape}")
    distribution = jnp.stack(
        [jnp.asarray(end, jnp.int32) for end in plan.effective_distribution(*distribution)]
    )
    q, kv_new = inputs.prepare(queries, keys, values, problem)
    for launch in plan.launches:
        q, kv_cache = load_family(launch.family).launch(
            q, kv_new, kv_cache, kv_lens, page_indices, cu_q_lens, distribution,
            problem=problem, config=launch.config, target=plan.target, interpret=interpret,
            sinks=sinks,
        )  # fmt: skip
    return inputs.finish(q, problem), kv_cache
