"""Table files into an index by key. Errors name file, line and field."""

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from rpa_tune.errors import TableError
from rpa_tune.tables.key import ADDED_FIELDS, TuningKey, distance
from rpa_tune.tables.migrate import migrate, readable
from rpa_tune.tables.row import KEY_HINTS, SCHEMA, TableRow, key_from_dict, row_from_dict

# Tables may come from elsewhere: what is beyond these is refused before it is parsed. A row that
# we write has 1 to 2 KiB, its configs and clauses at most 50 brackets.
MAX_FILE_BYTES = 64 * 2**20
MAX_LINE_BYTES = 64 * 2**10
MAX_BRACKETS = 256  # of one line; bounds how deep it can nest
MAX_ROWS = 100_000


# A line as the writer makes it, up to where the key ends. A key that is written in this way can be
# looked up as text; a file with another line is read as a whole.
def _written_key() -> str:
    values = {str: r'"[\w.]+"', int: r"(?:0|[1-9]\d*)", bool: "(?:true|false)"}
    parts = []
    for name, hint in KEY_HINTS.items():
        if name in ADDED_FIELDS:
            usual = re.escape(json.dumps(ADDED_FIELDS[name]))
            parts.append(rf'(?:,"{name}":(?!{usual}[,}}]){values[hint]})?')
        elif name not in ("chip", "family"):
            parts.append(rf'{"," if parts else ""}"{name}":{values[hint]}')
    return r'\{"key":(\{' + "".join(parts) + r'\}),"configs":\['


_WRITTEN = re.compile(_written_key())


@dataclass(frozen=True, kw_only=True, slots=True)
class Nearest:
    """The nearest row and how far it is, in the units of `key.distance`."""

    row: TableRow
    distance: float


@dataclass(frozen=True, slots=True)
class _Line:
    """A row that nobody has asked for yet."""

    path: Path
    number: int
    text: str
    chip: str
    family: str

    def read(self) -> TableRow:
        where = f"{self.path}:{self.number}"
        return _row(self.text, where, SCHEMA, self.chip, self.family)


# Key as a file writes it -> the row, or its line.
_Written = dict[str, TableRow | _Line]


class Tables:
    """Rows by key; where two rows share a key, the later one wins.

    Rows of files are read when they are first needed: a server asks for a few of thousands.
    """

    def __init__(self, rows: Iterable[TableRow] = ()) -> None:
        """Indexes `rows`."""
        self._written: dict[tuple[str, str], _Written] = {}
        self._keys: dict[tuple[str, str], list[TuningKey]] = {}
        for row in rows:
            self._group(row.key.chip, row.key.family)[_text_of(row.key)] = row

    def __len__(self) -> int:
        """Number of rows."""
        return sum(map(len, self._written.values()))

    def __iter__(self) -> Iterator[TableRow]:
        """Rows in the canonical order.

        Raises:
          TableError: A row does not parse.
        """
        rows = [self._read(group, text) for group in self._written.values() for text in group]
        return iter(sorted(rows, key=lambda row: row.key))

    def exact(self, key: TuningKey) -> TableRow | None:
        """The row of this key.

        Raises:
          TableError: It does not parse.
        """
        group = self._written.get((key.chip, key.family), {})
        text = _text_of(key)
        return self._read(group, text) if text in group else None

    def by_distance(self, key: TuningKey) -> Iterator[Nearest]:
        """All rows that could stand in for `key`, nearest first; ties in key order.

        Raises:
          TableError: A key of this chip and family does not parse, or a row that is come to.
        """
        place = (key.chip, key.family)
        group = self._written.get(place, {})
        if len(self._keys.get(place, ())) != len(group):
            self._keys[place] = [_key_of(text, row) for text, row in group.items()]
        found = [
            (away, other)
            for other in self._keys.get(place, ())
            if (away := distance(key, other)) is not None
        ]
        for away, other in sorted(found):
            yield Nearest(row=self._read(group, _text_of(other)), distance=away)

    def _group(self, chip: str, family: str) -> _Written:
        return self._written.setdefault((chip, family), {})

    def _add_file(self, path: Path) -> None:
        """Lays the rows of a file over what is there.

        Raises:
          TableError: As `read_table`, but for rows that nothing but their key is known of yet.
        """
        lines, chip, family, schema = _open_table(path)
        group = self._group(chip, family)
        found: _Written = {}
        if schema == SCHEMA:
            for number, line in enumerate(lines[1:], start=2):
                _check_line(line, f"{path}:{number}")
                match = _WRITTEN.match(line)
                if match is None or match[1] in found:
                    break
                found[match[1]] = _Line(path, number, line, chip, family)
        if len(found) < len(lines) - 1:  # not as the writer writes it
            found = {_text_of(row.key): row for row in read_table(path)}
        group.update(found)
        self._keys.pop((chip, family), None)

    @staticmethod
    def _read(group: _Written, text: str) -> TableRow:
        row = group[text]
        if isinstance(row, _Line):
            line, row = row, row.read()
            if _text_of(row.key) != text:
                raise TableError("a row with two keys", where=f"{line.path}:{line.number}")
            group[text] = row
        return row


