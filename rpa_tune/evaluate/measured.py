"""Times candidates on the TPU of this machine: warm-up, interleaved repeats, medians.

The work is done in one worker process (`measure_task.py`), which owns the chip; this half groups
candidates, chooses what each must get right first, and turns samples into evaluations.
"""

import dataclasses
import functools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rpa_kernels.batch import Batch
from rpa_tune.candidate import Candidate, Evaluation, Fidelity, Status
from rpa_tune.compile import target
from rpa_tune.compile.pool import DEFAULT_DEADLINE_S, Reply, TaskPool, WorkerPool
from rpa_tune.errors import DeviceError
from rpa_tune.evaluate.account import account_of, batches_and_weights
from rpa_tune.evaluate.correctness import hostile_batches, with_runs
from rpa_tune.evaluate.evaluator import (
    AbstractEvaluator,
    find_obstacle,
    refuse,
    status_of_failure,
)
from rpa_tune.evaluate.measurement import Measurement, MeasureTask, spread
from rpa_tune.libtpu_args import VARIABLE
from rpa_tune.provenance import provenance
from rpa_tune.workload.workload import Workload

TASK = "rpa_tune.evaluate.measure_task:measure"
FIND = "rpa_tune.evaluate.measure_task:find_device"
OWN_KERNEL = "rpa_tune.evaluate.measure_task:launch_family"
REFERENCE = "rpa_tune.evaluate.measure_task:launch_reference"
# Source: Linux sysfs; vendor and device ids as in jax/_src/hardware_utils.py of jax 0.10.2.
_PCI_DEVICES = Path("/sys/bus/pci/devices")
_GOOGLE = "0x1ae0"
_TPUS = ("0x005e", "0x0062", "0x0063", "0x006f", "0x0076")  # v4, v5p, v5e, v6e, v7x
# KV caches of full size pass through the host, and libtpu maps gigabytes of it for transfers.
_MEMORY_BYTES = 32 << 30


@dataclass(frozen=True, kw_only=True, slots=True)
class MeasuringHost:
    """Who can measure.

    Attributes:
      chip: Name of the chip that is there; empty when nothing can be measured.
      device: What `measure_task.find_device` says about it.
      reason: Why nothing can be measured; empty when it can.
    """

    chip: str = ""
    device: dict[str, Any] = field(default_factory=dict)
    reason: str = ""


def device_pool(scratch_dir: Path | None = None, libtpu_args: str = "") -> WorkerPool:
    """One worker process, because a chip belongs to one process at a time.

    Args:
      scratch_dir: Where profiles go; the system's temporary folder if None.
      libtpu_args: Flags that it gives libtpu.
    """
    return WorkerPool(
        num_workers=1,
        memory_bytes=_MEMORY_BYTES,
        scratch_dir=scratch_dir,
        environment=functools.partial(target.device_environment, libtpu_args=libtpu_args),
    )


def has_tpu(devices: Path = _PCI_DEVICES) -> bool:
    """Whether a TPU is plugged into this host. Reads the list of PCI devices and nothing else."""
    for folder in devices.glob("*"):
        try:
            vendor, device = ((folder / name).read_text().strip() for name in ("vendor", "device"))
        except OSError:
            continue
        if vendor == _GOOGLE and device in _TPUS:
            return True
    return False


def find_host(pool: TaskPool) -> MeasuringHost:
    """Asks a worker process what it can measure on; the caller never loads libtpu.

    Args:
      pool: Whose workers have the device's own environment.
    """
    (reply,) = pool.map_unordered(FIND, [None])
    if reply.failure is not None:
        return MeasuringHost(reason=f"the TPU cannot be used: {reply.failure.detail}")
    if not reply.value["chip"]:
        found = f"jax finds a {reply.value['platform']} only"
        return MeasuringHost(reason=found, device=reply.value)
    return MeasuringHost(chip=reply.value["chip"], device=reply.value)


