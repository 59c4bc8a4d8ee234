"""Public measured times of the tpu-inference v3 kernel: what was run, compiled again.

A record names shapes, block sizes, lengths and a time. `compile_record` compiles the kernel of
the record's case in a worker; the parent then simulates its schedule under any machine. Used by
`rpa-tune calibrate` and by `benchmarks/fidelity.py`.
"""

import functools
import gzip
import hashlib
import importlib.metadata
import json
import re
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from rpa_kernels.batch import Batch
from rpa_kernels.checks import check_whole
from rpa_kernels.ints import cdiv
from rpa_kernels.problem import Problem
from rpa_tune.compile import worker
from rpa_tune.compile.pool import WorkerPool
from rpa_tune.errors import UsageError
from rpa_tune.families.family import Call
from rpa_tune.hw.chip import load_chip, load_chips
from rpa_tune.interop.public.tpu_inference import functions
from rpa_tune.interop.public.tpu_inference.configs import V3Config
from rpa_tune.interop.public.tpu_inference.families import v3_name
from rpa_tune.interop.public.tpu_inference.package import WHEEL
from rpa_tune.llo.parse import load_program
from rpa_tune.llo.program import Program

TASK = "rpa_tune.interop.records:compile_record"
CASES = ("decode", "prefill", "mixed")
# Lengths that the records give in words, and what is simulated for them.
_ASSUMED_LENGTHS = {
    "uniform 1025..2048": (1025, 2048),
    "at most about 200": (150, 150),
    "short": (100, 100),
}
_MAX_PAGES = 1 << 14
_DEADLINE_S = 3600.0  # kernels with huge compute blocks take up to a quarter of an hour


@dataclass(frozen=True, kw_only=True, slots=True)
class Record:
    """One measured time.

    Attributes:
      index: Position in the file.
      chip: Name in the chip table.
      case: One of `CASES`.
      problem: Shapes of the call.
      blocks: (bq_sz, bkv_sz, bq_csz, bkv_csz) in tokens.
      batch: Lengths of the launch.
      measured_us: Time.
      timed: What was timed.
      note: What the source says.
      source: Where the record is from.
      assumed: What the record does not say and we assume; empty if nothing.
    """

    index: int
    chip: str
    case: str
    problem: Problem
    blocks: tuple[int, int, int, int]
    batch: Batch
    measured_us: float
    timed: str
    note: str
    source: str
    assumed: str

    @property
    def is_device_time(self) -> bool:
        """Whether the kernel alone was timed, and not a whole call with its wrapper."""
        return self.timed.startswith("kernel device time")

    def operands(self) -> dict[int, npt.NDArray[np.int32]]:
        """Scalar operands of the Pallas call, by position."""
        arrays = self.batch.arrays(self.problem)
        lengths = (arrays.kv_lens, arrays.page_indices, arrays.cu_q_lens, arrays.distribution)
        # The kernel's own state: semaphore slots, and copies in flight (none).
        state = (np.zeros(3, np.int32), np.full(4, -1, np.int32), np.full(6, -1, np.int32))
        return dict(enumerate((*lengths, *state)))


