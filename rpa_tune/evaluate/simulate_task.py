"""What a worker does for the simulated evaluator: compile, parse, simulate, check the account.

Neighbour: `simulated.py` is the parent's half. jax is imported when something must be compiled.
"""

import errno
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rpa_kernels import load_family, runs
from rpa_kernels.batch import Batch
from rpa_kernels.family import Traffic
from rpa_tune.candidate import Candidate, Status
from rpa_tune.compile import target, worker
from rpa_tune.compile.cache import CompileCache, Compiled
from rpa_tune.compile.dumps import DiskFullError, schedule_digest, unpack_bundles
from rpa_tune.errors import DumpError
from rpa_tune.evaluate.account import launch_cores, mxu_flops_of, traffic_of
from rpa_tune.families import public_family
from rpa_tune.hw.chip import load_chip
from rpa_tune.llo.ensemble import load_sets
from rpa_tune.llo.machine import load_machine
from rpa_tune.llo.parse import load_program
from rpa_tune.llo.program import Program
from rpa_tune.llo.simulate import simulate
from rpa_tune.llo.timeline import Timeline
from rpa_tune.public_configs import WHEELS
from rpa_tune.public_kernels import least_cached_bytes

TASK = "rpa_tune.evaluate.simulate_task:simulate_candidate"


@dataclass(frozen=True, kw_only=True, slots=True)
class SimulateTask:
    """One candidate and the batches it is judged on.

    Attributes:
      candidate: What to compile.
      batches: All launch the candidate's family.
      cache_dir: Where compiles are kept.
    """

    candidate: Candidate
    batches: tuple[Batch, ...]
    cache_dir: Path


@dataclass(frozen=True, kw_only=True, slots=True)
class SimulateAnswer:
    """What the worker found.

    Attributes:
      status: OK, or what went wrong.
      detail: One line; empty when OK.
      timelines: One per batch when OK, else none.
      costs: Seconds of each part (`lower_s`, `compile_s`, `parse_s`, `simulate_s`), what the
        compiler said about memory, the digest of its schedule, and the `settings` of the worker
        that may have decided it; as far as it got.
    """

    status: Status
    detail: str = ""
    timelines: tuple[Timeline, ...] = ()
    costs: dict[str, Any] = field(default_factory=dict)


def simulate_candidate(task: SimulateTask) -> SimulateAnswer:
    """Compiles a candidate and runs its schedule on every batch.

    Raises:
      Exception: What the kernel raises while it is traced, or a bug in the simulator.
    """
    costs: dict[str, Any] = {}
    try:
        compiled = compile_schedule(task)
        costs |= _compile_costs(compiled)
        if compiled.status is not Status.OK or compiled.bundles is None:
            return SimulateAnswer(status=compiled.status, detail=compiled.detail, costs=costs)
        worker.report_phase("parse")
        started = time.perf_counter()
        bundles = unpack_bundles(compiled.bundles, worker.worker_folder())
        program = load_program(bundles)
        costs |= {
            "parse_s": time.perf_counter() - started,
            "num_bundles": len(program.bundles),
            "schedule_digest": schedule_digest(bundles),
        }
        worker.report_phase("simulate")
        started = time.perf_counter()
        timelines = tuple(simulate_batch(program, task.candidate, batch) for batch in task.batches)
        costs["simulate_s"] = time.perf_counter() - started
    except (DiskFullError, OSError) as error:
        if isinstance(error, OSError) and error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        # The machine's fault, not the candidate's: CRASHED is asked for again.
        detail = " ".join(str(error).split())
        return SimulateAnswer(status=Status.CRASHED, detail=detail, costs=costs)
    except DumpError as error:
        detail = " ".join(str(error).split())
        return SimulateAnswer(status=Status.NOT_UNDERSTOOD, detail=detail, costs=costs)
    if mismatch := find_mismatch(task.candidate, task.batches, timelines):
        return SimulateAnswer(status=Status.NOT_UNDERSTOOD, detail=mismatch, costs=costs)
    return SimulateAnswer(status=Status.OK, timelines=timelines, costs=costs)


