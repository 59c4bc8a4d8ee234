"""Measured answers of a store as launches that a machine model can be fitted to.

A store keeps times of batches, but neither schedules nor lengths: schedules are compiled again (or
found in the cache) by worker processes, lengths come from the plan that the store was made by.
"""

import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from rpa_tune.candidate import Evaluation, Fidelity
from rpa_tune.compile.dumps import schedule_digest, unpack_bundles
from rpa_tune.compile.pool import TaskPool
from rpa_tune.evaluate.evaluator import find_obstacle
from rpa_tune.evaluate.simulate_task import SimulateTask, scalar_operands
from rpa_tune.llo.calibrate import Observation
from rpa_tune.llo.machine import load_machine
from rpa_tune.llo.parse import load_program
from rpa_tune.llo.program import Program
from rpa_tune.llo.simulate import record
from rpa_tune.provenance import versions
from rpa_tune.workload.workload import Workload

COMPILE = "rpa_tune.evaluate.simulate_task:compile_schedule"


def measured_answers(evaluations: Iterable[Evaluation], chip: str) -> list[Evaluation]:
    """The last measured answer of each candidate for a chip that has a time."""
    found = {
        e.candidate.digest: e
        for e in evaluations
        if e.fidelity is Fidelity.MEASURED and e.candidate.chip.name == chip
    }
    return [answer for answer in found.values() if answer.ok]


def observe(
    answers: Iterable[Evaluation],
    workloads: Mapping[str, Workload],
    pool: TaskPool,
    *,
    cache_dir: Path,
    num_batches: int,
) -> Iterator[Observation | str]:
    """Launches with their measured times, or why an answer gives none.

    Args:
      answers: Measured ones.
      workloads: By digest.
      pool: Where schedules are compiled.
      cache_dir: Where compiles are kept.
      num_batches: Launches to take of each answer, from its quickest to its slowest batch.
    """
    usable = []
    for answer in answers:
        name = f"{answer.candidate.family.name} {answer.candidate.digest}"
        if answer.candidate.workload not in workloads:
            yield f"{name}: the plan has no workload {answer.candidate.workload}"
        elif not answer.metrics.get("is_steady", True):
            yield f"{name}: its samples were not steady"
        elif obstacle := _stale(answer) or find_obstacle(
            answer.candidate, workloads[answer.candidate.workload]
        ):
            yield f"{name}: {obstacle}"
        else:
            usable.append((name, answer))
    tasks = [
        SimulateTask(candidate=answer.candidate, batches=(), cache_dir=cache_dir)
        for _, answer in usable
    ]
    for reply in pool.map_unordered(COMPILE, tasks):
        name, answer = usable[reply.index]
        if reply.failure is not None:
            yield f"{name}: {reply.failure.detail}"
        elif reply.value.bundles is None:
            yield f"{name}: {reply.value.status}: {reply.value.detail}"
        elif reply.value.not_cached:
            yield f"{name}: its schedule cannot be kept: {reply.value.not_cached}"
        elif (program := _load(reply.value.bundles, answer)) is None:
            yield f"{name}: its schedule here is not the one that was measured{_made_with(answer)}"
        else:
            workload = workloads[answer.candidate.workload]
            yield from _launches(name, answer, workload, program, num_batches)


def _stale(answer: Evaluation) -> str:
    """Why what is compiled here is not what was measured; empty as far as that can be told."""
    stamp = answer.provenance
    if stamp.get("kernel") not in (None, answer.candidate.family.digest):
        return f"measured with other sources of the kernel{_made_with(answer)}"
    # The digest of a schedule tells more than the version of its compiler.
    has_digest = bool(answer.metrics.get("schedule_digest"))
    if not has_digest and stamp.get("libtpu") not in (None, versions()["libtpu"]):
        return f"measured with another compiler{_made_with(answer)}"
    return ""


def _made_with(answer: Evaluation) -> str:
    """The versions of a measurement and those of here, where they differ."""
    stamp, here = answer.provenance, versions()
    names = [n for n in ("rpa_tune", "jax", "libtpu") if stamp.get(n) not in (None, here[n])]
    return "".join(f" ({name} {stamp[name]}, here {here[name]})" for name in names)


def _load(bundles: Path, answer: Evaluation) -> Program | None:
    """The schedule, or None when it is known to be another than the one that was measured."""
    with tempfile.TemporaryDirectory() as folder:
        unpacked = unpack_bundles(bundles, Path(folder))
        wanted = answer.metrics.get("schedule_digest")
        if wanted and schedule_digest(unpacked) != wanted:
            return None
        return load_program(unpacked)


def _launches(
    name: str, answer: Evaluation, workload: Workload, program: Program, num_batches: int
) -> Iterator[Observation]:
    by_time = sorted(range(len(answer.batch_us)), key=lambda i: answer.batch_us[i])
    num = min(num_batches, len(by_time))
    picked = sorted({by_time[round(n * (len(by_time) - 1) / max(1, num - 1))] for n in range(num)})
    batches = [
        weighted.batch for weighted in workload.for_family(*answer.candidate.family.slots).batches
    ]
    machine = load_machine(answer.candidate.chip.name)
    for i in picked:
        yield Observation(
            label=f"{name} batch {i}",
            launches=(record(program, machine, scalar_operands(answer.candidate, batches[i])),),
            measured_us=answer.batch_us[i],
        )
