"""Records what the launches of the public measured rows do, from the public kernels themselves.

Compiles each row's kernel for a chip that is not there, runs its scalar program on the row's batch,
and keeps bundles, copies and waits in `data/recordings.zip`; no code of a public kernel is kept.

    python benchmarks/record_measured.py [--workers 2] [--source tokamax] [--row v3-0] [--again]
    python benchmarks/record_measured.py --check --row v3-5

It records the rows of the v3 kernel, which pip gets in the tpu-inference 0.32.0 wheel, and those
of tokamax, whose wheel pip gets too, under Python 3.12 and jax 0.11.1 or newer. The other
two kernels are in no package. Those of sglang-jax, and `--source choices`, the same calls with
other blocks than its table has, need `--sources FOLDER`, where FOLDER/sglang-jax is
github.com/sgl-project/sglang-jax at 87cd71a8. Those of the stacked kernel were made in the same
way, from github.com/vllm-project/tpu-inference at 6b1a9495, and stand as they are.

Rows that are recorded already are left alone but for `--again`; `--check` records them again,
writes nothing, and ends with 1 when one is not what the archive has, byte for byte. The measured
kernels were compiled by other versions of jax and libtpu than the ones recorded here, which the
manifest names.
"""

import argparse
import importlib
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

import measured

from rpa_tune.compile.paths import default_cache_dir
from rpa_tune.compile.pool import WorkerPool
from rpa_tune.errors import UsageError
from rpa_tune.interop import records
from rpa_tune.interop.public.tokamax.package import PACKAGE as TOKAMAX
from rpa_tune.interop.public.tpu_inference.package import WHEEL
from rpa_tune.llo.machine import load_machine
from rpa_tune.llo.parse import load_program
from rpa_tune.llo.recording import pack
from rpa_tune.llo.run import Operands
from rpa_tune.llo.simulate import record
from rpa_tune.provenance import provenance

TASK = "record_measured:record_row"
SOURCES = ("v3", "tokamax", "sglang", "choices")
_DEADLINE_S = 3600.0  # compute blocks of 2048 tokens take a quarter of an hour to compile


@dataclass(frozen=True, kw_only=True, slots=True)
class Task:
    """One row, and where the kernel is found.

    Attributes:
      row: What was measured.
      wheels: Folder of unpacked wheels.
      sources: Folder of checkouts, if there is one.
    """

    row: measured.Row
    wheels: Path
    sources: Path | None


def record_row(task: Task) -> tuple[bytes, str]:
    """In a worker: the packed recordings of a row's launch, or nothing and why."""
    source = task.row.name.partition("-")[0]
    if source in ("tokamax", "sglang"):
        # tokamax's needs a newer jax.
        folder = task.wheels if source == "tokamax" else task.sources
        calls = importlib.import_module(f"{source}_calls")
        try:
            return pack(calls.record_line(task.row.contents, folder)), ""
        except UsageError as error:
            return b"", str(error)
    bundles, operands = _v3(task)
    if isinstance(bundles, str):
        return b"", bundles
    program = load_program(bundles)
    return pack([record(program, load_machine(task.row.chip), operands)]), ""


def _v3(task: Task) -> tuple[Path | str, Operands]:
    """The kernel of the wheel."""
    from rpa_tune.compile import worker
    from rpa_tune.compile.dumps import unpack_bundles

    output = worker.worker_folder() / "schedule.txt.gz"
    root = WHEEL.fetch(task.wheels)
    asked = records.CompileTask(record=task.row.contents, root=root, output=output)
    if refusal := records.compile_record(asked):
        return refusal, {}
    return unpack_bundles(output, worker.worker_folder()), task.row.contents.operands()


def main() -> None:
    """Records what is missing, or checks; ends with 1 when a row failed."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--source", choices=SOURCES, default="v3", help="whose kernels")
    parser.add_argument(
        "--row", action="append", help="only this row; repeat, in the order to record"
    )
    parser.add_argument("--again", action="store_true", help="also what is recorded already")
    parser.add_argument("--check", action="store_true", help="compare with what is recorded")
    parser.add_argument("--sources", type=Path, help="folder of checkouts; see above")
    parser.add_argument("--wheels", type=Path, default=default_cache_dir() / "fidelity")
    args = parser.parse_args()
    if args.source == "tokamax" and TOKAMAX.unavailable:
        sys.exit(TOKAMAX.unavailable)
    if args.source in ("sglang", "choices") and args.sources is None:
        parser.error(f"--source {args.source} needs --sources: its kernel is in no package")
    rows = measured.load_rows()
    contents: dict[str, bytes] = {}
    versions: dict[str, str] = {}
    if measured.RECORDINGS.exists():
        _, manifest = measured.load_observations(rows)
        versions = dict(manifest["versions"])
        with zipfile.ZipFile(measured.RECORDINGS) as archive:
            contents = {name: archive.read(name) for name in manifest["sha256"]}
    wanted = [
        row
        for row in (measured.load_choices(rows) if args.source == "choices" else rows)
        if (args.source == "choices" or row.name.startswith(f"{args.source}-"))
        and (row.name in args.row if args.row else not row.left_out)
        and (row.name in contents if args.check else args.again or row.name not in contents)
    ]
    if args.check and not wanted:
        sys.exit("nothing to check: no such rows are recorded")
    if args.row:
        wanted.sort(key=lambda row: args.row.index(row.name))
    source = provenance()
    failed = []
    with tempfile.TemporaryDirectory() as scratch:
        tasks = [Task(row=row, wheels=args.wheels, sources=args.sources) for row in wanted]
        with WorkerPool(num_workers=args.workers, scratch_dir=Path(scratch)) as pool:
            for reply in pool.map_unordered(TASK, tasks, deadline_s=_DEADLINE_S):
                name = wanted[reply.index].name
                packed, reason = reply.value or (b"", reply.failure and reply.failure.detail)
                if not packed:
                    failed.append(f"{name}: {reason}")
                    print(failed[-1], file=sys.stderr)  # a long run may be interrupted
                    continue
                if args.check:
                    same = packed == contents[name]
                    print(f"{name}: {'as recorded' if same else 'another recording'}")
                    failed += [] if same else [f"{name}: not what the archive has"]
                    continue
                contents[name] = packed
                versions[name] = f"jax {source['jax']}, libtpu {source['libtpu']}"
                measured.keep(contents, versions)
                print(f"{name}: {len(packed):,} bytes", file=sys.stderr)
    if failed:
        sys.exit(f"not {'as ' * args.check}recorded:\n" + "\n".join(failed))


if __name__ == "__main__":
    # Workers import what they are sent by the name of its module, which `__main__` is not.
    importlib.import_module("record_measured").main()