def compile_schedule(task: SimulateTask) -> Compiled:
    """Compiles a candidate, or finds its schedule in the cache.

    Raises:
      Exception: What the kernel raises while it is traced, or a dump that is not understood.
    """
    # Here, so that jax is loaded while the deadline is running.
    from rpa_tune.compile.lower import compile_candidate

    cache = CompileCache(task.cache_dir)
    if not public_family(task.candidate.family):
        return compile_candidate(task.candidate, cache)
    from rpa_tune.interop import candidates, wheel

    wheel.use_wheel(task.cache_dir / WHEELS)
    return compile_candidate(task.candidate, cache, candidates.compile_public)


def _compile_costs(compiled: Compiled) -> dict[str, Any]:
    return {
        "lower_s": compiled.lower_s,
        "compile_s": compiled.compile_s,
        "from_cache": compiled.from_cache,
        "not_cached": compiled.not_cached or None,
        "vmem_bytes": compiled.vmem_bytes,
        "vmem_spill_bytes": compiled.vmem_spill_bytes,
        "hbm_allocated_bytes": compiled.hbm_allocated_bytes,
        "settings": target.program_settings(),
    }


def simulate_batch(program: Program, candidate: Candidate, batch: Batch) -> Timeline:
    """Runs one launch of a compiled candidate, and times it under every set of parameters."""
    if public_family(candidate.family):
        from rpa_tune.interop import candidates

        operands: Mapping[int, Any] = candidates.scalar_operands(candidate, batch)
    else:
        operands = scalar_operands(candidate, batch)
    chip = candidate.chip
    return simulate(program, load_machine(chip), operands, sets=load_sets(chip))


def scalar_operands(candidate: Candidate, batch: Batch) -> Mapping[int, Any]:
    """The int32 arrays of a launch by operand index.

    Every family of ours passes these four first, in this order, and behind them, on two cores,
    the split; `rpa_kernels.calls` says so.
    """
    family, problem = load_family(candidate.family), candidate.problem
    arrays = batch.arrays(problem)
    page_runs = runs.pack(arrays, problem)
    found = [arrays.kv_lens, page_runs, arrays.cu_q_lens, arrays.distribution]
    num_cores = len(launch_cores(candidate))
    if family.partition is not None and num_cores > 1:
        found.append(family.partition(problem, candidate.config, arrays, num_cores))
    return dict(enumerate(found))


def find_mismatch(
    candidate: Candidate, batches: tuple[Batch, ...], timelines: tuple[Timeline, ...]
) -> str:
    """Where a simulation differs from the kernel's account; empty if nowhere.

    Copies must be equal, and matmuls no fewer than the account's FLOPs need: a kernel that skips
    work copies all the same. A difference means that the kernel, the account, the parser or the
    simulator is wrong, so no time that rests on them can be trusted. A public kernel has no exact
    account: only a schedule that reads less than the cached K and V is caught.
    """
    if family := public_family(candidate.family):
        for i, (batch, timeline) in enumerate(zip(batches, timelines, strict=True)):
            least = least_cached_bytes(candidate.problem, batch, family.slots)
            if timeline.read_bytes < least:
                # Its schedule has a fixed length; what does not fit is dropped without a word.
                return (
                    f"batch {i}: reads {timeline.read_bytes:,} of {least:,} cached bytes: "
                    "the kernel's own schedule is too short"
                )
        return ""
    for i, (batch, timeline) in enumerate(zip(batches, timelines, strict=True)):
        account = traffic_of(candidate, batch)
        moved = Traffic(
            read_bytes=timeline.read_bytes,
            write_bytes=timeline.write_bytes,
            num_copies=timeline.num_copies,
        )
        if moved != account:
            return f"batch {i}: schedule moves {_figures(moved)}, account says {_figures(account)}"
        most, least = most_mxu_flops(candidate, timeline), mxu_flops_of(candidate, batch)
        if most < least:
            return (
                f"batch {i}: schedule multiplies at most {most:,} FLOPs, account says {least:,}: "
                "work is skipped"
            )
    return ""


def most_mxu_flops(candidate: Candidate, timeline: Timeline) -> int:
    """FLOPs of the matmuls that were executed, had each used every row and column of its MXU."""
    chip = load_chip(candidate.chip)
    rows = timeline.mxu_busy_cycles * chip.value("mxu_rows_per_cycle")
    return round(2 * rows * chip.value("mxu_size") ** 2)


def _figures(traffic: Traffic) -> str:
    return (
        f"{traffic.read_bytes:,} bytes in and {traffic.write_bytes:,} out "
        f"in {traffic.num_copies:,} copies"
    )