class MeasuredEvaluator(AbstractEvaluator):
    """Measured device times. Needs the chip that the candidates are for."""

    def __init__(
        self,
        *,
        num_repeats: int = 20,
        max_rounds: int = 3,
        group_size: int = 16,
        deadline_s: float = DEFAULT_DEADLINE_S,
        launcher: str = OWN_KERNEL,
        platform: str = "tpu",
        pool: TaskPool | None = None,
    ) -> None:
        """Starts nothing yet.

        Args:
          num_repeats: Timed launches of a batch and round.
          max_rounds: Rounds at most, when samples scatter or drift.
          group_size: Most candidates whose launches take turns. A chip that slows down between
            two groups would favour one of them, so the finalists of a study should fit into one.
          deadline_s: Seconds that each compile, each check and each timed batch may take.
          launcher: What to launch for a candidate; `REFERENCE` to try the evaluator itself.
          platform: `tpu`, or `cpu` to try everything but the chip.
          pool: Where launches run, and closed at the end; a worker process of its own if None.
        """
        self._num_repeats = num_repeats
        self._max_rounds = max_rounds
        self._group_size = group_size
        self._launcher = launcher
        self._platform = platform
        self._deadline_s = deadline_s
        self._pool: TaskPool = pool or device_pool()

    @property
    def fidelity(self) -> Fidelity:
        """MEASURED."""
        return Fidelity.MEASURED

    def evaluate_all(
        self, candidates: Iterable[Candidate], workload: Workload
    ) -> Iterator[Evaluation]:
        """One answer per candidate; see `AbstractEvaluator`.

        Raises:
          DeviceError: No TPU, or not the candidates' chip.
        """
        groups: dict[Any, list[Candidate]] = {}
        for candidate in candidates:
            if obstacle := find_obstacle(candidate, workload):
                yield refuse(candidate, self.fidelity, obstacle)
                continue
            same = (candidate.chip, candidate.family, candidate.problem)
            groups.setdefault(same, []).append(candidate)
            if len(groups[same]) == self._group_size:
                yield from self._measure(groups.pop(same), workload)
        for group in groups.values():
            yield from self._measure(group, workload)

    def close(self) -> None:
        """Ends the worker and frees the chip."""
        self._pool.close()

    def _measure(self, group: Sequence[Candidate], workload: Workload) -> Iterator[Evaluation]:
        """Measures candidates side by side; in halves while one of them spoils it for all."""
        task = self._task(group, workload)
        (reply,) = self._pool.map_unordered(TASK, [task], deadline_s=self._deadline_s)
        if reply.failure is None:
            if reply.value.wrong_device:
                raise DeviceError(
                    reply.value.wrong_device, hint="measure on a host with the chip of the plan"
                )
            for candidate, found in zip(group, reply.value.measurements, strict=True):
                yield _conclude(candidate, workload, found, reply)
        elif len(group) > 1:
            middle = len(group) // 2
            yield from self._measure(group[:middle], workload)
            yield from self._measure(group[middle:], workload)
        else:
            yield Evaluation(
                candidate=group[0],
                fidelity=Fidelity.MEASURED,
                status=status_of_failure(reply.failure),
                detail=reply.failure.detail,
                provenance=provenance(group[0].family.digest),
            )

    def _task(self, group: Sequence[Candidate], workload: Workload) -> MeasureTask:
        batches, _ = batches_and_weights(workload.for_family(*group[0].family.slots))
        return MeasureTask(
            candidates=tuple(group),
            batches=tuple(batches),
            check_batches=fitting_batches(group[0]),
            num_repeats=self._num_repeats,
            max_rounds=self._max_rounds,
            launcher=self._launcher,
            platform=self._platform,
        )


def fitting_batches(candidate: Candidate) -> tuple[Batch, ...]:
    """Hostile batches without the sequences that a candidate's problem has no room for."""
    problem, fitting = candidate.problem, []
    for batch in hostile_batches(
        candidate.family.name,
        page_size=problem.page_size,
        block_tokens=min(candidate.config.bkv_sz, problem.max_context_tokens // 2),
        decode_query_size=problem.decode_query_size,
    ):
        left = dataclasses.replace(batch, page_table=None)
        while left.num_seqs and left.misfit(problem):
            left = _without_last(left)
        if left.family_seqs(candidate.family.name):
            fitting.append(with_runs(left, problem.page_size))
    return tuple(fitting)


def _without_last(batch: Batch) -> Batch:
    """A batch without its last sequence."""
    left = batch.num_seqs - 1
    num_decode = min(batch.num_decode, left)
    return dataclasses.replace(
        batch,
        q_lens=batch.q_lens[:left],
        kv_lens=batch.kv_lens[:left],
        num_decode=num_decode,
        num_prefill=min(batch.num_prefill, left - num_decode),
    )


def _conclude(
    candidate: Candidate, workload: Workload, found: Measurement, reply: Reply
) -> Evaluation:
    """Turns samples into an answer."""
    device = reply.value.device
    flags = dict(device["flags"])
    if candidate.libtpu_args and flags.get(VARIABLE) == candidate.libtpu_args:
        del flags[VARIABLE]  # the candidate says so itself
    stamp = {
        **provenance(candidate.family.digest),
        "device": device,
        "settings": flags,
    }
    if found.status is not Status.OK:
        return Evaluation(
            candidate=candidate,
            fidelity=Fidelity.MEASURED,
            status=found.status,
            detail=found.detail,
            provenance=stamp,
        )
    account = account_of(candidate, workload.for_family(*candidate.family.slots))
    batch_us = tuple(samples.time_us for samples in found.samples)
    time_us = account.mean(batch_us)
    spreads = [spread(samples.rounds_ns[-1]) for samples in found.samples]
    return Evaluation(
        candidate=candidate,
        fidelity=Fidelity.MEASURED,
        status=Status.OK,
        time_us=time_us,
        batch_us=batch_us,
        metrics={
            **account.utilization(time_us),
            **account.mean_traffic(candidate.config),
            "spread": max(spreads),
            "is_steady": all(samples.is_steady for samples in found.samples),
            "samples_ns": [[list(r) for r in samples.rounds_ns] for samples in found.samples],
            "evaluate_s": reply.seconds,
        },
        provenance=stamp,
    )
