"""Keeps a server alive on trial: our kernel first, the engine's own beside it or in its place.

```
guard = Guard(shadow_calls=100, shadow_share=0.001)
stand_in = install(load_dispatcher(), guard=guard)
```

* **Fallback.** A call that our side refuses, or whose kernels do not compile, is left to the
  engine's function; one line says so for each key, and the server goes on.
* **Shadow.** The engine's function runs on the same inputs, and outputs and caches are compared on
  the device. A call that differs returns the engine's answer, logs key, plan and lengths, and all
  later calls of its key run the engine's function.

While a shadow is asked for, every call asks the host what to run (a callback a layer), and a
compared call holds two caches of its layer. So it is for a trial: a guard without `shadow_calls`
and `shadow_share` adds nothing to the program.
"""

import concurrent.futures
import functools
import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import io_callback

from rpa_tune.dispatch.plan import LaunchPlan

_log = logging.getLogger("rpa_tune.interop")
_OURS, _BOTH, _THEIRS = 0, 1, 2

# Largest difference of two outputs, as a share of the largest value, by bytes of the dtype: guesses
# that leave room for the public kernels' sums in bfloat16.
_BOUNDS = {1: 2.0**-3, 2: 2.0**-5, 4: 2.0**-8}

Attention = Callable[..., tuple[Any, ...]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Call:
    """One traced call of an engine.

    Attributes:
      key: What it is, in one line: shapes, dtypes, features.
      plans: Has what ours launches, once ours was traced.
      ours: Our side; takes the arrays.
      theirs: The engine's function; takes the same arrays.
      lengths: Places of kv_lens, cu_q_lens and distribution among the arrays.
      compiles: Whether ours runs on a device, and not under an interpreter.
      token_axis: Of the output.
    """

    key: str
    plans: list[LaunchPlan]
    ours: Attention
    theirs: Attention
    lengths: tuple[int, int, int]
    compiles: bool = True
    token_axis: int = 0


@dataclass(kw_only=True, slots=True)
class Guard:
    """What to do beside running our kernels.

    Attributes:
      fallback: Whether a call that ours cannot run is left to the engine's function; if not, it
        raises.
      compile_first: Whether ours is compiled by itself when a key is first traced, so that a
        failure is met then and not in the engine's program: one more compile a key. For `fallback`.
      shadow_calls: Calls of each key to compare, its first ones, on each device.
      shadow_share: Share of the later calls to compare, 0 to 1.
      bound: Largest allowed difference of the outputs, as a share of the largest value; None for
        2^-5 of 16-bit outputs, 2^-8 of float32. Caches must be equal.
      compared: Calls that were compared, by key.
      refused: Why a key runs the engine's function, by key.
    """

    fallback: bool = True
    compile_first: bool = True
    shadow_calls: int = 0
    shadow_share: float = 0.0
    bound: float | None = None
    compared: dict[str, int] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    _seen: dict[str, int] = field(default_factory=dict, repr=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def __post_init__(self) -> None:
        """Refuses what is no number of calls and no share.

        Raises:
          ValueError: The first of them.
        """
        if type(self.shadow_calls) is not int or self.shadow_calls < 0:
            raise ValueError(f"shadow_calls={self.shadow_calls!r} must be a whole number from 0 on")
        if not 0 <= self.shadow_share <= 1:
            raise ValueError(f"shadow_share={self.shadow_share!r} must be from 0 to 1")
        if self.bound is not None and not 0 < self.bound < 1:
            raise ValueError(f"bound={self.bound!r} must be between 0 and 1")

    @property
    def has_shadow(self) -> bool:
        """Whether any call is to be compared."""
        return bool(self.shadow_calls or self.shadow_share)

    def refuse(self, key: str, why: str) -> None:
        """From now on calls of this key run the engine's function; says so once."""
        with self._lock:
            if key in self.refused:
                return
            self.refused[key] = why
        _log.warning("the engine's own kernel serves %s: %s", key, why)

    def run(self, call: Call, arrays: Sequence[Any]) -> tuple[Any, ...]:
        """One call, by whichever side is to run it.

        Args:
          call: The two sides.
          arrays: What both take.

        Raises:
          Exception: What ours raises, without `fallback`.
        """
        if call.key in self.refused:
            return call.theirs(*arrays)
        try:
            if self.fallback and self.compile_first and call.compiles:
                _compile_alone(call.ours, arrays)
            results = call.ours(*arrays) if not self.has_shadow else self._beside(call, arrays)
        except Exception as error:
            if not self.fallback:
                raise
            self.refuse(call.key, first_line(error))
            return call.theirs(*arrays)
        return results

    def _beside(self, call: Call, arrays: Sequence[Any]) -> tuple[Any, ...]:
        """The host decides for each call which side runs, or both."""
        shape = jax.ShapeDtypeStruct((), jnp.int32)
        mode = io_callback(functools.partial(self._decide, call.key), shape)

        def both(*arrays: Any) -> tuple[Any, ...]:
            mine, engines = call.ours(*arrays), call.theirs(*arrays)
            lengths = [arrays[place] for place in call.lengths]
            num_tokens = lengths[1][lengths[2][2]]
            share, num_apart = _differences(mine, engines, num_tokens, call.token_axis)
            bound = self.bound or _BOUNDS[min(mine[0].dtype.itemsize, 4)]
            # Not `share > bound`: NaN is a difference, too.
            is_good = (share <= bound) & (num_apart == 0)
            report = functools.partial(self._report, call.key, _plan_text(call.plans), bound)
            jax.debug.callback(report, is_good, share, num_apart, *lengths)
            return tuple(jnp.where(is_good, a, b) for a, b in zip(mine, engines, strict=True))

        sides = (
            lambda *arrays: tuple(call.ours(*arrays)), both,
            lambda *arrays: tuple(call.theirs(*arrays)),
        )  # fmt: skip
        results: tuple[Any, ...] = jax.lax.switch(mode, sides, *arrays)
        return results

    def _decide(self, key: str) -> Any:
        with self._lock:
            if key in self.refused:
                return np.int32(_THEIRS)
            n = self._seen[key] = self._seen.get(key, 0) + 1
            is_due = int(n * self.shadow_share) > int((n - 1) * self.shadow_share)
        return np.int32(_BOTH if n <= self.shadow_calls or is_due else _OURS)

    def _report(
        self, key: str, plan: str, bound: float, is_good: Any, share: Any, num_apart: Any,
        *lengths: Any,
    ) -> None:  # fmt: skip
        with self._lock:
            self.compared[key] = self.compared.get(key, 0) + 1
        if bool(is_good):
            return
        kv_lens, cu_q_lens, distribution = (np.asarray(array) for array in lengths)
        n = int(distribution[2])
        what = f"outputs differ by {float(share):.3g} of the largest value (bound {bound:.3g})"
        _log.warning(
            "%s, %d elements of the cache differ\n  key: %s\n  plan: %s\n  lengths: q %s, kv %s, "
            "distribution %s",
            what, int(num_apart), key, plan, np.diff(cu_q_lens[: n + 1]).tolist(),
            kv_lens[:n].tolist(), distribution.tolist(),
        )  # fmt: skip
        self.refuse(key, what if not int(num_apart) else f"{what}, and caches differ")


def first_line(error: Exception) -> str:
    """`TypeOfError: its first line`, for a log."""
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0] if text else ''}"


