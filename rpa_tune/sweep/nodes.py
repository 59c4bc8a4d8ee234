"""YAML with line numbers: every value knows its file and line, so an error can say where."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from rpa_kernels.names import did_you_mean, find_name
from rpa_tune.errors import UsageError
from rpa_tune.ranges import RANGES, SIZE

_SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0}


@dataclass(frozen=True, kw_only=True, slots=True)
class Node:
    """One value of a YAML file.

    Attributes:
      value: Scalar, list or dict of plain Python values.
      where: `file:line`.
      children: Entries of a mapping, or items of a list, as nodes.
    """

    value: Any
    where: str
    children: tuple[tuple[Any, "Node"], ...] = ()

    def entries(self, known: Iterable[str], what: str) -> dict[str, "Node"]:
        """The entries of a mapping.

        Args:
          known: Keys that may appear.
          what: What the mapping is, for the message.

        Raises:
          UsageError: Not a mapping, an unknown key, or a key that appears twice.
        """
        if not isinstance(self.value, dict):
            raise UsageError(f"{what} must be a mapping, got {self.value!r}", where=self.where)
        found: dict[str, Node] = {}
        for key, node in self.children:
            if key in found:
                raise UsageError(f"key {key!r} appears twice in {what}", where=node.where)
            if key not in known:
                raise UsageError(
                    f"unknown key {key!r} in {what}",
                    where=node.where,
                    hint=did_you_mean(str(key), known),
                )
            found[key] = node
        return found

    def items(self) -> list["Node"]:
        """The items of a list; a single value counts as a list of one."""
        return [node for _, node in self.children] if isinstance(self.value, list) else [self]

    def text(self) -> str:
        """A string.

        Raises:
          UsageError: It is not one.
        """
        if not isinstance(self.value, str):
            raise UsageError(f"expected a name, got {self.value!r}", where=self.where)
        return self.value

    def choice(
        self, known: Iterable[str], what: str, others: Mapping[str, str] | None = None
    ) -> str:
        """One of the known names, however it is spelt.

        Args:
          known: The names.
          what: What they are, for the message.
          others: Other name -> known name.

        Raises:
          UsageError: Another one.
        """
        names = list(known)
        found = find_name(self.value, names, others or {})
        if found is None:
            raise UsageError(
                f"unknown {what} {self.value!r}",
                where=self.where,
                hint=did_you_mean(self.value, names, others or {}),
            )
        return found

    def integer(self, what: str) -> int:
        """An integer; `RANGES` says which, a size in tokens where it knows no `what`.

        Raises:
          UsageError: Not one of them.
        """
        return int(RANGES.get(what, SIZE).check(self.value, what, where=self.where))

    def number(self, what: str) -> float:
        """A number, whole or not; `RANGES` says which.

        Raises:
          UsageError: Not one of them.
        """
        return RANGES[what].check(self.value, what, where=self.where)

    def tokens(self, what: str, page_size: int) -> int:
        """A size: an integer in the field's own unit, `"N tokens"` or `"N pages"`.

        Raises:
          UsageError: Another unit, or no size at all.
        """
        if type(self.value) is int:
            return self.integer(what)
        count, unit = _split_unit(self, what)
        scale = {"tokens": 1, "token": 1, "pages": page_size, "page": page_size}
        if count != int(count):
            raise UsageError(f"{what}={self.value!r} is not a whole number", where=self.where)
        if unit not in scale:
            raise UsageError(
                f"{what}={self.value!r} has an unknown unit {unit!r}",
                where=self.where,
                hint=did_you_mean(unit, ("tokens", "pages")),
            )
        return int(SIZE.check(int(count) * scale[unit], what, where=self.where))

    def seconds(self, what: str) -> float:
        """A duration: `90s`, `5m` or `1.5h`; `RANGES` says how long.

        Raises:
          UsageError: Another unit, no unit, or out of range.
        """
        return parse_seconds(self.value, what, where=self.where)


def parse_seconds(value: Any, what: str, *, where: str = "") -> float:
    """Reads a duration such as `90s`, `5m` or `1.5h`.

    Args:
      value: What was given.
      what: A key of `RANGES`, or the option of that name.
      where: Place, for the message.

    Raises:
      UsageError: No number, a unit that is none of these, or out of range.
    """
    count, unit = _split_unit(Node(value=value, where=where), what)
    if unit not in _SECONDS:
        wrong = f"an unknown unit {unit!r}" if unit else "no unit"
        raise UsageError(
            f"{what}={value!r} has {wrong}",
            where=where,
            hint="use s, m or h, for example 90s, 5m or 1.5h",
        )
    seconds = count * _SECONDS[unit]
    return RANGES[what.removeprefix("--")].check(seconds, what, where=where)


def _split_unit(node: Node, what: str) -> tuple[float, str]:
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", str(node.value))
    if match is None:
        raise UsageError(f"{what}={node.value!r} is not a number with a unit", where=node.where)
    return float(match[1]), match[2]


# What PyYAML, which knows YAML 1.1, takes for a number of base 8 (010) or 60 (1:30).
_OTHER_BASES = re.compile(r"[-+]?(0_*[0-7][0-7_]*|[0-9][0-9_]*(:[0-9]+)+(\.[0-9_]*)?)")


class Loader(yaml.SafeLoader):
    """YAML's plain values; what cannot be one is an error with its line, as all others are."""

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        """The value of a node.

        Raises:
          yaml.MarkedYAMLError: It has none: a date in month 13, or `!!int abc`. Or it has two:
            `010` is 8 in YAML 1.1 and 10 in YAML 1.2, and so is `1:30` 90, or a text.
        """
        is_number = node.tag in ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")
        if is_number and _OTHER_BASES.fullmatch(node.value):
            raise yaml.MarkedYAMLError(
                problem=f"{node.value:.40} is one number in YAML 1.1 and another or none in 1.2; "
                "write it in base 10, without leading zeros or colons, or quote it",
                problem_mark=node.start_mark,
            )
        try:
            return super().construct_object(node, deep)
        except (ValueError, KeyError, AttributeError) as error:
            kind = node.tag.rpartition(":")[2]
            raise yaml.MarkedYAMLError(
                problem=f"{node.value!s:.40} is no {kind}", problem_mark=node.start_mark
            ) from error


