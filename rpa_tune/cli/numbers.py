"""Numbers as options: one type of click's for every quantity of `rpa_tune.ranges`."""

from typing import Any

import click

from rpa_tune.ranges import RANGES, Range


class NumberParam(click.ParamType):  # type: ignore[type-arg]  # generic since click 8.4
    """A number in a range; others are refused in the form of all errors of the project."""

    def __init__(self, range_: Range) -> None:
        """Keeps the range."""
        self.range = range_
        self.name = "integer" if range_.is_whole else "number"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """Reads the text of an option; defaults are numbers already.

        Raises:
          UsageError: No number, or out of range.
        """
        del ctx
        option = param.opts[-1] if param is not None else self.name
        number = value
        if isinstance(value, str):
            try:
                number = int(value) if self.range.is_whole else float(value)
            except ValueError:
                number = value  # the range says what is needed
        return self.range.check(number, option)


class NumbersParam(click.ParamType):  # type: ignore[type-arg]  # as above
    """Numbers in a range, with commas between them."""

    name = "integers"

    def __init__(self, quantity: str) -> None:
        """Keeps what each of them is."""
        self.one = number(quantity)

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[float, ...]:
        """Reads the text of an option; a default is a tuple already.

        Raises:
          UsageError: One is no number, or out of range.
        """
        parts = value.split(",") if isinstance(value, str) else value
        return tuple(self.one.convert(part, param, ctx) for part in parts)


def number(quantity: str) -> NumberParam:
    """The option type of a quantity of `RANGES`."""
    return NumberParam(RANGES[quantity])


def number_or_none(quantity: str) -> NumberParam:
    """The same, and 0 for none or all."""
    known = RANGES[quantity]
    return NumberParam(Range(least=0, most=known.most, unit=known.unit))
