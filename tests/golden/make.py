"""Rewrites the golden dumps and timelines; review the diff.

    python tests/golden/make.py dumps       # compiles; needs libtpu; once per supported version
    python tests/golden/make.py timelines   # simulates what is there; seconds

Dumps are small kernels of our own families for every chip. They stay as they are when the kernels
change: what they pin is the parser and the simulator. Those of v4 and v5p for one core are from
before launches were split; `make.py dumps` writes the ones for two.
"""

import functools
import gzip
import importlib.metadata
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from rpa_kernels.batch import Batch
from rpa_kernels.problem import Problem
from rpa_tune.families.registry import load_family
from rpa_tune.hw.chip import load_chip, load_chips
from rpa_tune.llo.machine import load_machine
from rpa_tune.llo.parse import load_program
from rpa_tune.llo.program import Program
from rpa_tune.llo.simulate import simulate
from rpa_tune.llo.timeline import Timeline

FOLDER = Path(__file__).parent
DUMPS = FOLDER / "dumps"
TIMELINES = FOLDER / "timelines.json"
FAMILIES = ("decode", "mixed")
TWO_CORES = "_2cores"
PROBLEM = Problem(
    num_q_heads=4,
    num_kv_heads=1,
    head_dim=128,
    page_size=16,
    max_num_tokens=64,
    max_num_seqs=8,
    pages_per_seq=16,
    num_pages=128,
    sm_scale=128**-0.5,
)
# Lengths of 1, around page boundaries, and the maximum; decode sequences first.
BATCHES = {
    "decode": Batch(
        q_lens=(1,) * 7, kv_lens=(1, 15, 16, 17, 128, 255, 256), num_decode=7, page_seed=1
    ),
    "mixed": Batch(
        q_lens=(1, 17, 5, 40, 1), kv_lens=(33, 17, 100, 256, 1), num_decode=1, page_seed=1
    ),
}
# Where the cores' shares of these batches start and end.
SPLITS = {"decode": (0, 5, 7), "mixed": (1, 0, 3, 0, 5, 0)}


def operands(family: str, batch: Batch | None = None) -> dict[int, Any]:
    """Scalar operands of a golden kernel for one core."""
    arrays = (batch or BATCHES[family]).arrays(PROBLEM)
    return dict(
        enumerate((arrays.kv_lens, arrays.page_indices, arrays.cu_q_lens, arrays.distribution))
    )


def operands_of(name: str) -> dict[int, Any]:
    """Scalar operands of the golden dump `name`."""
    _, family = chip_and_family(DUMPS / name)
    found = operands(family)
    if TWO_CORES in name:
        found[len(found)] = np.array(SPLITS[family], np.int32)
    return found


def dump_files() -> list[Path]:
    """All golden dumps: `dumps/<libtpu version>/<chip>_<family>[_2cores].txt.gz`."""
    return sorted(DUMPS.glob("*/*.txt.gz"))


def chip_and_family(path: Path) -> tuple[str, str]:
    """What a golden dump was compiled from."""
    chip, family, *_ = path.name.removesuffix(".txt.gz").split("_")
    return chip, family


def unpack(path: Path, folder: Path) -> Path:
    """A dump as plain text in a folder."""
    plain = folder / f"{path.parent.name}-{path.name.removesuffix('.txt.gz')}-final_bundles.txt"
    plain.write_bytes(gzip.decompress(path.read_bytes()))
    return plain


@functools.cache
def program(name: str) -> Program:
    """A golden dump by `version/chip_family.txt.gz`, parsed."""
    with tempfile.TemporaryDirectory() as folder:
        return load_program(unpack(DUMPS / name, Path(folder)))


def summary(timeline: Timeline) -> dict[str, Any]:
    """What a golden timeline pins."""
    return {
        "core_cycles": timeline.core_cycles,
        "total_cycles": timeline.total_cycles,
        "cycles_by_owner": timeline.cycles_by_owner,
        "num_bundles": timeline.num_bundles,
        "read_bytes": timeline.read_bytes,
        "write_bytes": timeline.write_bytes,
        "num_copies": timeline.num_copies,
        "prefetch_bytes": timeline.prefetch_bytes,
        "slots": {name: use.instructions for name, use in timeline.slots.items()},
        "loops": [[loop.first, loop.last, loop.entries, loop.trips] for loop in timeline.loops],
        "bound_by": timeline.bound_by,
        "unknown": timeline.unknown,
    }


def make_timelines() -> None:
    """Simulates every dump."""
    rows = {}
    for path in dump_files():
        chip, _ = chip_and_family(path)
        name = f"{path.parent.name}/{path.name}"
        rows[name] = summary(simulate(program(name), load_machine(chip), operands_of(name)))
    TIMELINES.write_text(json.dumps(rows, indent=1, sort_keys=True) + "\n")


def make_dumps() -> None:
    """Compiles every family for every chip with the libtpu that is installed."""
    from rpa_tune.candidate import Candidate
    from rpa_tune.compile.cache import CompileCache, compile_key
    from rpa_tune.compile.pool import WorkerPool
    from rpa_tune.evaluate.simulate_task import TASK, SimulateTask

    folder = DUMPS / importlib.metadata.version("libtpu")
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as cache_dir:
        tasks = [
            SimulateTask(
                candidate=Candidate(
                    family=load_family(family),
                    problem=PROBLEM,
                    config=_small_config(family, chip),
                    chip=load_chip(chip),
                    workload="golden",
                ),
                batches=(BATCHES[family],),
                cache_dir=Path(cache_dir),
            )
            for chip in load_chips()
            for family in FAMILIES
        ]
        with WorkerPool(num_workers=1) as pool:
            for reply in pool.map_unordered(TASK, tasks):
                candidate = tasks[reply.index].candidate
                chip, family = candidate.chip, candidate.family.name
                print(chip.name, family, reply.failure or reply.value.status)
                compiled = CompileCache(Path(cache_dir)).load(compile_key(candidate))
                if compiled is None or compiled.bundles is None:
                    raise SystemExit(f"no schedule: {compiled or reply.failure}")
                raw = compiled.bundles.read_bytes()
                text = gzip.decompress(raw) if compiled.bundles.suffix == ".gz" else raw
                cores = TWO_CORES if chip.num_cores_per_device > 1 else ""
                target = folder / f"{chip.name}_{family}{cores}.txt.gz"
                target.write_bytes(gzip.compress(text, 9, mtime=0))


def _small_config(family: str, chip: str) -> Any:
    """The smallest config that fits: of every axis the first value it can have."""
    record = load_family(family)
    target = load_chip(chip).target
    config = record.default_config(PROBLEM, target)
    fields = record.config_to_dict(config)
    for name, values in record.search_axes(PROBLEM, target).items():
        for value in values:
            smaller = record.config_from_dict({**fields, name: value})
            if record.check(PROBLEM, smaller, target) is None:
                fields[name] = value
                break
    return record.config_from_dict(fields)


if __name__ == "__main__":
    for step in sys.argv[1:] or ["timelines"]:
        {"dumps": make_dumps, "timelines": make_timelines}[step]()
