"""What numbers a person may give: options, plans and files all ask here.

A range says what can be meant at all, not what fits: that depends on chip, problem and machine, and
has messages of its own.
"""

from dataclasses import dataclass

from rpa_tune.errors import UsageError


@dataclass(frozen=True, kw_only=True, slots=True)
class Range:
    """Numbers from `least` to `most`.

    Attributes:
      least: Least number.
      most: Greatest number.
      unit: What is counted, for the message.
      is_whole: Whether only whole numbers will do.
      is_open: Whether the number must be above `least`.
    """

    least: float
    most: float
    unit: str = ""
    is_whole: bool = True
    is_open: bool = False

    @property
    def rule(self) -> str:
        """What is asked for, in words."""
        kind = "an integer" if self.is_whole else "a number"
        first = "above" if self.is_open else "of at least"
        return f"{kind} {first} {self.least:,} and at most {self.most:,} {self.unit}".rstrip()

    def check(self, value: object, what: str, *, where: str = "") -> float:
        """The number, if it is one of these; an int where only whole numbers will do.

        Args:
          value: What was given; a bool is no number.
          what: Name of the option or field.
          where: Place, for the message.

        Raises:
          UsageError: It is not.
        """
        kinds = (int,) if self.is_whole else (int, float)
        if type(value) not in kinds or not self._holds(value):  # type: ignore[arg-type]
            raise UsageError(f"{what}={value!r} must be {self.rule}", where=where)
        return value  # type: ignore[return-value]

    def _holds(self, value: float) -> bool:
        # False for NaN, too.
        return (value > self.least if self.is_open else value >= self.least) and value <= self.most


def _count(most: int, unit: str = "", least: int = 1) -> Range:
    return Range(least=least, most=most, unit=unit)


_WEEK_S = 7 * 24 * 3600
_SECONDS = Range(least=0, most=_WEEK_S, unit="seconds", is_whole=False, is_open=True)
_SCALE = Range(least=0, most=3e38, is_whole=False, is_open=True)

# Sizes and lengths are int32 in the kernels.
SIZE = _count(2**31 - 1)
# Fields of configs may be switches; whether a config can exist is another check.
FIELD = _count(2**31 - 1, least=0)

RANGES: dict[str, Range] = {
    "tp": _count(4096, "devices"),
    "dp": _count(4096, "ranks"),
    # Longer than any context that is served today, in one page.
    "page_size": _count(2**20, "tokens"),
    # Of prompts, that one hash of a trace stands for.
    "block_tokens": _count(2**20, "tokens"),
    "max_num_seqs": _count(2**20, "sequences"),
    "max_num_batched_tokens": _count(2**24, "tokens"),
    "num_speculative_tokens": _count(2**10, "tokens", least=0),
    "decode_query_size": _count(2**10, "tokens"),
    "padding_gap": _count(2**24, "tokens", least=0),
    "token_buckets": _count(2**24, "tokens"),
    "min_token_bucket": _count(2**24, "tokens"),
    "max_model_len": _count(2**30, "tokens"),
    "num_pages": _count(2**31 - 1, "pages"),
    "sm_scale": Range(least=-3e38, most=3e38, is_whole=False),
    "k_scale": _SCALE,
    "v_scale": _SCALE,
    # A switch of the blockwise kernels, in a plan's `space`.
    "mxu_sums": _count(1, least=0),
    "strided_copies": _count(1, least=0),
    "requests": _count(10**9, "requests"),
    "batches": _count(10**6, "batches"),
    "compiles": _count(10_000, "kernels", least=0),
    "tries": _count(10_000, "neighbours"),
    "sample": _count(100_000, "rows"),
    "workers": _count(4096, "processes"),
    # NumPy's and Optuna's seeds.
    "seed": _count(2**32 - 1, least=0),
    "simulate": _count(10**6, "configs"),
    "measure": _count(10**6, "configs", least=0),
    "wave": _count(10**6, "configs"),
    "least_gain_pct": Range(least=0, most=100, unit="percent", is_whole=False),
    "deadline": _SECONDS,
    "interval": _SECONDS,
    "budget": Range(least=0, most=52 * _WEEK_S, unit="seconds", is_whole=False),
}
