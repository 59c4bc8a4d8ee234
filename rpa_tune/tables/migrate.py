"""Older table files into today's form: one small step from each schema to the next.

The reader applies the steps to every row, so that files of all schemas stay readable; the writer
knows only the newest. A step is never edited once tables of its schema were shipped. Every schema
has a file in `tests/golden/tables`, kept for good.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from rpa_tune.tables.row import SCHEMA

Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class Migration:
    """From one schema to the next.

    Attributes:
      into: The next schema.
      change: JSON form of a row before -> after; raises KeyError or TypeError on what was no row.
    """

    into: str
    change: Callable[[Row], Row]


def _1_to_2(row: Row) -> Row:
    """Evidence says what more configs would gain, and which schedules were timed."""
    new = {"regret_by_num_configs_pct": [], "schedule_digest": ""}
    return {**row, "evidence": {**row["evidence"], **new}}


def _2_to_3(row: Row) -> Row:
    """Evidence says which problem of the bucket was timed."""
    return {**row, "evidence": {**row["evidence"], "problem": None}}


def _3_to_4(row: Row) -> Row:
    """Evidence says how sure the time is."""
    new = {"interval_us": None, "share_of_wins": None}
    return {**row, "evidence": {**row["evidence"], **new}}


STEPS = {
    "rpa-table/1": Migration(into="rpa-table/2", change=_1_to_2),
    "rpa-table/2": Migration(into="rpa-table/3", change=_2_to_3),
    "rpa-table/3": Migration(into="rpa-table/4", change=_3_to_4),
}


def readable() -> tuple[str, ...]:
    """Schemas that can be read, oldest first."""
    return (*STEPS, SCHEMA)


def migrate(row: Row, schema: str) -> Row:
    """The JSON form of a row of `schema`, in today's form.

    Args:
      row: As it stands in the file; not changed.
      schema: One of `readable()`.

    Raises:
      ValueError: It is no row of that schema.
    """
    while schema != SCHEMA:
        step = STEPS[schema]
        try:
            row = step.change(row)
        except KeyError as error:
            raise ValueError(f"not a row of {schema}: field {error} is missing") from error
        except (TypeError, AttributeError) as error:
            raise ValueError(f"not a row of {schema}: no object where one belongs") from error
        schema = step.into
    return row