def read_yaml(path: Path) -> Node:
    """Reads a file.

    Raises:
      UsageError: It cannot be read, is not YAML, holds itself, or is empty.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UsageError(f"cannot read the plan: {reason}", where=str(path)) from error
    return parse_yaml(text, str(path))


def parse_yaml(text: str, path: str) -> Node:
    """Reads a text.

    Args:
      text: YAML.
      path: Where it is from, for messages.

    Raises:
      UsageError: It is not YAML, holds itself, or is empty.
    """
    try:
        loader = Loader(text)
        root = loader.get_single_node()
        if root is None:
            raise UsageError("the plan is empty", where=path)
        return _convert(root, loader, path)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f":{mark.line + 1}" if mark else ""
        raise UsageError(f"not YAML: {error.problem}", where=f"{path}{line}") from error
    except yaml.reader.ReaderError as error:
        line_number = text.count("\n", 0, error.position) + 1
        raise UsageError(
            f"not YAML: unacceptable character {chr(error.character)!r}",
            where=f"{path}:{line_number}",
        ) from error
    except RecursionError as error:
        raise UsageError("the plan is nested too deeply, or in itself", where=path) from error


def as_data(given: object, what: str) -> Any:
    """What YAML has a form for: paths as text, tuples as lists.

    Args:
      given: Nested mappings and lists.
      what: What it is, for the message.

    Raises:
      UsageError: Something in it has none.
    """
    if isinstance(given, Path):
        return str(given)
    if isinstance(given, Mapping):
        return {str(name): as_data(value, what) for name, value in given.items()}
    if isinstance(given, list | tuple):
        return [as_data(value, what) for value in given]
    if isinstance(given, str | int | float | None):
        return given
    raise UsageError(f"{what} holds {given!r}, which a plan has no form for")


def _convert(node: yaml.Node, loader: Loader, path: str) -> Node:
    where = f"{path}:{node.start_mark.line + 1}"
    if isinstance(node, yaml.MappingNode):
        entries = []
        for key, value in node.value:
            child = _convert(value, loader, path)
            # An error about an entry belongs to the line of its key.
            at = f"{path}:{key.start_mark.line + 1}"
            entries.append(
                (_scalar(key, loader), Node(value=child.value, where=at, children=child.children))
            )
        mapping: Mapping[Any, Any] = {key: child.value for key, child in entries}
        return Node(value=dict(mapping), where=where, children=tuple(entries))
    if isinstance(node, yaml.SequenceNode):
        items = tuple((i, _convert(item, loader, path)) for i, item in enumerate(node.value))
        return Node(value=[item.value for _, item in items], where=where, children=items)
    return Node(value=_scalar(node, loader), where=where)


def _scalar(node: yaml.Node, loader: Loader) -> Any:
    if not isinstance(node, yaml.ScalarNode):
        mark = node.start_mark
        raise yaml.MarkedYAMLError(problem="a key must be a plain name", problem_mark=mark)
    return loader.construct_object(node, deep=True)