def load_records(path: Path) -> tuple[Record, ...]:
    """Reads a file of records.

    Raises:
      UsageError: The file is missing, or a record lacks a field or contradicts itself.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UsageError(f"cannot read records: {reason}", where=str(path)) from error
    rows = data.get("records") if isinstance(data, dict) else None
    if not isinstance(rows, list) or not rows:
        raise UsageError(
            f"records are needed, got {rows!r:.40}", where=str(path), hint='{"records": [{...}]}'
        )
    records = []
    for index, row in enumerate(rows):
        try:
            records.append(_record(index, row))
        except ValueError as error:
            raise UsageError(
                f"record {index} is not understood: {error}",
                where=str(path),
                hint="benchmarks/data/measured_rpa.json of the repository shows every field",
            ) from error
    return tuple(records)


# Fields of a record that are whole numbers, and whether each may be null.
_SIZES = {
    "num_q_heads": False, "num_kv_heads": False, "head_dim": False, "page_size": False,
    "num_seqs": False, "q_len": False, "max_model_len": True, "max_num_tokens": True,
}  # fmt: skip
_TEXTS = {
    "chip": False, "case": False, "q_dtype": False, "kv_dtype": False, "timed": False,
    "source": False, "note": True,
}  # fmt: skip
_MAX_SEQS = 1 << 16


def _check_fields(row: Any) -> None:
    """Refuses a record with a field that is missing or of the wrong type.

    Raises:
      ValueError: The first that is.
    """
    if not isinstance(row, dict):
        raise ValueError(f"an object is needed, got {row!r:.40}")
    known = (*_SIZES, *_TEXTS, "kv_len", "block_sizes", "measured_us")
    if missing := [name for name in known if name not in row]:
        raise ValueError(f"{missing[0]} is missing")
    for name, may_be_null in _SIZES.items():
        if row[name] is not None or not may_be_null:
            check_whole(name, row[name])
    for name, may_be_null in _TEXTS.items():
        value = row[name]
        if not isinstance(value, str) and not (value is None and may_be_null):
            raise ValueError(f"{name}={value!r:.40} must be a text")
    if row["chip"] not in load_chips():
        raise ValueError(f"chip={row['chip']!r:.40} is not one of {', '.join(load_chips())}")
    if isinstance(row["kv_len"], str):
        if row["kv_len"] not in _ASSUMED_LENGTHS:
            raise ValueError(f"kv_len={row['kv_len']!r:.40} is not one of {[*_ASSUMED_LENGTHS]}")
    else:
        check_whole("kv_len", row["kv_len"])
    blocks = row["block_sizes"]
    if not isinstance(blocks, list) or len(blocks) != 4:
        raise ValueError(f"block_sizes={blocks!r:.40} must be [bq_sz, bkv_sz, bq_csz, bkv_csz]")
    for i, size in enumerate(blocks):
        check_whole(f"block_sizes[{i}]", size)
    if row["num_seqs"] > _MAX_SEQS:
        raise ValueError(f"num_seqs={row['num_seqs']} must be at most {_MAX_SEQS}")
    time = row["measured_us"]
    if type(time) not in (int, float) or not 0 < time < 1e18:
        raise ValueError(f"measured_us={time!r:.40} must be a number above zero")


def _record(index: int, row: dict[str, Any]) -> Record:
    """One record; the call's padded shapes are derived where it does not give them."""
    _check_fields(row)
    assumed = []
    if row["case"] not in CASES:
        raise ValueError(f"case {row['case']!r} is not one of {CASES}")
    if isinstance(row["kv_len"], str):
        low, high = _ASSUMED_LENGTHS[row["kv_len"]]
        kv_lens = tuple(
            int(n) for n in np.random.default_rng(0).integers(low, high + 1, row["num_seqs"])
        )
        assumed.append(f"context {row['kv_len']!r} drawn from {low}..{high}")
    else:
        kv_lens = (row["kv_len"],) * row["num_seqs"]
    blocks = row["block_sizes"]
    longest = row["max_model_len"] or max(*kv_lens, blocks[1])
    if row["max_model_len"] is None:
        assumed.append(f"page table for {longest} tokens")
    q_lens = (row["q_len"],) * row["num_seqs"]
    pages_per_seq = cdiv(longest, row["page_size"])
    window = re.search(r"sliding_window=(\d+)", row["note"] or "")
    return Record(
        index=index,
        chip=row["chip"],
        case=row["case"],
        problem=Problem(
            num_q_heads=row["num_q_heads"],
            num_kv_heads=row["num_kv_heads"],
            head_dim=row["head_dim"],
            page_size=row["page_size"],
            max_num_tokens=row["max_num_tokens"] or max(sum(q_lens), 16),
            max_num_seqs=row["num_seqs"],
            pages_per_seq=pages_per_seq,
            num_pages=min(_MAX_PAGES, pages_per_seq * row["num_seqs"]),
            q_dtype=row["q_dtype"],
            kv_dtype=row["kv_dtype"],
            sm_scale=row["head_dim"] ** -0.5,
            sliding_window=int(window[1]) if window else None,
        ),
        blocks=(blocks[0], blocks[1], blocks[2], blocks[3]),
        batch=Batch(
            q_lens=q_lens,
            kv_lens=kv_lens,
            num_decode=len(q_lens) if row["case"] == "decode" else 0,
            num_prefill=len(q_lens) if row["case"] == "prefill" else 0,
        ),
        measured_us=float(row["measured_us"]),
        timed=row["timed"],
        note=row["note"] or "",
        source=row["source"],
        assumed="; ".join(assumed),
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class CompileTask:
    """What to compile, and where to keep the schedule.

    Attributes:
      record: The measured call.
      root: Folder of the unpacked wheel.
      output: Schedule to write, gzipped.
    """

    record: Record
    root: Path
    output: Path


def compile_record(task: CompileTask) -> str:
    """Compiles a record's call; returns why there is no schedule, or an empty string."""
    from rpa_tune.compile.lower import compile_call
    from rpa_tune.families.own_call import abstract_inputs

    record = task.record
    module = WHEEL.load(task.root, functions.MODULES["v3"])
    chip = load_chip(record.chip)
    function = functools.partial(
        module.ragged_paged_attention,
        sm_scale=record.problem.sm_scale,
        sliding_window=record.problem.sliding_window,
        vmem_limit_bytes=chip.vmem_bytes,
        **_blocks(record),
    )
    bq, bkv, bq_compute, bkv_compute = record.blocks
    config = V3Config(bq_sz=bq, bkv_sz=bkv, bq_csz=bq_compute, bkv_csz=bkv_compute)
    call = Call(
        function=function,
        arguments=abstract_inputs(record.problem),
        kernel_name=v3_name(record.case[0], record.problem, config),
        donated=(3,),
        context=functools.partial(functions.pretend, chip, module),
    )
    compiled = compile_call(call, chip)
    if compiled.bundles is None:
        return f"{compiled.status}: {compiled.detail}"
    worker.report_phase("keep")
    partial = task.output.with_suffix(".partial")
    partial.write_bytes(gzip.compress(compiled.bundles.read_bytes(), 6))
    partial.rename(task.output)
    return ""


def _blocks(record: Record) -> dict[str, Any]:
    """Block sizes of all cases; those that the record does not use are small."""
    small = 2 * record.problem.page_size
    blocks: dict[str, Any] = {
        "d_block_sizes": (1, small, 1, small),
        "m_block_sizes": (8, small, 8, small),
    }
    blocks[f"{record.case[0]}_block_sizes"] = record.blocks
    if record.case == "prefill":
        blocks["chunk_prefill_size"] = record.batch.q_lens[0]
    return blocks


def schedules(
    records: Sequence[Record], *, cache_dir: Path, num_workers: int = 1
) -> Iterator[tuple[Record, Program | str]]:
    """Compiles what is not compiled yet; yields each record with its schedule, or the reason.

    Args:
      records: What to compile.
      cache_dir: Keeps the wheel and the schedules.
      num_workers: Compiler processes.

    Raises:
      UsageError: The wheel cannot be had.
      DumpError: A schedule is not understood.
    """
    root = WHEEL.fetch(cache_dir)
    folder = cache_dir / "schedules" / "-".join(_compiler_versions())
    folder.mkdir(parents=True, exist_ok=True)
    tasks = [
        CompileTask(record=record, root=root, output=folder / f"{_key(record)}.txt.gz")
        for record in records
    ]
    # Records that differ in lengths only share a schedule.
    missing = list({t.output: t for t in tasks if not t.output.exists()}.values())
    refused: dict[Path, str] = {}
    with WorkerPool(num_workers=num_workers, deadline_s=_DEADLINE_S) as pool:
        for reply in pool.map_unordered(TASK, missing):
            detail = reply.failure.detail if reply.failure else reply.value
            if detail:
                refused[missing[reply.index].output] = detail
    programs: dict[Path, Program] = {}
    for task in tasks:
        if task.output in refused:
            yield task.record, refused[task.output]
            continue
        if task.output not in programs:
            with tempfile.NamedTemporaryFile(suffix="-final_bundles.txt") as plain:
                plain.write(gzip.decompress(task.output.read_bytes()))
                plain.flush()
                programs[task.output] = load_program(Path(plain.name))
        yield task.record, programs[task.output]


def _compiler_versions() -> tuple[str, ...]:
    """What decides a schedule besides the record."""
    return tuple(f"{name}{importlib.metadata.version(name)}" for name in ("jax", "libtpu"))


def _key(record: Record) -> str:
    """Digest of what is compiled: shapes, blocks and features, not lengths."""
    chunk = record.batch.q_lens[0] if record.case == "prefill" else 0
    parts = (record.chip, record.case, record.problem, record.blocks, chunk)
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]