def _text_of(key: TuningKey) -> str:
    """A key as the writer writes it."""
    return json.dumps(key.to_dict(), separators=(",", ":"))


def _key_of(text: str, row: TableRow | _Line) -> TuningKey:
    if isinstance(row, TableRow):
        return row.key
    try:
        return key_from_dict(json.loads(text), chip=row.chip, family=row.family)
    except ValueError as error:
        where = f"{row.path}:{row.number}"
        raise TableError(f"bad row: {error}", where=where) from error


def shipped_folder() -> Path:
    """Where the tables of this installation are."""
    return Path(str(resources.files("rpa_tuned_tables")))


def load_tables(folders: Sequence[Path], chip: str | None = None) -> Tables:
    """Loads every `<chip>/<family>.jsonl` below the folders; later folders win.

    Of files that are as the writer makes them, rows are read when they are asked for; `tables lint`
    reads all.

    Args:
      folders: Table folders, for example the shipped one and then the user's own.
      chip: Load only this chip's, or all.

    Raises:
      TableError: A folder is missing, or a file is no table. A row that does not parse is an error
        here or when it is asked for.
    """
    tables = Tables()
    for folder in folders:
        if not folder.is_dir():
            raise TableError("no such table folder", where=str(folder))
        for path in sorted(folder.glob(f"{chip or '*'}/*.jsonl")):
            tables._add_file(path)
    return tables


def read_table(path: Path) -> list[TableRow]:
    """Reads one file.

    Raises:
      TableError: Unknown schema, a line that does not parse, a key that appears twice, or more
        than a table can hold. Rows of an older schema are migrated.
    """
    lines, chip, family, schema = _open_table(path)
    rows: dict[TuningKey, TableRow] = {}
    for number, line in enumerate(lines[1:], start=2):
        where = f"{path}:{number}"
        row = _row(line, where, schema, chip, family)
        if row.key in rows:
            raise TableError(
                "two rows have the same key",
                where=where,
                hint=f"the other is at {rows[row.key].where}",
            )
        rows[row.key] = row
    return list(rows.values())


def _open_table(path: Path) -> tuple[list[str], str, str, str]:
    """Lines of a file, and chip, family and schema that the first of them says."""
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
    return lines, chip, family, str(schema)


def _row(line: str, where: str, schema: str, chip: str, family: str) -> TableRow:
    try:
        data = migrate(_parse(line, where), schema)
        return row_from_dict(data, chip=chip, family=family, where=where)
    except ValueError as error:
        raise TableError(f"bad row: {error}", where=where) from error


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


def _check_line(line: str, where: str) -> None:
    if len(line) > MAX_LINE_BYTES:
        raise TableError(f"a line of more than {MAX_LINE_BYTES:,} bytes", where=where)
    if line.count("[") + line.count("{") > MAX_BRACKETS:
        raise TableError(f"a line of more than {MAX_BRACKETS} brackets", where=where)


def _parse(line: str, where: str) -> dict[str, Any]:
    _check_line(line, where)
    try:
        data = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise TableError(f"not JSON: {error}", where=where) from error
    if not isinstance(data, dict):
        raise TableError("not a JSON object", where=where)
    return data
