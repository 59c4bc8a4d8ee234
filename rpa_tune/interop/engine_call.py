"""An engine's attention call, by our kernels: what both stand-ins and the plug-in share."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp

from rpa_kernels.problem import MAX_DECODE_QUERY, Problem
from rpa_tune.dispatch.attention import mla_ragged_paged_attention, ragged_paged_attention
from rpa_tune.dispatch.call import Arrays, problem_of
from rpa_tune.dispatch.dispatcher import Dispatcher
from rpa_tune.dispatch.mla_call import LatentArrays, latent_problem_of
from rpa_tune.dispatch.plan import LaunchPlan
from rpa_tune.dispatch.runtime import Executables, full_step
from rpa_tune.errors import UsageError
from rpa_tune.interop.guard import Call, Guard, first_line
from rpa_tune.tables.key import tuning_key
from rpa_tune.tables.step import Step


def _as_they_are(*arrays: Any) -> Sequence[Any]:
    return arrays


@dataclass(frozen=True, kw_only=True, slots=True)
class Form:
    """How an engine's call is said in ours.

    Attributes:
      to_ours: The engine's arrays to those of `ragged_paged_attention`, in the order of `Arrays`.
      from_ours: (our results, the engine's arrays) to the engine's results.
      lengths: Places of kv_lens, cu_q_lens and distribution among the engine's arrays.
    """

    to_ours: Callable[..., Sequence[Any]] = _as_they_are
    from_ours: Callable[..., tuple[Any, ...]] = lambda results, *_: results
    lengths: tuple[int, int, int] = (4, 6, 7)


PUBLIC = Form()  # that of tpu-inference, which is ours
LATENT_LENGTHS = (5, 7, 8)  # `Form.lengths` of its latent call


@dataclass(kw_only=True, slots=True)
class _Planner:
    """A dispatcher's plans for one call, kept for a log.

    Attributes:
      dispatcher: Makes them.
      only_mixed: Whether the mixed kernel is to serve every sequence.
      made: The last plan.
      compiled: The dispatcher's.
    """

    dispatcher: Dispatcher
    only_mixed: bool
    made: list[LaunchPlan] = field(default_factory=list)
    compiled: Executables | None = None

    def __post_init__(self) -> None:
        """Executables go with the plans."""
        self.compiled = self.dispatcher.compiled

    def plan(self, problem: Problem, step: Step) -> LaunchPlan:
        """As `Dispatcher.plan`."""
        if self.only_mixed:
            step = Step(mixed=step.decode + step.prefill + step.mixed)
        self.made[:] = [self.dispatcher.plan(problem, step)]
        return self.made[0]


@dataclass(frozen=True, kw_only=True, slots=True)
class Served:
    """Runs an engine's calls.

    Attributes:
      dispatcher: Plans every call from its tables when it is traced.
      interpret: None to run on the TPU, or `pltpu.InterpretParams`.
      guard: What else runs, or None: our kernels alone, and what they refuse is an error.
    """

    dispatcher: Dispatcher
    interpret: Any = None
    guard: Guard | None = None

    def attend(
        self,
        arrays: Sequence[Any],
        features: dict[str, Any],
        *,
        theirs: Callable[..., tuple[Any, ...]] | None = None,
        form: Form = PUBLIC,
        query_size: int = 1,
        unserved: Sequence[str] = (),
    ) -> tuple[Any, ...]:
        """One call of the engine.

        Args:
          arrays: The engine's.
          features: Keyword arguments of `ragged_paged_attention`.
          theirs: The engine's function of the same arrays, for the guard; None where it has none.
          form: What the arrays are.
          query_size: Most new tokens of a sequence in the decode slot; where it is more than our
            decode kernel takes, the mixed kernel serves all.
          unserved: Features of this call that ours does not have.

        Returns:
          The engine's results.

        Raises:
          UsageError: There are `unserved` features, and no guard that falls back.
          ValueError: What `ragged_paged_attention` refuses, likewise.
        """
        only_mixed = query_size > MAX_DECODE_QUERY
        planner = _Planner(dispatcher=self.dispatcher, only_mixed=only_mixed)
        if 1 < query_size <= MAX_DECODE_QUERY:
            features = {**features, "decode_query_size": query_size}

        def ours(*arrays: Any) -> tuple[Any, ...]:
            given = Arrays(*form.to_ours(*arrays))
            if only_mixed:
                given = given._replace(distribution=jnp.asarray(given.distribution).at[:2].set(0))
            results = ragged_paged_attention(
                *given[:9], tree_mask=given[9], plan=planner, interpret=self.interpret, **features
            )
            return form.from_ours(results, *arrays)

        falls_back = self.guard is not None and self.guard.fallback and theirs is not None
        if unserved and not falls_back:
            raise UsageError(
                f"{' and '.join(unserved)}: not served by our kernels",
                hint="with a Guard the engine's function serves such calls",
            )
        if self.guard is None or theirs is None:
            return ours(*arrays)
        key, names = self._key(arrays, features, form), " and ".join(unserved)
        if unserved:
            self.guard.refuse(f"{key}, {names}", f"{names} not served by ours")
            return theirs(*arrays)
        call = Call(
            key=key, plans=planner.made, ours=ours, theirs=theirs, lengths=form.lengths,
            compiles=self.interpret is None,
        )  # fmt: skip
        return self.guard.run(call, arrays)

    def attend_latent(
        self,
        arrays: Sequence[Any],
        features: dict[str, Any],
        *,
        theirs: Callable[..., tuple[Any, ...]],
    ) -> tuple[Any, ...]:
        """One call of the engine for layers with latents, whose arrays are those of our call.

        Args:
          arrays: The engine's.
          features: Keyword arguments of `mla_ragged_paged_attention`.
          theirs: The engine's function of the same arrays, for the guard.

        Raises:
          ValueError: What `mla_ragged_paged_attention` refuses, without a guard that falls back.
        """
        plans: list[LaunchPlan] = []

        def ours(*arrays: Any) -> tuple[Any, ...]:
            problem = latent_problem_of(LatentArrays(*arrays), **features)
            plan = self.dispatcher.plan(problem, full_step(problem, has_prefill=False))
            plans[:] = [plan]
            return mla_ragged_paged_attention(
                *arrays, plan=plan, interpret=self.interpret, **features
            )

        if self.guard is None:
            return ours(*arrays)
        call = Call(
            key=self._latent_key(arrays, features), plans=plans, ours=ours, theirs=theirs,
            lengths=LATENT_LENGTHS, compiles=self.interpret is None, token_axis=1,
        )  # fmt: skip
        return self.guard.run(call, arrays)

    def _latent_key(self, arrays: Sequence[Any], features: dict[str, Any]) -> str:
        try:
            problem = latent_problem_of(LatentArrays(*arrays), **features)
        except (TypeError, ValueError) as error:
            return _unread(arrays, error)
        return _text(problem, self.dispatcher.chip.name)

    def _key(self, arrays: Sequence[Any], features: dict[str, Any], form: Form) -> str:
        """What a call is called in a log, and refused by."""
        shapes = [None if a is None else jax.ShapeDtypeStruct(a.shape, a.dtype) for a in arrays]
        try:
            problem = problem_of(Arrays(*jax.eval_shape(form.to_ours, *shapes)), **features)
        except (TypeError, ValueError) as error:
            return _unread(shapes, error)
        return _text(problem, self.dispatcher.chip.name)


def _unread(arrays: Sequence[Any], error: Exception) -> str:
    """A call that ours cannot read, by its arrays."""
    text = ", ".join(f"{a.dtype}{list(a.shape)}" for a in arrays if a is not None)
    return f"a call with {text} ({first_line(error)})"


def _text(problem: Problem, chip: str) -> str:
    """Sizes as the call has them, features as the key of a row says them."""
    key = str(tuning_key(problem, chip, "attention"))
    exact = f"{problem.max_num_tokens} tokens, {problem.max_num_seqs} seqs"
    reach = f", {problem.reach_text}" if problem.reach_text else ""
    return f"{key} (exactly {exact}, context {problem.max_context_tokens}{reach})"
