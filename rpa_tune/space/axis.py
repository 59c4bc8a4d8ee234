"""One dimension of a search space."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Axis:
    """The values of one config field.

    Attributes:
      name: Config field.
      values: In rising order, without repeats.
    """

    name: str
    values: tuple[int, ...]

    def __post_init__(self) -> None:
        """Refuses an axis without order.

        Raises:
          ValueError: No values, or values that do not rise.
        """
        if not self.values or list(self.values) != sorted(set(self.values)):
            raise ValueError(f"axis {self.name}: values {self.values} must rise without repeats")

    def position(self, value: int) -> float:
        """Where `value` is on the axis, from 0 (first) to 1 (last); 0 when there is one value.

        A value between two of the axis is placed between them, one outside at the nearer end.
        """
        below = sum(known < value for known in self.values)
        if below == len(self.values):
            below -= 1
        elif self.values[below] != value and below:
            low, high = self.values[below - 1], self.values[below]
            return (below - 1 + (value - low) / (high - low)) / max(1, len(self.values) - 1)
        return below / max(1, len(self.values) - 1)
