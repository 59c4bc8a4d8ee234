"""Replaces an engine's attention function, and proves that the engine really calls what stands in.

Engines bind the function by name in many modules, and a module that did `from x import f` keeps
the old one without a word. `StandIn` therefore replaces every binding of the function that is
loaded, and counts the calls that reach it: jax calls Python when it traces, so one warm-up
compile must move the counter. Neighbours: `intercept.py` and `sglang_jax.py`, one for each engine.
"""

import contextlib
import functools
import inspect
import sys
import types
from collections.abc import Callable, Iterator, Set
from dataclasses import dataclass, field
from typing import Any

from rpa_tune.errors import UsageError


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


def check_drift(
    function: Any, where: str, *, leading: tuple[str, ...], known: Set[str], hint: str
) -> None:
    """Refuses a public function that the stand-in could not take the place of.

    Args:
      function: What the engine has.
      where: Its module and name.
      leading: Its arrays, in order.
      known: Every parameter that the stand-in understands.
      hint: For an engine of another version.

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
