"""Stands in for an engine's attention function, and proves that the engine really calls it.

Engines bind the function by name in many modules, and a module that did `from x import f` keeps
the old one without a word. `StandIn` therefore replaces every binding of the function that is
loaded, and counts the calls that reach it: jax calls Python when it traces, so one warm-up
compile must move the counter.

```
stand_in = install(load_dispatcher())
with stand_in.expect_calls():
    engine.warm_up()
```
"""

import contextlib
import functools
import inspect
import sys
import types
from collections.abc import Callable, Iterator, Set
from dataclasses import dataclass, field
from typing import Any

from rpa_tune.dispatch.call import Features
from rpa_tune.dispatch.dispatcher import Dispatcher
from rpa_tune.dispatch.runtime import ragged_paged_attention
from rpa_tune.errors import UsageError
from rpa_tune.interop.tpu_inference import FUNCTIONS, LEADING, MODULES
from rpa_tune.public_kernels import VERSION

# Parameters that the stand-in understands beside the arrays: those of our call, and blocks of the
# hd64 kernel, which say nothing to ours.
_IGNORED = {"num_kv_pages_per_block", "num_queries_per_block"}
_KNOWN = {*LEADING, "attention_sink", *Features.__annotations__, *_IGNORED}
INTERFACE = "tpu_inference.layers.common.attention_interface"


@dataclass(kw_only=True, slots=True)
class StandIn:
    """Functions replaced in an engine.

    Attributes:
      calls: Times that a replaced function was called: once a trace, not once a step.
      places: `module.name` of every binding that was replaced.
    """

    calls: int = 0
    places: list[str] = field(default_factory=list)
    _originals: list[tuple[types.ModuleType, str, Any]] = field(default_factory=list)

    def replace(self, original: Any, replacement: Callable[..., Any], package: str) -> None:
        """Replaces every binding of `original` in the loaded modules of `package`."""

        @functools.wraps(original)
        def counted(*args: Any, **kwargs: Any) -> Any:
            self.calls += 1
            return replacement(*args, **kwargs)

        for name, module in sorted(sys.modules.items()):
            if name != package and not name.startswith(f"{package}."):
                continue
            for attribute, value in list(vars(module).items()):
                if value is original:
                    self._originals.append((module, attribute, original))
                    self.places.append(f"{name}.{attribute}")
                    setattr(module, attribute, counted)

    def uninstall(self) -> None:
        """Puts the functions back; traces that were made meanwhile stay as they are."""
        while self._originals:
            module, attribute, original = self._originals.pop()
            setattr(module, attribute, original)
        self.places.clear()

    def assert_intercepted(self) -> None:
        """Refuses a stand-in that nothing has called.

        Raises:
          UsageError: No call; the message names the places that were replaced.
        """
        if not self.calls:
            raise UsageError(
                "the engine has not called the stand-in: it runs its own attention",
                where=", ".join(self.places) or "no place was replaced",
                hint="install before the engine traces its model; a trace made before is kept",
            )

    @contextlib.contextmanager
    def expect_calls(self) -> Iterator[None]:
        """Refuses a block of code in which nothing calls the stand-in.

        Raises:
          UsageError: See `assert_intercepted`.
        """
        before, self.calls = self.calls, 0
        try:
            yield
            self.assert_intercepted()
        finally:
            self.calls += before


def install(dispatcher: Dispatcher, *, interpret: Any = None) -> StandIn:
    """Replaces the v3 and hd64 functions of a loaded tpu-inference.

    Args:
      dispatcher: Plans every call from its tables when it is traced.
      interpret: None to run on the TPU, or `pltpu.InterpretParams`.

    Raises:
      UsageError: tpu-inference is not loaded, its signature has drifted, or its layers look the
        function up under no name that can be replaced.
    """
    stand_in = StandIn()
    found = [kernel for kernel in ("v3", "hd64") if MODULES[kernel] in sys.modules]
    if not found:
        raise UsageError(
            "tpu-inference is not loaded: there is nothing to stand in for",
            hint=f"import {INTERFACE} first",
        )
    originals = []
    for kernel in found:
        module = sys.modules[MODULES[kernel]]
        name = FUNCTIONS.get(kernel, "ragged_paged_attention")
        function = getattr(module, name, None)
        check_drift(function, f"{MODULES[kernel]}.{name}")
        originals.append(function)
    attend = functools.partial(_attend, dispatcher, interpret)
    for function in originals:
        stand_in.replace(function, attend, "tpu_inference")
    if not any(place.startswith(INTERFACE) for place in stand_in.places):
        places = ", ".join(stand_in.places)
        stand_in.uninstall()
        raise UsageError(
            f"{INTERFACE} does not hold the function that its layers call",
            where=places,
            hint="USE_BATCHED_RPA_KERNEL must be off; otherwise tpu-inference has changed",
        )
    return stand_in


def check_drift(
    function: Any,
    where: str,
    *,
    leading: tuple[str, ...] = LEADING,
    known: Set[str] = _KNOWN,
    hint: str = f"rpa-tune knows tpu-inference {VERSION}",
) -> None:
    """Refuses a public function that the stand-in could not take the place of.

    Args:
      function: What the engine has.
      where: Its module and name.
      leading: Its arrays, in order.
      known: Every parameter that the stand-in understands.
      hint: For whoever has another version.

    Raises:
      UsageError: It is gone, its arrays come in another order, or it has an unknown parameter.
    """
    if function is None:
        raise UsageError("the public function is gone", where=where, hint=hint)
    names = list(inspect.signature(function).parameters)
    if tuple(names[: len(leading)]) != leading:
        got = names[: len(leading)]
        raise UsageError(f"signature has drifted: arrays are {got}", where=where, hint=hint)
    if unknown := sorted(set(names) - known):
        raise UsageError(
            f"signature has drifted: unknown parameters {unknown}", where=where, hint=hint
        )


def _attend(dispatcher: Dispatcher, interpret: Any, *arrays: Any, **features: Any) -> Any:
    """One call of the engine, by our kernels."""
    known = {name: value for name, value in features.items() if name not in _IGNORED}
    return ragged_paged_attention(*arrays, plan=dispatcher, interpret=interpret, **known)
