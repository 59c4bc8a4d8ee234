"""Runs a launch plan on the arrays of a call."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, Protocol, Unpack

import jax
import jax.numpy as jnp
import numpy as np

from rpa_kernels import inputs, load_family
from rpa_kernels.problem import Problem
from rpa_kernels.settings import under_defaults
from rpa_tune.dispatch.call import Arrays, Features, check_lengths, problem_of
from rpa_tune.dispatch.mla_call import LatentArrays, LatentFeatures, latent_problem_of
from rpa_tune.dispatch.plan import LaunchPlan
from rpa_tune.tables.key import differences, tuning_key
from rpa_tune.tables.step import Lengths, Step


class Executables(Protocol):
    """Plans that need no compile: a `compiled.CompiledPlans`."""

    def run(self, plan: LaunchPlan, arguments: Sequence[Any]) -> tuple[jax.Array, ...] | None:
        """Runs a plan, or returns None when it has to be compiled."""
        ...


class Planner(Protocol):
    """What makes plans: a `Dispatcher`.

    Attributes:
      compiled: Executables of plans, or None.
    """

    compiled: Executables | None

    def plan(self, problem: Problem, step: Step) -> LaunchPlan:
        """The kernels for one step."""
        ...


def attend(
    arrays: Arrays,
    *,
    plan: LaunchPlan | Planner,
    compiled: Executables | None = None,
    interpret: Any = None,
    page_runs: Any = None,
    **features: Unpack[Features],
) -> tuple[jax.Array, ...]:
    """The call of `ragged_paged_attention`, with an artefact's executables where there are any.

    Args:
      arrays: Of the call.
      plan: What to launch, or what plans it.
      compiled: Executables to run instead of compiling, or None.
      interpret: As there.
      page_runs: As there.
      features: As there.

    Raises:
      ArtifactError: The artefact was changed since it was opened.
      TypeError: As there.
      ValueError: As there.
    """
    call = _Call(
        arrays=arrays,
        problem=problem_of(arrays, **features),
        has_prefill=features.get("chunk_prefill_size") is not None,
    )
    return _attend(call, plan=plan, compiled=compiled, interpret=interpret, page_runs=page_runs)


def attend_latent(
    arrays: LatentArrays,
    *,
    plan: LaunchPlan | Planner,
    compiled: Executables | None = None,
    interpret: Any = None,
    page_runs: Any = None,
    **features: Unpack[LatentFeatures],
) -> tuple[jax.Array, ...]:
    """The call of `mla_ragged_paged_attention`; see `attend`."""
    call = _Call(
        arrays=arrays,
        problem=latent_problem_of(arrays, **features),
        has_prefill=features.get("chunk_prefill_size") is not None,
    )
    return _attend(call, plan=plan, compiled=compiled, interpret=interpret, page_runs=page_runs)


class _Call(NamedTuple):
    """A call that was checked, and whether the caller uses the prefill slot."""

    arrays: Any
    problem: Problem
    has_prefill: bool


def _attend(
    call: _Call,
    *,
    plan: LaunchPlan | Planner,
    compiled: Executables | None,
    interpret: Any,
    page_runs: Any,
) -> tuple[jax.Array, ...]:
    """`attend`, whatever the arrays are."""
    arrays, problem, has_prefill = call
    if page_runs is not None:
        _check_page_runs(page_runs, arrays.page_indices)
    metadata = (arrays.kv_lens, arrays.page_indices, arrays.cu_q_lens, arrays.distribution)
    on_host = all(isinstance(array, np.ndarray) for array in metadata)
    if on_host:
        check_lengths(arrays, problem)
    if not isinstance(plan, LaunchPlan):
        step = _step_of(arrays) if on_host else full_step(problem, has_prefill=has_prefill)
        plan = plan.plan(problem, step)
    _check_plan(plan, problem)
    if plan.problem != problem:
        plan = replace(plan, problem=problem)
    if isinstance(arrays.distribution, np.ndarray):
        _check_served(plan, arrays.distribution)
    arguments = arrays.flat()
    results = None
    if compiled is not None and interpret is None:
        # An executable makes the runs itself: its arguments are those of the public call.
        results = compiled.run(plan, arguments)
    if results is not None:
        return results
    return _jitted(problem)(  # type: ignore[no-any-return]
        *arguments, problem=problem, plan=plan, interpret=interpret, page_runs=page_runs
    )


def _check_page_runs(page_runs: Any, page_indices: Any) -> None:
    if page_runs.shape != page_indices.shape or page_runs.dtype != jnp.int32:
        raise ValueError(
            f"page_runs must be int32{page_indices.shape} as page_indices is, "
            f"got {page_runs.dtype}{page_runs.shape}; `rpa_tune.page_runs` makes it"
        )


def full_step(problem: Problem, *, has_prefill: bool) -> Step:
    """A step that needs every family and fills every sequence's pages: for unknown lengths.

    Args:
      problem: Static shapes.
      has_prefill: Whether the caller uses the prefill slot.
    """
    seqs, context = problem.max_num_seqs, problem.max_context_tokens

    def lengths(num_seqs: int, num_tokens: int) -> Lengths:
        return Lengths(
            num_seqs=num_seqs, num_tokens=num_tokens, longest_context_tokens=context,
            total_context_tokens=num_seqs * context,
        )  # fmt: skip

    chunked = lengths(1, problem.max_num_tokens)
    return Step(
        decode=lengths(seqs, seqs * problem.decode_query_size),
        prefill=chunked if has_prefill else Lengths(),
        mixed=chunked,
    )


def _step_of(arrays: Any) -> Step:
    num_seqs = int(arrays.distribution[2])
    q_lens = np.diff(arrays.cu_q_lens[: num_seqs + 1])
    return Step.of(q_lens.tolist(), arrays.kv_lens[:num_seqs].tolist(), arrays.distribution)


def _check_plan(plan: LaunchPlan, problem: Problem) -> None:
    """A plan serves the calls of its own tuning key, and its configs must fit this one."""
    if problem != plan.problem:
        ours, theirs = (tuning_key(p, plan.target.chip, "") for p in (problem, plan.problem))
        if wrong := differences(ours, theirs):
            text = ", ".join(f"{name}={a!r} (plan: {b!r})" for name, (a, b) in wrong.items())
            raise ValueError(f"this plan was made for another problem: {text}")
        for launch in plan.launches:
            check = load_family(launch.family).check
            if blocked := check(problem, launch.config, plan.target):
                raise ValueError(f"{launch.family} config of the plan does not fit: {blocked}")


def _check_served(plan: LaunchPlan, distribution: Any) -> None:
    d, p, n = (int(end) for end in distribution)
    if left := plan.unserved((d, p, n)):
        raise ValueError(
            f"the plan launches {plan.families or 'nothing'}, "
            f"but distribution ({d}, {p}, {n}) has {left} sequences that it would leave out"
        )


def flat_call(plan: LaunchPlan) -> tuple[Callable[..., Any], tuple[int, ...]]:
    """What is compiled for a plan: a function of the call's arrays, and which it overwrites.

    Args:
      plan: Its problem is that of the arrays.

    Returns:
      The function, and the positions of the arrays whose memory its results take.
    """
    is_latent = plan.problem.is_latent
    launch, arrays = (_launch_latent, LatentArrays) if is_latent else (_launch_all, Arrays)
    function = functools.partial(launch, problem=plan.problem, plan=plan, interpret=None)
    return function, tuple(arrays._fields.index(name) for name in _donated(plan.problem))


@under_defaults
def _launch_all(
    queries: jax.Array,
    keys: jax.Array,
    values: jax.Array,
    kv_cache: jax.Array,
    *metadata: Any,
    problem: Problem,
    plan: LaunchPlan,
    interpret: Any,
    page_runs: jax.Array | None = None,
) -> tuple[jax.Array, ...]:
    """Lays out the operands once and chains the kernels over them."""
    scalars, rest = _scalars(metadata[:4], plan), list(metadata[4:])
    sinks = rest.pop(0) if problem.has_sinks else None
    tree_mask = rest.pop(0) if problem.has_tree_mask else None
    q, kv_new = inputs.prepare(queries, keys, values, problem)
    lse = [inputs.no_lse(problem)] if problem.return_lse else []
    for launch in plan.launches:
        q, kv_cache, *lse = load_family(launch.family).launch(
            q, kv_new, kv_cache, *scalars,
            problem=problem, config=launch.config, target=plan.target, interpret=interpret,
            sinks=sinks, page_runs=page_runs, lse=lse[0] if lse else None, tree_mask=tree_mask,
        )  # fmt: skip
    return inputs.finish(q, problem), kv_cache, *(inputs.finish_lse(x, problem) for x in lse)


def _scalars(metadata: Sequence[Any], plan: LaunchPlan) -> list[jax.Array]:
    """Lengths, pages and the distribution that the kernels are given."""
    *lengths, distribution = map(jnp.asarray, metadata)
    ends = plan.effective_distribution(*distribution)
    return [*lengths, jnp.stack([jnp.asarray(end, jnp.int32) for end in ends])]


@under_defaults
def _launch_latent(
    ql_nope: jax.Array,
    q_pe: jax.Array,
    new_kv_c: jax.Array,
    new_k_pe: jax.Array,
    cache_kv: jax.Array,
    *metadata: Any,
    problem: Problem,
    plan: LaunchPlan,
    interpret: Any,
    page_runs: jax.Array | None = None,
) -> tuple[jax.Array, ...]:
    """`_launch_all` of latent attention."""
    scalars = _scalars(metadata, plan)
    (nope, rope), kv_new = inputs.prepare_latent(ql_nope, q_pe, new_kv_c, new_k_pe, problem)
    for launch in plan.launches:
        nope, cache_kv = load_family(launch.family).launch(
            (nope, rope), kv_new, cache_kv, *scalars, problem=problem, config=launch.config,
            target=plan.target, interpret=interpret, page_runs=page_runs,
        )  # fmt: skip
    return inputs.finish_latent(nope, problem), cache_kv


_IN_PLACE = ("queries", "kv_cache")


def _donated(problem: Problem) -> tuple[str, ...]:
    """Arguments whose memory the results take."""
    if problem.is_latent:
        return ("cache_kv",)  # queries are turned round on their way in and out, as there
    return _IN_PLACE if problem.out_dtype is None and not problem.fuses_kv else ("kv_cache",)


_STATIC = ("problem", "plan", "interpret")
_run = jax.jit(_launch_all, static_argnames=_STATIC, donate_argnames="kv_cache")
_run_in_place = jax.jit(_launch_all, static_argnames=_STATIC, donate_argnames=_IN_PLACE)
_run_latent = jax.jit(_launch_latent, static_argnames=_STATIC, donate_argnames="cache_kv")


def _jitted(problem: Problem) -> Callable[..., Any]:
    """The function that serves a problem, compiled when it is called."""
    if problem.is_latent:
        return _run_latent
    return _run_in_place if _donated(problem) == _IN_PLACE else _run
