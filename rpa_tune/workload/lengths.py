"""Token counts drawn from a named distribution, for workloads without a trace."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from rpa_tune.errors import UsageError
from rpa_tune.workload.fields import check_keys, read_record

IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, slots=True)
class Constant:
    """Always `tokens`."""

    tokens: int

    def __post_init__(self) -> None:
        """Refuses what is no length."""
        if self.tokens < 1:
            raise ValueError(f"tokens={self.tokens} must be at least 1")

    def draw(self, random: np.random.Generator, count: int) -> IntArray:
        """`count` lengths."""
        return np.full(count, self.tokens, np.int64)


@dataclass(frozen=True, kw_only=True, slots=True)
class Uniform:
    """Every length from `low` to `high` equally likely."""

    low: int
    high: int

    def __post_init__(self) -> None:
        """Refuses an empty range."""
        if self.low < 1:
            raise ValueError(f"low={self.low} must be at least 1")
        if self.low > self.high:
            raise ValueError(f"low={self.low} must not exceed high={self.high}")

    def draw(self, random: np.random.Generator, count: int) -> IntArray:
        """`count` lengths."""
        return random.integers(self.low, self.high, count, endpoint=True)


@dataclass(frozen=True, kw_only=True, slots=True)
class Lognormal:
    """Half of the lengths below `median`; `sigma` is the standard deviation of the logarithm."""

    median: float
    sigma: float

    def __post_init__(self) -> None:
        """Refuses a shape that is none."""
        if self.median < 1 or self.sigma < 0:
            raise ValueError(
                f"median={self.median} must be at least 1 and sigma={self.sigma} at least 0"
            )

    def draw(self, random: np.random.Generator, count: int) -> IntArray:
        """`count` lengths."""
        return _rounded(random.lognormal(math.log(self.median), self.sigma, count))


@dataclass(frozen=True, kw_only=True, slots=True)
class Zipf:
    """Length `k * unit` with a chance that falls as k to the power of minus `exponent`."""

    exponent: float
    unit: int = 1

    def __post_init__(self) -> None:
        """Refuses an exponent whose sum does not end."""
        if not self.exponent > 1 or self.unit < 1:
            raise ValueError(
                f"exponent={self.exponent} must be above 1 and unit={self.unit} at least 1"
            )

    def draw(self, random: np.random.Generator, count: int) -> IntArray:
        """`count` lengths."""
        return np.minimum(random.zipf(self.exponent, count), 2**40) * self.unit


@dataclass(frozen=True, kw_only=True, slots=True)
class Bimodal:
    """Around `short`, or with chance `long_share` around `long`; both lognormal with `sigma`."""

    short: float
    long: float
    long_share: float
    sigma: float = 0.2

    def __post_init__(self) -> None:
        """Refuses shares and shapes that are none."""
        if not 0 <= self.long_share <= 1:
            raise ValueError(f"long_share={self.long_share} must be 0 to 1")
        if min(self.short, self.long) < 1 or self.sigma < 0:
            raise ValueError(
                f"short={self.short} and long={self.long} must be at least 1 and "
                f"sigma={self.sigma} at least 0"
            )

    def draw(self, random: np.random.Generator, count: int) -> IntArray:
        """`count` lengths."""
        medians = np.where(random.random(count) < self.long_share, self.long, self.short)
        return _rounded(medians * random.lognormal(0.0, self.sigma, count))


Distribution = Constant | Uniform | Lognormal | Zipf | Bimodal
DISTRIBUTIONS: Mapping[str, type[Distribution]] = {
    "constant": Constant,
    "uniform": Uniform,
    "lognormal": Lognormal,
    "zipf": Zipf,
    "bimodal": Bimodal,
}


@dataclass(frozen=True, kw_only=True, slots=True)
class LengthSampler:
    """A distribution cut to [`least`, `most`].

    Attributes:
      distribution: Where lengths come from.
      least: Shorter draws become this.
      most: Longer draws become this; None for no limit.
    """

    distribution: Distribution
    least: int = 1
    most: int | None = None

    def __post_init__(self) -> None:
        """Refuses limits that leave nothing."""
        if self.least < 1 or (self.most is not None and self.most < self.least):
            raise ValueError(f"least={self.least} must be at least 1 and at most most={self.most}")

    def draw(self, random: np.random.Generator, count: int) -> IntArray:
        """`count` lengths in tokens."""
        return np.clip(self.distribution.draw(random, count), self.least, self.most)


def read_lengths(data: Any, where: str) -> LengthSampler:
    """Reads `512`, or `{lognormal: {median: 512, sigma: 0.8}, least: 1, most: 4096}`.

    Raises:
      UsageError: Not of that form.
    """
    if type(data) is int:
        data = {"constant": {"tokens": data}}
    data = dict(check_keys(data, [*DISTRIBUTIONS, "least", "most"], where))
    named = [key for key in data if key in DISTRIBUTIONS]
    limits = {key: value for key, value in data.items() if key not in DISTRIBUTIONS}
    if len(named) != 1:
        raise UsageError(
            f"one distribution is needed, got {named}",
            where=where,
            hint=f"give one of {', '.join(DISTRIBUTIONS)}",
        )
    kind = named[0]
    distribution = read_record(DISTRIBUTIONS[kind], data[kind], f"{where}.{kind}")
    return read_record(LengthSampler, limits, where, distribution=distribution)


def _rounded(values: npt.NDArray[np.float64]) -> IntArray:
    return np.rint(np.minimum(values, 2**40)).astype(np.int64)
