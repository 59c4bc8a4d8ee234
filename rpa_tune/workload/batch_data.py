"""One batch from JSON, checked field by field: for stored workloads and for `--batch` files."""

import math
from collections.abc import Mapping

from rpa_kernels.batch import Batch

KNOWN = ("q_lens", "kv_lens", "num_decode", "num_prefill", "page_seed", "page_table")
MOST = 2**31 - 1  # lengths and pages are int32 in the kernels


def batch_from_data(data: object, *, also_known: tuple[str, ...] = ()) -> Batch:
    """Reads `{"q_lens": [1, 64], "kv_lens": [90, 64], "num_decode": 1}`.

    Args:
      data: What JSON gave.
      also_known: Keys beside those of a batch.

    Raises:
      ValueError: With the field, what it holds, and the rule.
    """
    if not isinstance(data, Mapping):
        raise ValueError(f"an object is needed, got {_shown(data)}")
    if unknown := sorted(set(data) - {*KNOWN, *also_known}):
        raise ValueError(f"unknown field {unknown[0]!r}, there are {', '.join(KNOWN)}")
    for field in KNOWN[:3]:
        if field not in data:
            raise ValueError(f"{field} is missing")
    q_lens = _numbers(data["q_lens"], "q_lens", least=1)
    table = data.get("page_table")
    if table is not None and not isinstance(table, list):
        raise ValueError(f"page_table: a list of lists is needed, got {_shown(table)}")
    if table is not None and len(table) != len(q_lens):
        raise ValueError(f"page_table: {len(table)} lists for {len(q_lens)} q_lens")
    return Batch(
        q_lens=q_lens,
        kv_lens=_numbers(data["kv_lens"], "kv_lens", least=1),
        num_decode=_number(data["num_decode"], "num_decode"),
        num_prefill=_number(data.get("num_prefill", 0), "num_prefill"),
        page_table=None
        if table is None
        else tuple(_numbers(row, f"page_table[{i}]", least=0) for i, row in enumerate(table)),
        page_seed=_number(data.get("page_seed", 0), "page_seed"),
    )


def weight_from_data(value: object) -> float:
    """A share of launches.

    Raises:
      ValueError: No number above 0.
    """
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not 0 < value < math.inf:  # type: ignore[operator]
        raise ValueError(f"weight: a number above 0 is needed, got {_shown(value)}")
    return float(value)  # type: ignore[arg-type]


def _numbers(values: object, field: str, *, least: int) -> tuple[int, ...]:
    if not isinstance(values, list):
        raise ValueError(f"{field}: a list of whole numbers is needed, got {_shown(values)}")
    if not values:
        raise ValueError(f"{field}: at least one number is needed, got an empty list")
    return tuple(_number(v, f"{field}[{i}]", least=least) for i, v in enumerate(values))


def _number(value: object, field: str, *, least: int = 0) -> int:
    if type(value) is not int or not least <= value <= MOST:
        raise ValueError(
            f"{field}: a whole number from {least} to {MOST} is needed, got {_shown(value)}"
        )
    return value


def _shown(value: object) -> str:
    """A value for an error, cut to a line."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
