"""From a mapping that a person wrote to a record, with errors that name the place and the rule."""

import dataclasses
import enum
import math
import types
import typing
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, TypeVar

from rpa_kernels.names import did_you_mean, find_name
from rpa_tune.errors import UsageError


def check_keys(data: object, known: Collection[str], where: str) -> Mapping[str, Any]:
    """Refuses what is not a mapping with known keys.

    Raises:
      UsageError: Not a mapping, or a key that is not in `known`.
    """
    if not isinstance(data, Mapping):
        raise UsageError(f"a mapping is needed, got {data!r}", where=where)
    for key in data:
        if key not in known:  # YAML's keys need not be texts: `on` is True
            raise UsageError(f"unknown key {key!r}", where=where, hint=did_you_mean(key, known))
    return data


Record = TypeVar("Record")


def read_record(cls: type[Record], data: object, where: str, **given: Any) -> Record:
    """Builds a dataclass from a mapping; fields in `given` come from the caller instead.

    Raises:
      UsageError: Unknown or missing key, a value of the wrong type, or one that the record's own
        checks refuse.
    """
    hints = typing.get_type_hints(cls)
    data = check_keys(data, [name for name in hints if name not in given], where)
    values = {key: _value(hints[key], value, f"{where}.{key}") for key, value in data.items()}
    missing = [
        field.name
        for field in dataclasses.fields(cls)  # type: ignore[arg-type]
        if field.default is field.default_factory is dataclasses.MISSING
        and field.name not in values
        and field.name not in given
    ]
    if missing:
        raise UsageError(f"missing key {missing[0]!r}", where=where)
    try:
        return cls(**values, **given)
    except ValueError as error:
        raise UsageError(str(error), where=where) from error


def _value(kind: Any, value: object, where: str) -> Any:
    """Checks one value against a field's annotation."""
    if isinstance(kind, types.UnionType):
        if value is None and type(None) in kind.__args__:
            return None
        kind = next(k for k in kind.__args__ if k is not type(None))
    if isinstance(kind, type) and issubclass(kind, enum.StrEnum):
        known = [str(member) for member in kind]
        found = find_name(value, known)
        if found is None:
            raise UsageError(
                f"unknown value {value!r}", where=where, hint=did_you_mean(value, known)
            )
        return kind(found)
    if dataclasses.is_dataclass(kind):
        return read_record(typing.cast(type, kind), value, where)
    if kind is float and type(value) is int:
        value = float(value) if abs(value) < 2**63 else math.inf
    if kind is str and isinstance(value, Path):
        value = str(value)
    if type(value) is not kind:
        raise UsageError(f"a {kind.__name__} is needed, got {value!r}", where=where)
    if isinstance(value, float) and not math.isfinite(value):
        raise UsageError(f"a finite number is needed, got {value!r}", where=where)
    if isinstance(value, int) and abs(value) >= 2**63:
        raise UsageError(f"a number below 2**63 is needed, got {value!r}", where=where)
    return value
