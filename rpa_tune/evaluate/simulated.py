"""Compiles each candidate for a chip that is not there, and simulates its schedule.

The work is done in worker processes (`simulate_task.py`); this half decides what is worth sending,
turns what comes back into evaluations, and gives every way to fail its status.
"""

import functools
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rpa_tune.candidate import Candidate, Evaluation, Fidelity, Status
from rpa_tune.compile.pool import (
    DEFAULT_DEADLINE_S,
    DEFAULT_MEMORY_BYTES,
    Reply,
    TaskPool,
    WorkerPool,
)
from rpa_tune.compile.target import worker_environment
from rpa_tune.evaluate.account import account_of, batches_and_weights, weighted_mean
from rpa_tune.evaluate.evaluator import (
    AbstractEvaluator,
    find_obstacle,
    largest,
    plain,
    refuse,
    status_of_failure,
)
from rpa_tune.evaluate.simulate_task import TASK, SimulateAnswer, SimulateTask
from rpa_tune.evaluate.understood import PROBE_DEADLINE_S, require_understood
from rpa_tune.hw.chip import Chip
from rpa_tune.llo.ensemble import interval
from rpa_tune.llo.timeline import Timeline
from rpa_tune.provenance import provenance
from rpa_tune.workload.workload import WeightedBatch, Workload


@dataclass(frozen=True, kw_only=True, slots=True)
class Simulation:
    """An evaluation with the timelines it was made from, one per batch (none without a time)."""

    evaluation: Evaluation
    timelines: tuple[Timeline, ...] = ()

    def heaviest(self, workload: Workload) -> tuple[WeightedBatch, Timeline]:
        """The batch that most of the time goes into, and its timeline."""
        pairs = zip(workload.batches, self.timelines, strict=True)
        return max(pairs, key=lambda pair: pair[0].weight * pair[1].time_us)


class SimulatedEvaluator(AbstractEvaluator):
    """Simulated times of compiled schedules."""

    def __init__(
        self,
        *,
        num_workers: int = 1,
        cache_dir: Path,
        deadline_s: float = DEFAULT_DEADLINE_S,
        memory_bytes: int = DEFAULT_MEMORY_BYTES,
        scratch_dir: Path | None = None,
        pool: TaskPool | None = None,
        libtpu_args: str = "",
    ) -> None:
        """Starts nothing yet.

        Args:
          num_workers: Worker processes.
          cache_dir: Where compiles are kept between runs.
          deadline_s: Most seconds for tracing, for compiling, and for simulating each.
          memory_bytes: Resident memory at which a worker is killed.
          scratch_dir: Where compiler dumps go; the system's temporary folder if None.
          pool: Where candidates are compiled, and closed at the end; worker processes of its own
            if None.
          libtpu_args: Flags of the candidates to come, which the pool's workers have.
        """
        self._cache_dir = cache_dir
        self._libtpu_args = libtpu_args
        self._deadline_s = deadline_s
        self._pool: TaskPool = pool or WorkerPool(
            num_workers=num_workers,
            memory_bytes=memory_bytes,
            scratch_dir=scratch_dir,
            environment=functools.partial(worker_environment, libtpu_args=libtpu_args),
        )

    @property
    def fidelity(self) -> Fidelity:
        """SIMULATED."""
        return Fidelity.SIMULATED

    def prepare(self, chips: Iterable[Chip]) -> None:
        """Compiles one small kernel a chip, to see that schedules of this compiler are understood.

        Raises:
          DumpError: They are not; see `understood.py`.
          RpaTuneError: Workers cannot be started at all.
        """
        # A plan with a long deadline is for a busy machine, on which a probe is slow, too.
        deadline_s = max(PROBE_DEADLINE_S, self._deadline_s)
        require_understood(chips, self._pool, self._cache_dir, self._libtpu_args, deadline_s)

    def evaluate_all(
        self, candidates: Iterable[Candidate], workload: Workload
    ) -> Iterator[Evaluation]:
        """One answer per candidate as they finish; see `AbstractEvaluator`."""
        for simulation in self.simulate_all(candidates, workload):
            yield simulation.evaluation

    def simulate_all(
        self, candidates: Iterable[Candidate], workload: Workload
    ) -> Iterator[Simulation]:
        """The same, with the timelines."""
        sent: list[Candidate] = []
        refused: list[Simulation] = []

        def tasks() -> Iterator[SimulateTask]:
            for candidate in candidates:
                if obstacle := find_obstacle(candidate, workload):
                    answer = refuse(candidate, self.fidelity, obstacle)
                    refused.append(Simulation(evaluation=answer))
                    continue
                batches, _ = batches_and_weights(workload.for_family(*candidate.family.slots))
                sent.append(candidate)
                yield SimulateTask(
                    candidate=candidate, batches=tuple(batches), cache_dir=self._cache_dir
                )

        for reply in self._pool.map_unordered(TASK, tasks(), deadline_s=self._deadline_s):
            yield _conclude(sent[reply.index], reply, workload)
        yield from refused

    def close(self) -> None:
        """Ends the workers."""
        self._pool.close()


