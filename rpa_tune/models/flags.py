"""What the flags of a server may be, however it is made: in Python, in a plan, by options. No jax.

One rule for each flag: names are found however they are spelt, a path is a model, lists are lists.
What goes together is the record's own business (`buckets.Engine`, `server.Server`).
"""

import dataclasses
import operator
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from rpa_kernels.dtypes import dtype_name
from rpa_kernels.layout import KV_DTYPES, KV_LAYOUTS
from rpa_kernels.names import did_you_mean, find_name
from rpa_tune.errors import UsageError
from rpa_tune.hw.chip import load_chip
from rpa_tune.ranges import RANGES

_SWITCHES = ("bucket_seqs", "uses_prefill")
_LISTS = {"token_buckets": "token_buckets", "only_tokens": "token_buckets"}
# Left to the engine where there is none.
_OPTIONAL = ("max_num_seqs", "max_num_batched_tokens", "page_size")


def take_flags(record: Any, names: Mapping[str, Iterable[str]]) -> None:
    """Replaces every flag of a frozen record by what it means.

    Args:
      record: An engine or a server.
      names: Flag -> the names that it takes, for flags that only the record's module knows.

    Raises:
      UsageError: A flag that nothing can have.
    """
    for field in dataclasses.fields(record):
        given = getattr(record, field.name)
        object.__setattr__(record, field.name, read_flag(field.name, given, names))


def read_flag(name: str, value: object, names: Mapping[str, Iterable[str]] | None = None) -> Any:
    """What one flag means.

    Numbers are only told from other things here: their range is part of what goes together.

    Args:
      name: Its name.
      value: What was given.
      names: See `take_flags`.

    Raises:
      UsageError: Nothing that the flag can have.
    """
    if name == "chip":
        return load_chip(value).name  # type: ignore[arg-type]  # says what is no name
    if name == "model":
        return read_model(value)
    if name == "kv_dtype":
        return read_dtype(value, KV_DTYPES, name)
    known = {"kv_layout": KV_LAYOUTS, **(names or {})}.get(name)
    if known is not None:
        return read_name(value, known, name)
    if name in _SWITCHES:
        if not isinstance(value, bool):
            raise UsageError(f"{name}={value!r} must be True or False")
        return value
    if name in _LISTS:
        return tuple(_integer(one, name, _LISTS[name]) for one in read_list(value, name))
    if name == "only_families":  # which there are is known where studies are made
        return tuple(str(one) for one in read_list(value, name))
    if value is None and name in _OPTIONAL:
        return 0
    return _integer(value, name, name)


def read_list(value: object, name: str) -> tuple[Any, ...]:
    """The items of a list.

    Raises:
      UsageError: No list; text is none, either.
    """
    if isinstance(value, str | bytes | Mapping) or not isinstance(value, Iterable):
        raise UsageError(f"{name}={value!r} must be a list", hint=f"{name}=[{value!r}]")
    return tuple(value)


def read_name(value: object, known: Iterable[str], name: str) -> str:
    """One of a few names, however it is spelt.

    Raises:
      UsageError: None of them.
    """
    listed = list(known)
    found = find_name(value, listed)
    if found is None:
        raise UsageError(
            f"{name}={value!r} is not one of {', '.join(listed)}", hint=did_you_mean(value, listed)
        )
    return found


def read_dtype(value: object, known: Iterable[str], name: str) -> str:
    """The name of a dtype, however it is spelt; jax's and NumPy's own objects are names, too.

    Raises:
      UsageError: None of `known`.
    """
    listed = tuple(known)
    try:
        return dtype_name(value, listed, name)
    except ValueError as error:
        _, _, hint = str(error).partition("; ")
        raise UsageError(
            f"{name}={value!r} is not one of {', '.join(listed)}", hint=hint
        ) from error


def read_model(value: object) -> str:
    """A name, or a path as text; which model that is, the catalogue finds out.

    Raises:
      UsageError: Neither.
    """
    if not isinstance(value, str | Path):
        raise UsageError(
            f"model: {type(value).__name__} given, where a name or a path is asked for",
            hint="a config.json, its folder, or a name of the catalogue",
        )
    return str(value)


def _integer(value: object, name: str, quantity: str) -> int:
    """A whole number, NumPy's among them.

    Raises:
      UsageError: None.
    """
    if not isinstance(value, bool):
        try:
            return operator.index(value)  # type: ignore[arg-type]
        except TypeError:
            pass
    raise UsageError(f"{name}={value!r} must be {RANGES[quantity].rule}")
