"""`tables check --recompile --write`: what a check found goes into the rows' evidence.

Under the versions that made a row nothing is new. What is written is what other pairs of jax and
libtpu made of it (`tables/other_versions.py`), so that a row says how it fares under what engines
pin. No other field changes.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rpa_tune.tables.key import FILLED, TuningKey, timed_key
from rpa_tune.tables.other_versions import ALONE, BEST, OVERTAKEN, UNFIT, with_found
from rpa_tune.tables.reader import load_tables
from rpa_tune.tables.row import TableRow, key_from_dict
from rpa_tune.tables.writer import merge_into


def write_found(folder: Path, told: Sequence[Mapping[str, Any]]) -> int:
    """Writes what pairs of versions made of rows into the rows.

    Rows of one study (decode's, for all token buckets) were asked alike, so all of them carry what
    one was asked. Left as they are: rows whose kernel has changed since, rows that were not
    answered, and rows under the very versions that made them.

    Args:
      folder: Of the tables that were asked.
      told: The documents of `tables check --recompile --json`, one of each pair.

    Returns:
      How many rows carry something new or anew.

    Raises:
      TableError: A table cannot be read or written.
    """
    rows = list(load_tables([folder]))
    asked_as = {row.key: _question(row) for row in rows}
    found: dict[str, list[dict[str, Any]]] = {}
    for answer in told:
        for key, one in _found(answer):
            if key in asked_as:  # else it went in the meantime
                found.setdefault(asked_as[key], []).append(one)
    changed = []
    for row in rows:
        ours = (row.evidence.jax, row.evidence.libtpu)
        kept = row.evidence.other_versions
        for one in found.get(asked_as[row.key], ()):
            if (one["jax"], one["libtpu"]) != ours:
                kept = with_found(kept, one)
        if kept != row.evidence.other_versions:
            changed.append(replace(row, evidence=replace(row.evidence, other_versions=kept)))
    merge_into(folder, changed)
    return len(changed)


def is_flipped(row: Mapping[str, Any]) -> bool:
    """Whether a config that was asked beside a row's is ahead of it."""
    return row["overtaken"] or any(found["rule"] == "rank" for found in row["findings"])


def is_unfit(row: Mapping[str, Any]) -> bool:
    """Whether a config of a row is refused."""
    return any(found["rule"] == "fit" for found in row["findings"])


def num_beside(row: Mapping[str, Any]) -> int:
    """How many configs a row was asked beside that have a time."""
    others = sum(one["time_us"] is not None for one in row["runners_up"])
    return others + (row["heuristic_us"] is not None)


def _question(row: TableRow) -> str:
    """What a check asks of a row: the same text for rows of one study."""
    evidence = row.evidence
    filled = FILLED.get(row.key.family, ())  # stands in the key that was timed
    beyond = {n: value for n, value in (evidence.problem or {}).items() if n not in filled}
    timed = timed_key(row.key, evidence.problem)
    entry = {**row.to_dict(), "evidence": [evidence.workload_digest, evidence.kernel_digest]}
    del entry["key"]
    beside = [*evidence.runners_up, row.heuristic, evidence.libtpu_args, evidence.time_us]
    return f"{timed} {beyond} {entry} {beside}"


def _found(answer: Mapping[str, Any]) -> Iterator[tuple[TuningKey, dict[str, Any]]]:
    versions = answer["versions"]
    for row in answer["rows"]:
        time_us = row["time_us"]
        if "kernel_digest" in row["older"] or (time_us is None and not is_unfit(row)):
            continue
        rank = OVERTAKEN if is_flipped(row) else BEST if num_beside(row) else ALONE
        key = key_from_dict(row["key"], chip=row["chip"], family=row["family"])
        yield (
            key,
            {
                "jax": versions["jax"],
                "libtpu": versions["libtpu"],
                "time_us": None if time_us is None else round(time_us, 3),
                "found": UNFIT if time_us is None else rank,
            },
        )
