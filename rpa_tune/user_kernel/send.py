"""Pickles a function and its arguments for a worker; what a module names is sent as that name."""

import importlib
import io
import operator
import pickle
import sys
import types
from typing import Any


def by_name(module: str, name: str) -> Any:
    """What a module calls by a dotted name."""
    return operator.attrgetter(name)(importlib.import_module(module))


class _Pickler(pickle.Pickler):
    """Sends a decorated function (`jax.jit`) by its name too: pickle looks at what it wraps."""

    def reducer_override(self, obj: Any) -> Any:
        """By name, where that is the very object; as ever elsewhere."""
        module, name = getattr(obj, "__module__", None), getattr(obj, "__qualname__", None)
        if isinstance(obj, type | types.FunctionType) or not (
            isinstance(module, str) and isinstance(name, str)
        ):
            return NotImplemented
        try:
            found = operator.attrgetter(name)(sys.modules[module])
        except (KeyError, AttributeError):
            return NotImplemented
        return (by_name, (module, name)) if found is obj else NotImplemented


def pickled(value: Any) -> bytes:
    """A value as bytes.

    Raises:
      Exception: What pickle raises: `PicklingError`, `AttributeError` or `TypeError`.
    """
    stream = io.BytesIO()
    _Pickler(stream).dump(value)
    return stream.getvalue()
