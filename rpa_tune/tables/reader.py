"""Table files into an index by key. Errors name file, line and field."""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from rpa_tune.errors import TableError
from rpa_tune.tables.key import TuningKey, distance
from rpa_tune.tables.migrate import migrate, readable
from rpa_tune.tables.row import TableRow, row_from_dict

# Tables may come from elsewhere: what is beyond these is refused before it is parsed. A row that
# we write has 1 to 2 KiB, its configs and clauses at most 50 brackets.
MAX_FILE_BYTES = 64 * 2**20
MAX_LINE_BYTES = 64 * 2**10
MAX_BRACKETS = 256  # of one line; bounds how deep it can nest
MAX_ROWS = 100_000


@dataclass(frozen=True, kw_only=True, slots=True)
class Nearest:
    """The nearest row and how far it is, in the units of `key.distance`."""

    row: TableRow
    distance: float


class Tables:
    """Rows by key; where two rows share a key, the later one wins."""

    def __init__(self, rows: Iterable[TableRow] = ()) -> None:
        """Indexes `rows`."""
        self._rows = {row.key: row for row in rows}

    def __len__(self) -> int:
        """Number of rows."""
        return len(self._rows)

    def __iter__(self) -> Iterator[TableRow]:
        """Rows in the canonical order."""
        return iter(sorted(self._rows.values(), key=lambda row: row.key))

    def exact(self, key: TuningKey) -> TableRow | None:
        """The row of this key."""
        return self._rows.get(key)

    def by_distance(self, key: TuningKey) -> list[Nearest]:
        """All rows that could stand in for `key`, nearest first; ties in key order."""
        found = []
        for row in self._rows.values():
            away = distance(key, row.key)
            if away is not None:
                found.append(Nearest(row=row, distance=away))
        return sorted(found, key=lambda near: (near.distance, near.row.key))


def shipped_folder() -> Path:
    """Where the tables of this installation are."""
    return Path(str(resources.files("rpa_tuned_tables")))


def load_tables(folders: Sequence[Path], chip: str | None = None) -> Tables:
    """Loads every `<chip>/<family>.jsonl` below the folders; later folders win.

    Args:
      folders: Table folders, for example the shipped one and then the user's own.
      chip: Load only this chip's, or all.

    Raises:
      TableError: A folder is missing, or a file does not parse.
    """
    rows: list[TableRow] = []
    for folder in folders:
        if not folder.is_dir():
            raise TableError("no such table folder", where=str(folder))
        for path in sorted(folder.glob(f"{chip or '*'}/*.jsonl")):
            rows.extend(read_table(path))
    return Tables(rows)


def read_table(path: Path) -> list[TableRow]:
    """Reads one file.

    Raises:
      TableError: Unknown schema, a line that does not parse, a key that appears twice, or more
        than a table can hold. Rows of an older schema are migrated.
    """
    lines = _read_lines(path)
    header = _parse(lines[0], f"{path}:1")
    schema = header.get("schema")
    if schema not in readable():
        raise TableError(
            f"unknown table schema {schema!r}",
            where=f"{path}:1",
            hint=f"this version reads {', '.join(readable())}",
        )
    chip, family = str(header.get("chip")), str(header.get("family"))
    if (chip, family) != (path.parent.name, path.stem):
        raise TableError(
            f"header says chip {chip!r} and family {family!r}, "
            f"but the path says {path.parent.name!r} and {path.stem!r}",
            where=f"{path}:1",
        )
    rows: dict[TuningKey, TableRow] = {}
    for number, line in enumerate(lines[1:], start=2):
        where = f"{path}:{number}"
        try:
            data = migrate(_parse(line, where), schema)
            row = row_from_dict(data, chip=chip, family=family, where=where)
        except ValueError as error:
            raise TableError(f"bad row: {error}", where=where) from error
        if row.key in rows:
            raise TableError(
                "two rows have the same key",
                where=where,
                hint=f"the other is at {rows[row.key].where}",
            )
        rows[row.key] = row
    return list(rows.values())


def _read_lines(path: Path) -> list[str]:
    """The lines of a file of bounded size, at least one."""
    try:
        with path.open("rb") as file:
            content = file.read(MAX_FILE_BYTES + 1)
        if len(content) > MAX_FILE_BYTES:
            raise TableError(f"larger than {MAX_FILE_BYTES:,} bytes", where=str(path))
        # Not `splitlines`, which would also cut at line ends that JSON allows in a string.
        lines = content.decode("utf-8").removesuffix("\n").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise TableError(f"cannot read the table: {error}", where=str(path)) from error
    if len(lines) > 1 + MAX_ROWS:
        raise TableError(f"more than {MAX_ROWS:,} rows", where=str(path))
    return lines


def _parse(line: str, where: str) -> dict[str, Any]:
    if len(line) > MAX_LINE_BYTES:
        raise TableError(f"a line of more than {MAX_LINE_BYTES:,} bytes", where=where)
    if line.count("[") + line.count("{") > MAX_BRACKETS:
        raise TableError(f"a line of more than {MAX_BRACKETS} brackets", where=where)
    try:
        data = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise TableError(f"not JSON: {error}", where=where) from error
    if not isinstance(data, dict):
        raise TableError("not a JSON object", where=where)
    return data
