"""The configs that can exist for a problem on a chip, and why the others cannot."""

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from rpa_kernels import KernelFamily
from rpa_kernels.problem import Problem
from rpa_kernels.target import Target
from rpa_tune.space.axis import Axis


@dataclass(frozen=True, kw_only=True, slots=True)
class Space:
    """Axes, crossed and checked.

    Attributes:
      family: Kernel family's name.
      axes: What varies.
      configs: Configs that pass the family's check, in axis order.
      rejected: Configs left out, counted by the limit they break.
      examples: One message per limit.
    """

    family: str
    axes: tuple[Axis, ...]
    configs: tuple[Any, ...]
    rejected: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)

    @property
    def num_points(self) -> int:
        """Points of the full grid."""
        return len(self.configs) + self.rejected.total()

    def coordinates(self, config: Any) -> tuple[float, ...]:
        """A config as a point of the unit cube, one coordinate per axis."""
        return tuple(axis.position(getattr(config, axis.name)) for axis in self.axes)

    def explain_rejections(self) -> list[str]:
        """One line per limit, most frequent first, with an example."""
        return [
            f"{count} of {self.num_points} break {limit}; for example {self.examples[limit]}"
            for limit, count in self.rejected.most_common()
        ]


def build_space(
    family: KernelFamily,
    problem: Problem,
    target: Target,
    overrides: Mapping[str, Sequence[int]] | None = None,
) -> Space:
    """Crosses the family's axes and keeps what passes its check.

    Args:
      family: Whose configs.
      problem: Static shapes and dtypes.
      target: The chip's limits.
      overrides: Values to use for some fields instead of the family's own.

    Raises:
      ValueError: An override names no field of the family's config.
    """
    axes = build_axes(family, problem, target, overrides)
    names = [axis.name for axis in axes]
    configs: list[Any] = []
    rejected: Counter[str] = Counter()
    examples: dict[str, str] = {}
    for point in itertools.product(*(axis.values for axis in axes)):
        config = family.config_type(**dict(zip(names, point, strict=True)))
        blocked = family.check(problem, config, target)
        if blocked is None:
            configs.append(config)
        else:
            rejected[blocked.limit] += 1
            examples.setdefault(blocked.limit, str(blocked))
    return Space(
        family=family.name,
        axes=axes,
        configs=tuple(configs),
        rejected=rejected,
        examples=examples,
    )


def one_step_away(config: Any, family: KernelFamily, problem: Problem, target: Target) -> list[Any]:
    """Configs that can exist and differ in one field, by one value of its axis: larger, smaller.

    Args:
      config: Need not lie on the axes.
      family: Whose config it is.
      problem: Static shapes and dtypes.
      target: The chip's limits.
    """
    found = []
    for name, values in family.search_axes(problem, target).items():
        own = getattr(config, name)
        larger = [value for value in values if value > own][:1]
        smaller = [value for value in values if value < own][-1:]
        found += [replace(config, **{name: value}) for value in (*larger, *smaller)]
    return [other for other in found if family.check(problem, other, target) is None]


def build_axes(
    family: KernelFamily,
    problem: Problem,
    target: Target,
    overrides: Mapping[str, Sequence[int]] | None = None,
) -> tuple[Axis, ...]:
    """The axes of `build_space`, with its arguments and errors; checks no config."""
    values = {name: tuple(v) for name, v in family.search_axes(problem, target).items()}
    for name, chosen in (overrides or {}).items():
        if name not in values:
            raise ValueError(f"{family.name} has no axis {name!r}; it has {', '.join(values)}")
        values[name] = tuple(sorted(set(chosen)))
    return tuple(Axis(name=name, values=v) for name, v in values.items())


def is_larger_everywhere(config: Any, other: Any, axes: Sequence[Axis]) -> bool:
    """Whether `config` asks for at least as much as `other` on every axis, and is not it."""
    pairs = [(getattr(config, axis.name), getattr(other, axis.name)) for axis in axes]
    return config != other and all(mine >= theirs for mine, theirs in pairs)