def _plan_text(plans: Sequence[LaunchPlan]) -> str:
    """Families and configs, and where they come from."""
    return "; ".join(
        f"{launch.family} {launch.config} ({launch.why})"
        for plan in plans
        for launch in plan.launches
    )


def _compile_alone(function: Attention, arrays: Sequence[Any]) -> None:
    """Compiles a function for arrays of these shapes, outside of the trace that goes on.

    Raises:
      Exception: What tracing or compiling raises.
    """
    shapes = [None if a is None else jax.ShapeDtypeStruct(a.shape, a.dtype) for a in arrays]

    def attempt() -> None:
        jax.jit(function).lower(*shapes).compile()

    # The engine's trace, its mesh among it, belongs to this thread.
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        pool.submit(attempt).result()


def _differences(
    ours: Sequence[Any], theirs: Sequence[Any], num_tokens: Any, token_axis: int
) -> tuple[Any, Any]:
    """(largest difference of the outputs over their largest value, cache elements that differ).

    Rows of the output past the last sequence mean nothing, and are left out.
    """
    is_row = jax.lax.broadcasted_iota(jnp.int32, ours[0].shape, token_axis) < num_tokens
    mine, engines = (jnp.where(is_row, x[0].astype(jnp.float32), 0) for x in (ours, theirs))
    largest = jnp.maximum(jnp.max(jnp.abs(engines)), jnp.finfo(jnp.float32).tiny)
    share = jnp.max(jnp.abs(mine - engines)) / largest
    a, b = (x[1].astype(jnp.float32) for x in (ours, theirs))
    num_apart = jnp.sum((a != b) & ~(jnp.isnan(a) & jnp.isnan(b)))
    return share, num_apart
