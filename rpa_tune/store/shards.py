"""A store in several files: one for each of N runs that share a sweep, and one for the last.

Every run writes its own file, under its own lock, so runs on hosts that share nothing but a folder
never wait for each other. Every run reads all files when it starts.

```
sweep.jsonl               the run without --shard: reads the others, writes the tables
sweep.1-of-2.jsonl        --shard 1/2
sweep.2-of-2.jsonl        --shard 2/2
```
"""

import re
from dataclasses import dataclass
from pathlib import Path

from rpa_tune.errors import StoreError, UsageError
from rpa_tune.store import journal


@dataclass(frozen=True, kw_only=True, slots=True)
class Shard:
    """One of several runs that share a sweep.

    Attributes:
      index: Which, from 1.
      count: Of how many.
    """

    index: int
    count: int

    def __str__(self) -> str:
        """As on the command line."""
        return f"{self.index}/{self.count}"

    def path(self, store: Path) -> Path:
        """The shard's own file of a store."""
        return store.with_name(f"{store.stem}.{self.index}-of-{self.count}{store.suffix}")


def parse_shard(text: str) -> Shard:
    """Reads `I/N`.

    Raises:
      UsageError: It is not two integers, or I is not among 1 to N.
    """
    match = re.fullmatch(r"(\d+)/(\d+)", text.strip())
    if match is None or not 1 <= int(match[1]) <= int(match[2]):
        raise UsageError(
            f"{text!r} is not a shard I/N with I from 1 to N",
            where="--shard",
            hint="--shard 1/4 is the first of four; in a job array use the task's number for I",
        )
    return Shard(index=int(match[1]), count=int(match[2]))


def find_shards(store: Path) -> dict[Shard, Path]:
    """The shard files beside a store, in order.

    Raises:
      StoreError: They are of different counts, so they are no parts of one sweep.
    """
    pattern = re.compile(re.escape(store.stem) + r"\.(\d+)-of-(\d+)" + re.escape(store.suffix))
    found = {}
    for path in store.parent.glob(f"*{store.suffix}") if store.parent.is_dir() else ():
        if match := pattern.fullmatch(path.name):
            found[Shard(index=int(match[1]), count=int(match[2]))] = path
    counts = sorted({shard.count for shard in found})
    if len(counts) > 1:
        raise StoreError(
            f"shards of both {' and '.join(map(str, counts))} parts lie beside this store",
            where=str(store),
            hint="they divide the studies differently: remove one set, or use another store",
        )
    return dict(sorted(found.items(), key=lambda item: item[0].index))


def read_others(store: Path, own: Path) -> list[journal.Contents]:
    """What the files of a store hold, other than one's own."""
    paths = (store, *find_shards(store).values())
    return [journal.read(path) for path in paths if path != own]


def require_idle(shards: dict[Shard, Path], store: Path) -> None:
    """Refuses to go on while a run writes to a shard.

    Raises:
      StoreError: One does.
    """
    if busy := [shard for shard, path in shards.items() if journal.has_writer(path)]:
        raise StoreError(
            f"shard {', '.join(map(str, busy))} is still being written",
            where=str(store),
            hint=f"wait for it, and watch it with: rpa-tune status {store}",
        )
