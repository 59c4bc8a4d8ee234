"""Finds a user's function and its arguments, in a worker process."""

import importlib
import importlib.util
import inspect
import pickle
import sys
from collections.abc import Callable
from multiprocessing import spawn
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rpa_tune.compile.worker import one_line
from rpa_tune.user_kernel.answer import KernelTask
from rpa_tune.user_kernel.arguments import Arguments, ArrayArgument
from rpa_tune.user_kernel.refused import RefusedError

_AS_A_NAME = "my_module:my_function, or path/to/my_file.py:my_function"


def load_call(task: KernelTask) -> tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]:
    """The function, its positional arguments and its keywords.

    Arrays are numpy or jax arrays where their values are known, `jax.ShapeDtypeStruct` elsewhere.

    Raises:
      RefusedError: They cannot be had.
    """
    sys.path[:0] = [folder for folder in task.folders if folder not in sys.path]
    if task.pickled:
        try:
            spawn.prepare(task.main)
            function, positional, keywords = pickle.loads(task.pickled)
        except Exception as error:  # the user's own module, whatever it does
            raise RefusedError(
                f"the function cannot be loaded in a worker: {brief(error)}",
                hint="a worker imports its module, without running what is under `__main__`",
            ) from error
        return function, positional, keywords
    function = load_function(task.function, "TARGET")
    arguments = _made(task.maker) if task.maker else task.arguments or Arguments(keywords={})
    positional = tuple(map(_array, arguments.positional))
    keywords = {name: _array(value) for name, value in arguments.keywords.items()}
    keywords |= {name: _array(value) for name, value in task.keywords.items()}
    return function, *_with_values(function, positional, keywords, task.values)


def load_function(text: str, where: str) -> Callable[..., Any]:
    """The function of `module:function` or `file.py:function`.

    Raises:
      RefusedError: There is none.
    """
    source, _, name = text.rpartition(":")
    if not source or not name:
        raise RefusedError(f"{text!r} names no function", where=where, hint=_AS_A_NAME)
    try:
        module = _from_file(Path(source)) if source.endswith(".py") else _by_name(source)
    except ModuleNotFoundError as error:
        raise RefusedError(
            f"no module {error.name!r}", where=f"{where} {text}",
            hint="it is looked for in the current folder and among installed packages",
        ) from error  # fmt: skip
    except OSError as error:
        raise RefusedError(f"{error.strerror}: {source}", where=where, hint=_AS_A_NAME) from error
    except Exception as error:  # the user's own module, whatever it does
        raise RefusedError(
            f"importing {source} raises {brief(error)}", where=f"{where} {text}"
        ) from error
    found: Any = module
    for part in name.split("."):
        if not hasattr(found, part):
            known = [n for n, v in vars(module).items() if callable(v) and not n.startswith("_")]
            raise RefusedError(
                f"{source} has no {name!r}", where=f"{where} {text}",
                hint=f"it has {', '.join(known[:8])}" if known else "",
            )  # fmt: skip
        found = getattr(found, part)
    if not callable(found):
        raise RefusedError(f"{name} of {source} is no function", where=f"{where} {text}")
    return found  # type: ignore[no-any-return]


def _by_name(name: str) -> Any:
    return importlib.import_module(name)


def _from_file(path: Path) -> Any:
    sys.path.insert(0, str(path.resolve().parent))
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None  # it ends in .py
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module


def _made(maker: str) -> Arguments:
    """What the user's function of arguments returns."""
    function = load_function(maker, "--arguments")
    try:
        made = function()
    except Exception as error:  # the user's own, whatever it does
        raise RefusedError(f"{maker} raises {brief(error)}", where="--arguments") from error
    if isinstance(made, dict):
        return Arguments(keywords=made)
    match made:
        case (tuple() as positional, dict() as keywords):
            return Arguments(positional=positional, keywords=keywords)
    if isinstance(made, tuple | list):
        return Arguments(positional=tuple(made), keywords={})
    raise RefusedError(
        f"{maker} returns a {type(made).__name__}", where="--arguments",
        hint="it returns a tuple of arguments, a dict of them by name, or (tuple, dict)",
    )  # fmt: skip


def _array(value: Any) -> Any:
    """An argument of text as jax takes it."""
    if not isinstance(value, ArrayArgument):
        return value
    dtype = jnp.dtype(value.dtype)
    if value.values is None:
        return jax.ShapeDtypeStruct(value.shape, dtype)
    values = np.asarray(value.values).astype(dtype)
    return (
        np.array(np.broadcast_to(values, value.shape))
        if len(values) == 1
        else values.reshape(value.shape)
    )


def _with_values(
    function: Callable[..., Any],
    positional: tuple[Any, ...],
    keywords: dict[str, Any],
    values: dict[str, Any],
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments with the arrays of a file in their places."""
    names = parameter_names(function)
    given, named = list(positional), dict(keywords)
    for name, array in values.items():
        place = names.index(name) if name in names else -1
        if not 0 <= place < len(given):
            if names and name not in names:
                raise RefusedError(
                    f"{name!r} is no argument of the function", where="--values",
                    hint=f"it has {', '.join(names)}",
                )  # fmt: skip
            before = named.get(name)
            named[name] = array
        else:
            before, given[place] = given[place], array
        asked = getattr(before, "shape", None), getattr(before, "dtype", None)
        if asked[0] is not None and asked != (array.shape, array.dtype):
            raise RefusedError(
                f"{name} is {array.dtype}{list(array.shape)} in the file, but "
                f"{asked[1]}{list(asked[0])} in --shapes",
                where="--values",
            )
    return tuple(given), named


def parameter_names(function: Callable[..., Any]) -> list[str]:
    """Names of its arguments in order; none where they are not known."""
    try:
        return list(inspect.signature(function).parameters)
    except (TypeError, ValueError):
        return []


def brief(error: BaseException) -> str:
    """`ValueError: what it says first`."""
    return f"{type(error).__name__}: {one_line(str(error))}"
