"""Rows into canonical table files: sorted by key, one a line, replaced in one rename.

A diff of two versions shows exactly the rows that changed. A reader, or a power cut, sees the
old file or the new one, never half of one.
"""

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rpa_tune.errors import TableError
from rpa_tune.files import write_whole
from rpa_tune.tables.reader import read_table
from rpa_tune.tables.row import SCHEMA, TableRow


def merge_into(folder: Path, rows: Iterable[TableRow]) -> list[Path]:
    """Writes rows to `<folder>/<chip>/<family>.jsonl`, replacing those with the same key.

    Args:
      folder: The table folder; made when missing.
      rows: New rows, of any chips and families.

    Returns:
      The files that changed, sorted.

    Raises:
      TableError: An existing file does not parse, or a file cannot be written; every file is
        then either as it was or complete.
    """
    by_file: dict[Path, list[TableRow]] = {}
    for row in rows:
        by_file.setdefault(folder / row.key.chip / f"{row.key.family}.jsonl", []).append(row)
    changed = []
    for path, new in sorted(by_file.items()):
        kept = {row.key: row for row in read_table(path)} if path.exists() else {}
        kept.update({row.key: row for row in new})
        text = render(kept.values(), chip=path.parent.name, family=path.stem)
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            replace_file(path, text)
            changed.append(path)
    return changed


def require_writable(folder: Path) -> None:
    """Refuses a table folder that can be seen to be of no use, before hours are spent on rows.

    Args:
      folder: Need not be there yet.

    Raises:
      TableError: It, or what it would be made in, is no folder that can be written to.
    """
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise TableError(
            "tables cannot be written here",
            where=str(folder),
            hint=f"{there} is no folder that can be written to; use another --tables",
        )


def render(rows: Iterable[TableRow], *, chip: str, family: str) -> str:
    """The canonical text of one table file."""
    header = {
        "schema": SCHEMA,
        "chip": chip,
        "family": family,
        "units": "config sizes are tokens unless the name says otherwise; times are microseconds",
    }
    lines = [_canonical(header)]
    lines += [_canonical(row.to_dict()) for row in sorted(rows, key=lambda row: row.key)]
    return "\n".join(lines) + "\n"


def replace_file(path: Path, text: str) -> None:
    """Replaces a table file; see `write_whole`.

    Raises:
      TableError: The disk is full or failing; the old file is untouched.
    """
    try:
        write_whole(path, text.encode())
    except OSError as error:
        raise TableError(
            f"cannot write the table: {error.strerror or error}",
            where=str(path),
            hint="free some space and run the command again: the results are in the store",
        ) from error


def _canonical(data: dict[str, Any]) -> str:
    return json.dumps(data, sort_keys=False, separators=(",", ":"), allow_nan=False)
