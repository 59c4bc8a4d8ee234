"""Compiles and simulates a public kernel, in a worker process: a task for `compile.pool`.

The foreign twin of `evaluate.simulated`: same compiler flags, same parser, same machine, so that
its cycles and ours are comparable side by side.
"""

import contextlib
import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from rpa_kernels.batch import Batch
from rpa_kernels.problem import Problem
from rpa_tune.candidate import Status
from rpa_tune.compile import dumps, target, worker
from rpa_tune.compile.cache import CompileCache, Compiled
from rpa_tune.compile.lower import compile_call
from rpa_tune.errors import DumpError
from rpa_tune.families.family import Call
from rpa_tune.hw.chip import Chip
from rpa_tune.interop.public.family import least_cached_bytes
from rpa_tune.interop.public.launches import ScheduleTooLongError
from rpa_tune.interop.public.operands import PallasCall, kept_calls
from rpa_tune.interop.public.tpu_inference import functions
from rpa_tune.interop.public.tpu_inference.package import PACKAGE
from rpa_tune.llo.ensemble import load_sets
from rpa_tune.llo.machine import load_machine
from rpa_tune.llo.parse import load_program
from rpa_tune.llo.program import Program
from rpa_tune.llo.simulate import Timeline, simulate
from rpa_tune.provenance import versions

TASK = "rpa_tune.interop.simulate:simulate_foreign"
_ALL_SLOTS = ("decode", "prefill", "mixed")


@dataclass(frozen=True, kw_only=True, slots=True)
class ForeignTask:
    """What to compile and which batches to run.

    Attributes:
      kernel: A key of `functions.MODULES`.
      root: Folder of the unpacked wheel.
      chip: Where it runs.
      problem: Static shapes and dtypes.
      blocks: Block sizes as `functions.bind` takes them.
      batches: The launches to time.
      cache_dir: Where schedules are kept.
      without: How the names of Pallas calls begin that are left out of times; none if empty.
    """

    kernel: str
    root: Path
    chip: Chip
    problem: Problem
    blocks: Any
    batches: tuple[Batch, ...]
    cache_dir: Path
    without: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class ForeignAnswer:
    """Simulated launches of one public function.

    Attributes:
      detail: Why times are missing; empty when none is.
      batch_us: Time of all Pallas calls of the function, one entry a batch, in microseconds; None
        for a batch that was not served; empty when none was.
      call_us: The same by Pallas call name; empty for a batch without a time.
      set_us: `batch_us` under each set of the simulator's parameters, an empty tuple for a batch
        without a time.
      call_set_us: The same by Pallas call name, as `call_us`.
      compile_s: Seconds of lowering and compiling; 0 from the cache.
      unknown: What the simulator did not model, counted.
    """

    detail: str = ""
    batch_us: tuple[float | None, ...] = ()
    call_us: tuple[dict[str, float], ...] = ()
    set_us: tuple[tuple[float, ...], ...] = ()
    call_set_us: tuple[dict[str, tuple[float, ...]], ...] = ()
    compile_s: float = 0.0
    unknown: dict[str, int] = field(default_factory=dict)


class _Refusal(NamedTuple):
    """Why a batch has no time, and whether more SMEM may help."""

    reason: str
    is_smem: bool = False


_Row = dict[str, Timeline] | _Refusal


def simulate_foreign(task: ForeignTask) -> ForeignAnswer:
    """Compiles the function and simulates every Pallas call it makes for every batch.

    The function is told the share of SMEM that is fastest. Batches whose schedule is too long for
    it are served by a second compile that is told all, as the function would be without us.

    Raises:
      Exception: What the function raises when it is traced for compiling.
    """
    call = _bind(task, None)
    rows, compile_s = _serve(task, call, dict(enumerate(task.batches)))
    short = [i for i, row in rows.items() if isinstance(row, _Refusal) and row.is_smem]
    if short and call.smem_share < 1:
        again, more_s = _serve(task, _bind(task, 1.0), {i: task.batches[i] for i in short})
        rows, compile_s = rows | again, compile_s + more_s
    return _answer([rows[i] for i in range(len(task.batches))], compile_s)


def _bind(task: ForeignTask, smem_share: float | None) -> functions.ForeignCall:
    return functions.bind(
        task.kernel, task.root, chip=task.chip, problem=task.problem,
        blocks=task.blocks, smem_share=smem_share,
    )  # fmt: skip