def _conclude(candidate: Candidate, reply: Reply, workload: Workload) -> Simulation:
    """Turns a worker's reply into an answer."""
    if reply.failure is not None:
        answer = SimulateAnswer(
            status=status_of_failure(reply.failure), detail=reply.failure.detail
        )
    else:
        answer = reply.value
    metrics = plain(answer.costs) | {"evaluate_s": reply.seconds}
    stamp = {
        **provenance(candidate.family.digest),
        "settings": metrics.pop("settings", {}),
    }
    if answer.status is not Status.OK:
        return Simulation(
            evaluation=Evaluation(
                candidate=candidate,
                fidelity=Fidelity.SIMULATED,
                status=answer.status,
                detail=answer.detail,
                metrics=metrics,
                provenance=stamp,
            )
        )
    kept = workload.for_family(*candidate.family.slots)
    account = account_of(candidate, kept)
    _, weights = batches_and_weights(kept)
    batch_us = tuple(timeline.time_us for timeline in answer.timelines)
    time_us = account.mean(batch_us)
    # Each set's expected time: what two configs are compared by, and what the error follows from.
    set_us = [
        account.mean(times) for times in zip(*(t.set_us for t in answer.timelines), strict=True)
    ]
    evaluation = Evaluation(
        candidate=candidate,
        fidelity=Fidelity.SIMULATED,
        status=Status.OK,
        time_us=time_us,
        batch_us=batch_us,
        metrics={
            **summarize(answer.timelines, weights),
            **(sureness(set_us) if set_us else {}),
            **account.utilization(time_us),
            **account.mean_traffic(candidate.config),
            **account.memory(candidate.config),
            **metrics,
        },
        provenance=stamp,
    )
    return Simulation(evaluation=evaluation, timelines=answer.timelines)


def sureness(set_us: Sequence[float]) -> dict[str, Any]:
    """What is stored of the times under the sets of parameters."""
    return {
        "set_us": [round(us, 4) for us in set_us],
        "interval_us": [round(us, 4) for us in interval(set_us)],
    }


def summarize(timelines: Sequence[Timeline], weights: Sequence[float]) -> dict[str, Any]:
    """Means over launches of what the simulator says.

    `cycles_by_owner` is rounded to whole cycles, and `total_cycles` is its sum. `bound_by` is
    what bounds the batches that take most of the time.
    """
    by_owner = {
        owner: round(weighted_mean([t.cycles_by_owner[owner] for t in timelines], weights))
        for owner in timelines[0].cycles_by_owner
    }
    shares: Counter[str] = Counter()
    for timeline, weight in zip(timelines, weights, strict=True):
        shares[timeline.bound_by] += weight * timeline.time_us  # type: ignore[assignment]
    return {
        "total_cycles": sum(by_owner.values()),
        "cycles_by_owner": by_owner,
        "bound_by": largest(shares),
        "unknown": _merge_counts([timeline.unknown for timeline in timelines]),
        "guesses": sorted({name for timeline in timelines for name in timeline.guesses}),
    }


def _merge_counts(counts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    """The largest count of each unknown thing over the batches."""
    merged: dict[str, int] = {}
    for count in counts:
        for name, number in count.items():
            merged[name] = max(number, merged.get(name, 0))
    return merged
