"""How large a fleet of rows is, in files and in a wheel, and how long it takes to load.

No such fleet ships yet, so it is made up: as many studies and rows as `rpa-tune sweep fleet
--dry-run` plans, each a shipped study whose key, configs, times and digests are drawn anew. Drawn
numbers compress worse than real ones. What a look-up takes: `benchmarks/dispatch.py`.

```
.venv/bin/python benchmarks/table_size.py --studies 6371 --rows 20558
```
"""

import argparse
import itertools
import random
import tempfile
import time
import zipfile
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from rpa_tune.hw.chip import load_chips
from rpa_tune.tables.key import FILLED, TuningKey, studied_key
from rpa_tune.tables.reader import load_tables, shipped_folder
from rpa_tune.tables.row import TableRow
from rpa_tune.tables.writer import merge_into

# Sizes that a key may have, as many as give every study one of its own.
_SIZES = {
    "num_q_heads": (2, 4, 5, 8, 12, 16, 20, 32, 40, 64),
    "num_kv_heads": (1, 2, 4, 8, 16),
    "head_dim": (64, 128, 256),
    "page_size": (16, 128, 256),
    "sliding_window_tokens": (0, 128, 512, 1024, 4096),
    "kv_dtype": ("bfloat16", "float8_e4m3fn"),
}


def make_fleet(rows: Iterator[TableRow], studies: int, total: int) -> Iterator[TableRow]:
    """As many rows of as many studies, dealt to all chips.

    Args:
      rows: Of sweeps; those of one study are copied together.
      studies: How many.
      total: How many rows; decode studies fill several, others one.
    """
    kinds: dict[bool, list[list[TableRow]]] = {True: [], False: []}
    groups: dict[TuningKey, list[TableRow]] = defaultdict(list)
    for row in rows:
        groups[studied_key(row.key)].append(row)
    for group in groups.values():
        kinds[group[0].key.family in FILLED].append(group)
    filled = [group for group in kinds[True] if len(group) > 1]
    several = round((total - studies) / (len(filled[0]) - 1))
    draw = random.Random(0)
    sizes = [dict(zip(_SIZES, point, strict=True)) for point in itertools.product(*_SIZES.values())]
    chips = list(load_chips())
    for number in range(studies):
        group = draw.choice(filled if number < several else kinds[False])
        key = sizes[number // len(chips) % len(sizes)]
        yield from _drawn(group, {**key, "chip": chips[number % len(chips)]}, draw)


def _drawn(group: list[TableRow], key: dict[str, Any], draw: random.Random) -> Iterator[TableRow]:
    """The rows of a study under other keys, with a config, times and digests of its own."""
    old = group[0]

    def config() -> dict[str, int]:
        return {name: draw.choice((1, 2, 4)) * value for name, value in old.configs[0].items()}

    def us() -> float:
        return round(draw.uniform(10, 999), 3)

    evidence = replace(
        old.evidence,
        time_us=us(),
        heuristic_us=us(),
        interval_us=(us(), us() + 1000),
        regret_pct=round(draw.uniform(0, 5), 2),
        regret_by_num_configs_pct=(round(draw.uniform(0, 5), 2), round(draw.uniform(0, 5), 2)),
        schedule_digest=f"{draw.getrandbits(64):016x}",
        runners_up=tuple({"config": config(), "time_us": us()} for _ in range(3)),
        heuristic=config(),
    )
    configs = (config(),)
    for row in group:
        yield replace(row, key=replace(row.key, **key), configs=configs, evidence=evidence)


def main() -> None:
    """Prints sizes and times."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--studies", type=int, required=True)
    parser.add_argument("--rows", type=int, required=True)
    given = parser.parse_args()
    rows = list(make_fleet(iter(load_tables([shipped_folder()])), given.studies, given.rows))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        files = merge_into(folder, rows)
        raw = sum(path.stat().st_size for path in files)
        with zipfile.ZipFile(folder / "wheel.zip", "w", zipfile.ZIP_DEFLATED) as wheel:
            for path in files:
                wheel.write(path, path.relative_to(folder))
            packed = sum(info.compress_size for info in wheel.infolist())
        began = time.process_time()
        tables = load_tables([folder], chip="v6e")
        load_s = time.process_time() - began
    print(f"{len({row.key for row in rows}):,} rows of {given.studies:,} studies, made up")
    print(f"{raw / 1e6:.1f} MB of files, {packed / 1e6:.1f} MB of them in a wheel (deflate)")
    print(f"v6e: {len(tables):,} rows load in {1e3 * load_s:.0f} ms of CPU")


if __name__ == "__main__":
    main()