def _serve(
    task: ForeignTask, call: functions.ForeignCall, batches: dict[int, Batch]
) -> tuple[dict[int, _Row], float]:
    """A row for each batch, and the seconds of the compile."""
    worker.report_phase("launches")
    rows: dict[int, _Row] = {}
    launches: dict[int, tuple[PallasCall, ...]] = {}
    for i, batch in batches.items():
        found = _launches(task, call, batch)
        if isinstance(found, _Refusal):
            rows[i] = found
        else:
            launches[i] = tuple(
                one for one in found if not task.without or not one.name.startswith(task.without)
            )
    names = sorted({one.name for calls in launches.values() for one in calls})
    if not names:
        return rows, 0.0
    compiled = _schedules(task, call, names)
    first = compiled[names[0]]
    seconds = 0.0 if first.from_cache else first.lower_s + first.compile_s
    if first.bundles is None:
        refusal = _Refusal(f"{first.status}: {first.detail}")
        return rows | dict.fromkeys(launches, refusal), seconds
    worker.report_phase("simulate")
    programs = {name: _load(one) for name, one in compiled.items()}
    for i, calls in launches.items():
        rows[i] = _simulate(programs, task, batches[i], calls)
    return rows, seconds


def _schedules(
    task: ForeignTask, call: functions.ForeignCall, names: Sequence[str]
) -> dict[str, Compiled]:
    """What the compiler says about the function, by Pallas call; from the cache if it has all."""
    cache = CompileCache(task.cache_dir)
    content = [
        PACKAGE.digest, task.kernel, task.chip.name, task.problem, task.blocks, call.smem_share,
        target.DUMP_FLAGS, target.program_settings(), versions(),
    ]  # fmt: skip
    keys = {name: hashlib.sha256(repr([*content, name]).encode()).hexdigest() for name in names}
    known = {name: found for name, key in keys.items() if (found := cache.load(key))}
    if len(known) == len(names):
        return known
    whole = Call(
        function=call.function,
        arguments=call.arguments,
        kernel_name=names[0],
        donated=call.donated,
        context=call.pretend,
    )
    compiled = compile_call(whole, task.chip)
    if compiled.bundles is None:
        each = dict.fromkeys(names, compiled)
    else:
        folder = target.dump_folder(worker.worker_folder())
        each = {name: replace(compiled, bundles=dumps.find_bundles(folder, name)) for name in names}
    if compiled.status is not Status.COMPILE_FAILED:
        with contextlib.suppress(OSError):  # a full disk costs the next run a compile
            for name, one in each.items():
                cache.save(keys[name], one)
    return each


def _load(compiled: Compiled) -> Program:
    assert compiled.bundles is not None
    return load_program(dumps.unpack_bundles(compiled.bundles, worker.worker_folder()))


def _launches(
    task: ForeignTask, call: functions.ForeignCall, batch: Batch
) -> tuple[PallasCall, ...] | _Refusal:
    """The calls for a batch, or why the function cannot make them."""
    decides = (task.kernel, task.chip.name, task.problem, task.blocks, call.smem_share, batch)
    try:
        return kept_calls(task.root, PACKAGE.digest, decides, lambda: call.pallas_calls(batch))
    except Exception as error:  # the function's own, whatever it is; other batches may be served
        *_, last = str(error).strip().splitlines() or [""]
        reason = f"{type(error).__name__}: {last.strip()}"
        return _Refusal(reason, is_smem=isinstance(error, ScheduleTooLongError))


def _simulate(
    programs: dict[str, Program], task: ForeignTask, batch: Batch, calls: tuple[PallasCall, ...]
) -> _Row:
    """Each call's simulated launch, or why there is none that serves the batch."""
    machine, sets = load_machine(task.chip.name), load_sets(task.chip.name)
    try:
        row = {
            one.name: simulate(programs[one.name], machine, one.operands, sets=sets)
            for one in calls
        }
    except DumpError as error:
        return _Refusal(" ".join(str(error).split()))
    read_bytes = sum(timeline.read_bytes for timeline in row.values())
    least = least_cached_bytes(task.problem, batch, _ALL_SLOTS)
    if read_bytes < least:
        # Its schedule has a fixed length; what does not fit is dropped without a word.
        reason = f"reads {read_bytes:,} of {least:,} cached bytes: its schedule is too short"
        return _Refusal(reason, is_smem=True)
    return row


def _answer(rows: list[_Row], compile_s: float) -> ForeignAnswer:
    """One answer for all batches; a reason that all of them share is said once."""
    served = [row for row in rows if not isinstance(row, _Refusal)]
    reasons = [row.reason if isinstance(row, _Refusal) else "" for row in rows]
    if not served and len(set(reasons)) == 1:
        return ForeignAnswer(detail=reasons[0], compile_s=compile_s)
    unknown: Counter[str] = Counter()
    for timeline in (timeline for row in served for timeline in row.values()):
        unknown.update(timeline.unknown)
    found = [{} if isinstance(row, _Refusal) else row for row in rows]
    return ForeignAnswer(
        detail="; ".join(f"batch {i}: {reason}" for i, reason in enumerate(reasons) if reason),
        batch_us=tuple(sum(t.time_us for t in row.values()) if row else None for row in found),
        call_us=tuple({name: t.time_us for name, t in row.items()} for row in found),
        set_us=tuple(
            tuple(map(sum, zip(*(t.set_us for t in row.values()), strict=True))) for row in found
        ),
        call_set_us=tuple({name: t.set_us for name, t in row.items()} for row in found),
        compile_s=compile_s,
        unknown=dict(unknown),
    )
