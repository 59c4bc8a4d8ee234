"""Compiles and simulates a public kernel, in a worker process: a task for `compile.pool`.

The foreign twin of `evaluate.simulated`: same compiler flags, same parser, same machine, so that
its cycles and ours are comparable side by side.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rpa_kernels.batch import Batch
from rpa_kernels.problem import Problem
from rpa_tune.compile import dumps, target, worker
from rpa_tune.compile.lower import Call, compile_call
from rpa_tune.errors import DumpError
from rpa_tune.hw.chip import load_chip
from rpa_tune.interop import tpu_inference
from rpa_tune.llo.machine import load_machine
from rpa_tune.llo.parse import load_program
from rpa_tune.llo.program import Program
from rpa_tune.llo.simulate import Timeline, simulate
from rpa_tune.public_kernels import least_cached_bytes

TASK = "rpa_tune.interop.simulate:simulate_foreign"
_ALL_SLOTS = ("decode", "prefill", "mixed")


@dataclass(frozen=True, kw_only=True, slots=True)
class ForeignTask:
    """What to compile and which batches to run.

    Attributes:
      kernel: `v3`, `hd64`, `batched` or `stacked`.
      root: Folder of the unpacked wheel.
      chip: Name in the chip table.
      problem: Static shapes and dtypes.
      blocks: Block sizes as `tpu_inference.bind` takes them.
      batches: The launches to time.
    """

    kernel: str
    root: Path
    chip: str
    problem: Problem
    blocks: Any
    batches: tuple[Batch, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class ForeignAnswer:
    """Simulated launches of one public function.

    Attributes:
      detail: Why times are missing; empty when none is.
      batch_us: Time of all Pallas calls of the function, one entry a batch, in microseconds; None
        for a batch that the function cannot serve; empty when it does not compile.
      call_us: The same by Pallas call name; empty for a batch without a time.
      compile_s: Seconds of lowering and compiling.
      unknown: What the simulator did not model, counted.
    """

    detail: str = ""
    batch_us: tuple[float | None, ...] = ()
    call_us: tuple[dict[str, float], ...] = ()
    compile_s: float = 0.0
    unknown: dict[str, int] = field(default_factory=dict)


def simulate_foreign(task: ForeignTask) -> ForeignAnswer:
    """Compiles the function once and simulates every Pallas call it makes for every batch.

    Raises:
      Exception: What the function raises when it is traced for compiling.
    """
    call = tpu_inference.bind(
        task.kernel, task.root, chip=load_chip(task.chip), problem=task.problem, blocks=task.blocks
    )
    launches = [_launches(call, batch) for batch in task.batches]
    names = sorted({one.name for calls in launches if not isinstance(calls, str) for one in calls})
    if not names:
        return ForeignAnswer(detail=str(launches[0]))
    with call.pretend():
        compiled = compile_call(
            Call(
                function=call.function,
                arguments=call.arguments,
                kernel_name=names[0],
                donated=(3,),
            ),
            task.chip,
        )
    if compiled.bundles is None:
        return ForeignAnswer(detail=f"{compiled.status}: {compiled.detail}")
    worker.report_phase("simulate")
    folder = target.dump_folder(worker.worker_folder())
    programs = {name: load_program(dumps.find_bundles(folder, name)) for name in names}
    rows = [
        _timelines(programs, task, batch, calls)
        for batch, calls in zip(task.batches, launches, strict=True)
    ]
    found = [{} if isinstance(row, str) else row for row in rows]
    reasons = [f"batch {i}: {row}" for i, row in enumerate(rows) if isinstance(row, str)]
    return ForeignAnswer(
        detail="; ".join(reasons),
        batch_us=tuple(sum(t.time_us for t in row.values()) if row else None for row in found),
        call_us=tuple({name: t.time_us for name, t in row.items()} for row in found),
        compile_s=compiled.lower_s + compiled.compile_s,
        unknown=_sum_unknown([t for row in found for t in row.values()]),
    )


def _launches(
    call: tpu_inference.ForeignCall, batch: Batch
) -> tuple[tpu_inference.PallasCall, ...] | str:
    """The calls for a batch, or why the function cannot make them."""
    try:
        return call.pallas_calls(batch)
    except Exception as error:  # the function's own, whatever it is; other batches may be served
        *_, last = str(error).strip().splitlines() or [""]
        return f"{type(error).__name__}: {last.strip()}"


def _timelines(
    programs: dict[str, Program],
    task: ForeignTask,
    batch: Batch,
    calls: tuple[tpu_inference.PallasCall, ...] | str,
) -> dict[str, Timeline] | str:
    """Each call's simulated launch, or why there is none that serves the batch."""
    if isinstance(calls, str):
        return calls
    machine = load_machine(task.chip)
    try:
        row = {one.name: simulate(programs[one.name], machine, one.operands) for one in calls}
    except DumpError as error:
        return " ".join(str(error).split())
    read_bytes = sum(timeline.read_bytes for timeline in row.values())
    least = least_cached_bytes(task.problem, batch, _ALL_SLOTS)
    if read_bytes < least:
        # Its schedule has a fixed length; what does not fit is dropped without a word.
        return f"reads {read_bytes:,} of {least:,} cached bytes: its schedule is too short"
    return row


def _sum_unknown(timelines: list[Timeline]) -> dict[str, int]:
    total: dict[str, int] = {}
    for timeline in timelines:
        for name, count in timeline.unknown.items():
            total[name] = total.get(name, 0) + count
    return total
