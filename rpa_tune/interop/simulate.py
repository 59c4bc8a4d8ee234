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
from rpa_tune.hw.chip import load_chip
from rpa_tune.interop import tpu_inference
from rpa_tune.llo.machine import load_machine
from rpa_tune.llo.program import load_program
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
      detail: Why there are no times; empty when there are.
      batch_us: Time of all Pallas calls of the function, one entry a batch, in microseconds.
      batch_cycles: The same in cycles.
      call_us: The same by Pallas call name.
      compile_s: Seconds of lowering and compiling.
      unknown: What the simulator did not model, counted.
    """

    detail: str = ""
    batch_us: tuple[float, ...] = ()
    batch_cycles: tuple[int, ...] = ()
    call_us: tuple[dict[str, float], ...] = ()
    compile_s: float = 0.0
    unknown: dict[str, int] = field(default_factory=dict)


def simulate_foreign(task: ForeignTask) -> ForeignAnswer:
    """Compiles the function once and simulates every Pallas call it makes for every batch."""
    call = tpu_inference.bind(
        task.kernel, task.root, chip=load_chip(task.chip), problem=task.problem, blocks=task.blocks
    )
    launches = [call.pallas_calls(batch) for batch in task.batches]
    names = sorted({launch.name for calls in launches for launch in calls})
    with tpu_inference.pretend(call.chip, call.module):
        compiled = compile_call(
            Call(function=call.function, arguments=call.arguments, kernel_name=names[0]), task.chip
        )
    if compiled.bundles is None:
        return ForeignAnswer(detail=f"{compiled.status}: {compiled.detail}")
    worker.report_phase("simulate")
    folder = target.dump_folder(worker.worker_folder())
    machine = load_machine(task.chip)
    programs = {name: load_program(dumps.find_bundles(folder, name)) for name in names}
    timelines = [
        {launch.name: simulate(programs[launch.name], machine, launch.operands) for launch in calls}
        for calls in launches
    ]
    for batch, row in zip(task.batches, timelines, strict=True):
        read_bytes = sum(timeline.read_bytes for timeline in row.values())
        if read_bytes < least_cached_bytes(task.problem, batch, _ALL_SLOTS):
            # Its schedule has a fixed length; what does not fit is dropped without a word.
            return ForeignAnswer(
                detail=f"reads only {read_bytes:,} bytes: its schedule is too short"
            )
    return ForeignAnswer(
        batch_us=tuple(sum(t.time_us for t in row.values()) for row in timelines),
        batch_cycles=tuple(sum(t.total_cycles for t in row.values()) for row in timelines),
        call_us=tuple({name: t.time_us for name, t in row.items()} for row in timelines),
        compile_s=compiled.lower_s + compiled.compile_s,
        unknown=_sum_unknown([t for row in timelines for t in row.values()]),
    )


def _sum_unknown(timelines: list[Timeline]) -> dict[str, int]:
    total: dict[str, int] = {}
    for timeline in timelines:
        for name, count in timeline.unknown.items():
            total[name] = total.get(name, 0) + count
    return total
