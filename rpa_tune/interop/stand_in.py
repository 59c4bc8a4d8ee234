"""Replaces an engine's attention function, and proves that the engine really calls what stands in.

Engines bind the function by name in many modules, and a module that did `from x import f` keeps
the old one without a word. `StandIn` therefore replaces every binding of the function that is
loaded, and counts the calls that reach it: jax calls Python when it traces, so one warm-up
compile must move the counter. Attention that an engine has beside it (context parallelism, latent
attention) stays its own, and `StandIn.watch` says so when it runs. Neighbours: `intercept.py` and
`sglang_jax.py`, one for each engine.
"""

import contextlib
import functools
import inspect
import logging
import sys
from collections.abc import Callable, Iterable, Iterator, Set
from dataclasses import dataclass, field
from typing import Any

from rpa_tune.errors import UsageError

_log = logging.getLogger("rpa_tune.interop")


@dataclass(kw_only=True, slots=True)
class StandIn:
    """Functions replaced in an engine.

    Attributes:
      calls: Times that a replaced function was called: once a trace, not once a step.
      places: `module.name` of every binding that was replaced.
      not_ours: Times that attention of the engine's own was called which nothing stands in for, by
        `module.name`.
    """

    calls: int = 0
    places: list[str] = field(default_factory=list)
    not_ours: dict[str, int] = field(default_factory=dict)
    _originals: list[tuple[Any, str, Any]] = field(default_factory=list)

    def replace(self, original: Any, replacement: Callable[..., Any], package: str) -> None:
        """Replaces every binding of `original` in the loaded modules of `package`."""

        @functools.wraps(original)
        def counted(*args: Any, **kwargs: Any) -> Any:
            result = replacement(*args, **kwargs)
            self.calls += 1
            return result

        self.places += self._rebind(original, counted, package)

    def watch(self, original: Any, where: str, package: str) -> None:
        """Leaves `original` in its place, and says so when it is called; once in the log.

        Args:
          original: Attention that nothing stands in for.
          where: Its module and name.
          package: Whose modules bind it.
        """

        @functools.wraps(original)
        def noted(*args: Any, **kwargs: Any) -> Any:
            if where not in self.not_ours:
                _log.warning("%s runs the engine's own kernel: nothing stands in for it", where)
            self.not_ours[where] = self.not_ours.get(where, 0) + 1
            return original(*args, **kwargs)

        self._rebind(original, noted, package)

    def _rebind(self, original: Any, new: Any, package: str) -> list[str]:
        """Binds `new` wherever the package has `original`; returns the places."""
        places = []
        for name, module in sorted(sys.modules.items()):
            if name != package and not name.startswith(f"{package}."):
                continue
            for attribute, value in list(vars(module).items()):
                if value is original:
                    self.put(module, attribute, new)
                    places.append(f"{name}.{attribute}")
        return places

    def put(self, owner: Any, name: str, new: Any) -> None:
        """Gives a module or class another attribute until `uninstall`."""
        self._originals.append((owner, name, getattr(owner, name)))
        setattr(owner, name, new)

    def require(self, needed: Iterable[str], hint: str) -> None:
        """Takes everything back if a place that the engine calls from was not replaced.

        Args:
          needed: `module.name` of every such place.
          hint: For an engine of another version.

        Raises:
          UsageError: The first that was not.
        """
        for place in needed:
            if place not in self.places:
                places = ", ".join(self.places)
                self.uninstall()
                module, _, name = place.rpartition(".")
                raise UsageError(
                    f"{module} does not hold the {name} that it calls", where=places, hint=hint
                )

    def uninstall(self) -> None:
        """Puts the functions back; traces that were made meanwhile stay as they are."""
        while self._originals:
            owner, name, original = self._originals.pop()
            setattr(owner, name, original)
        self.places.clear()

    def assert_intercepted(self) -> None:
        """Refuses a stand-in that nothing has called.

        Raises:
          UsageError: No call; the message names the places that were replaced.
        """
        if not self.calls:
            raise UsageError(
                "the engine has not called the stand-in: it runs its own attention"
                + "".join(f", {where} {n} times" for where, n in self.not_ours.items()),
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
