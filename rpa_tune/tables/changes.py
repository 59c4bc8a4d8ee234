"""What differs between two sets of tables, row by row."""

from dataclasses import asdict, dataclass
from typing import Any

from rpa_tune.tables.key import TuningKey
from rpa_tune.tables.reader import Tables


@dataclass(frozen=True, kw_only=True, slots=True)
class Change:
    """One row that is not the same.

    Attributes:
      key: Whose row.
      kind: `added`, `removed` or `changed`.
      fields: Name -> (old, new) of what changed; empty for the other kinds.
    """

    key: TuningKey
    kind: str
    fields: dict[str, tuple[Any, Any]]

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        fields = {name: {"old": old, "new": new} for name, (old, new) in self.fields.items()}
        return {"key": asdict(self.key), "kind": self.kind, "fields": fields}

    def __str__(self) -> str:
        """A headline, and a line for each field."""
        head = f"{self.kind} {self.key}"
        return "\n".join(
            [head, *(f"  {n}: {old} -> {new}" for n, (old, new) in self.fields.items())]
        )


def diff_tables(old: Tables, new: Tables) -> list[Change]:
    """Changes from `old` to `new`, in key order."""
    before = {row.key: row for row in old}
    after = {row.key: row for row in new}
    changes = []
    for key in sorted(before.keys() | after.keys()):
        if key not in before or key not in after:
            kind = "added" if key in after else "removed"
            changes.append(Change(key=key, kind=kind, fields={}))
            continue
        left, right = _flat(before[key].to_dict()), _flat(after[key].to_dict())
        fields = {
            name: (left.get(name), right.get(name))
            for name in sorted(left.keys() | right.keys())
            if left.get(name) != right.get(name)
        }
        if fields:
            changes.append(Change(key=key, kind="changed", fields=fields))
    return changes


def _flat(data: Any, prefix: str = "") -> dict[str, Any]:
    """Nested objects and lists as dotted names."""
    if isinstance(data, dict):
        entries = list(data.items())
    elif isinstance(data, list):
        entries = list(enumerate(data))
    else:
        return {prefix: data}
    flat: dict[str, Any] = {}
    for name, value in entries:
        flat |= _flat(value, f"{prefix}.{name}" if prefix else str(name))
    return flat
