"""What a worker does for the simulated evaluator: compile, parse, simulate, check the account.

Neighbour: `simulated.py` is the parent's half. jax is imported when something must be compiled.
"""

import errno
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rpa_kernels.batch import Batch
from rpa_kernels.family import Traffic
from rpa_tune.candidate import Candidate, Status
from rpa_tune.compile import target, worker
from rpa_tune.compile.cache import CompileCache, Compiled
from rpa_tune.compile.dumps import DiskFullError, schedule_digest, unpack_bundles
from rpa_tune.errors import DumpError
from rpa_tune.families.family import Executed
from rpa_tune.llo.ensemble import load_sets
from rpa_tune.llo.machine import load_machine
from rpa_tune.llo.parse import load_program
from rpa_tune.llo.program import Program
from rpa_tune.llo.simulate import simulate
from rpa_tune.llo.timeline import Timeline, one_after_the_other

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
        compiled = _compile(task)
        first = compiled[0]
        costs |= _compile_costs(first, task.candidate)
        if first.status is not Status.OK or first.bundles is None:
            return SimulateAnswer(status=first.status, detail=first.detail, costs=costs)
        worker.report_phase("parse")
        started = time.perf_counter()
        programs, digests = zip(*map(_parse, compiled), strict=True)
        costs |= {
            "parse_s": time.perf_counter() - started,
            "num_bundles": sum(len(program.bundles) for program in programs),
            "schedule_digest": "-".join(digests),
        }
        worker.report_phase("simulate")
        started = time.perf_counter()
        timelines = tuple(simulate_batch(programs, task.candidate, batch) for batch in task.batches)
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
    """Compiles a candidate, or finds its schedule in the cache: that of its first Pallas call.

    Raises:
      Exception: What the kernel raises while it is traced, or a dump that is not understood.
    """
    return _compile(task)[0]


def _compile(task: SimulateTask) -> tuple[Compiled, ...]:
    """The same for each of its Pallas calls."""
    # Here, so that jax is loaded while the deadline is running.
    from rpa_tune.compile.lower import compile_candidate

    cache = CompileCache(task.cache_dir)
    task.candidate.family.fetch(task.cache_dir)
    return compile_candidate(task.candidate, cache)


def _parse(compiled: Compiled) -> tuple[Program, str]:
    """A schedule, and its digest."""
    assert compiled.bundles is not None
    bundles = unpack_bundles(compiled.bundles, worker.worker_folder())
    return load_program(bundles), schedule_digest(bundles)


def _compile_costs(compiled: Compiled, candidate: Candidate) -> dict[str, Any]:
    return {
        "lower_s": compiled.lower_s,
        "compile_s": compiled.compile_s,
        "from_cache": compiled.from_cache,
        "not_cached": compiled.not_cached or None,
        "vmem_bytes": compiled.vmem_bytes,
        "vmem_spill_bytes": compiled.vmem_spill_bytes,
        "hbm_allocated_bytes": compiled.hbm_allocated_bytes,
        "settings": target.program_settings(candidate.libtpu_args),
    }


def simulate_batch(programs: Sequence[Program], candidate: Candidate, batch: Batch) -> Timeline:
    """Runs the launches of a compiled candidate, and times them under every set of parameters."""
    chip = candidate.chip
    machine, sets = load_machine(chip.name), load_sets(chip.name)
    launches = candidate.family.launches(candidate.problem, candidate.config, chip, batch)
    return one_after_the_other(
        [
            simulate(program, machine, operands, sets=sets)
            for program, operands in zip(programs, launches, strict=True)
        ]
    )


def scalar_operands(candidate: Candidate, batch: Batch) -> Mapping[int, Any]:
    """The int32 arrays of a launch by operand index; see `Family.scalar_operands`."""
    return candidate.family.scalar_operands(
        candidate.problem, candidate.config, candidate.chip, batch
    )


def find_mismatch(
    candidate: Candidate, batches: tuple[Batch, ...], timelines: tuple[Timeline, ...]
) -> str:
    """Where a simulation cannot be that of the kernel; see `Family.find_mismatch`."""
    for i, (batch, timeline) in enumerate(zip(batches, timelines, strict=True)):
        executed = Executed(
            traffic=Traffic(
                read_bytes=timeline.read_bytes,
                write_bytes=timeline.write_bytes,
                num_copies=timeline.num_copies,
            ),
            mxu_busy_cycles=timeline.mxu_busy_cycles,
        )
        reason = candidate.family.find_mismatch(
            candidate.problem, candidate.config, candidate.chip, batch, executed
        )
        if reason:
            return f"batch {i}: {reason}"
    return ""
