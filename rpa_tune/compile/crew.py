"""The workers of a pool, driven by one thread: tasks in, values or failures out.

Neighbours: `pool.py` feeds a crew on behalf of any number of callers, `process.py` is one child
seen from here, `worker.py` the child's own half.
"""

import shutil
import signal
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from rpa_tune.compile.failure import Failure, FailureKind
from rpa_tune.compile.process import START_DEADLINE_S, Task, WorkerProcess, death
from rpa_tune.errors import RpaTuneError

_START_ATTEMPTS = 3
_POLL_S = 0.2  # how often memory is looked at


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskOutcome:
    """How one task ended: a value, or a failure."""

    task: Task
    value: Any = None
    failure: Failure | None = None


class Crew:
    """Child processes that start when there is work and are replaced when they die.

    For one thread only, which must live as long as the crew: Linux delivers a child's death signal
    when the thread that started it ends.
    """

    def __init__(
        self,
        *,
        num_workers: int,
        memory_bytes: int,
        scratch_dir: Path | None,
        environment: Callable[[Path], dict[str, str]],
        on_phase: Callable[[str], None],
    ) -> None:
        """See `WorkerPool`; no process starts yet."""
        self._num_workers = num_workers
        self._memory_bytes = memory_bytes
        self._scratch_dir = scratch_dir
        self._environment = environment
        self._on_phase = on_phase
        self._folder: Path | None = None
        self._again: deque[Task] = deque()  # tasks whose worker was killed from outside
        self.workers: list[WorkerProcess] = []
        self._num_started = 0
        self._num_failed_starts = 0

    def fill(self, tasks: Iterator[Task]) -> None:
        """Gives tasks to idle workers, and starts workers while there are tasks."""
        while sum(worker.task is not None for worker in self.workers) < self._num_workers:
            task = self._again.popleft() if self._again else next(tasks, None)
            if task is None:
                return
            idle = next((worker for worker in self.workers if worker.task is None), None)
            extra_s = START_DEADLINE_S if idle is None else 0.0
            (idle or self._start_worker()).start(task, task.deadline_s + extra_s)

    def wait(self, bell: "Connection[Any, Any]") -> list[TaskOutcome]:
        """What has ended; empty when the bell rings, and now and then, with nothing to say."""
        busy = [worker for worker in self.workers if worker.task is not None]
        now = time.monotonic()
        patience = min((_POLL_S, *(max(0.0, worker.deadline - now) for worker in busy)))
        connections = [worker.connection for worker in busy]
        talking = wait([bell, *connections], timeout=patience if busy else None)
        now = time.monotonic()
        outcomes = [
            self._collect(worker)
            for worker in busy
            if worker.connection in talking
            or now >= worker.deadline
            or worker.resident_bytes() > self._memory_bytes
        ]
        return [outcome for outcome in outcomes if outcome is not None]

    def drop(self, owner: Any) -> None:
        """Forgets an owner's tasks, and kills the workers that are at one."""
        self._again = deque(task for task in self._again if task.owner is not owner)
        for worker in [w for w in self.workers if w.task is not None and w.task.owner is owner]:
            self._remove(worker)

    def close(self) -> None:
        """Ends all workers and removes their folders."""
        for worker in self.workers:
            if worker.task is None and worker.is_ready:
                worker.dismiss()
            else:
                worker.kill()
        self.workers = []
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None

    def _start_worker(self) -> WorkerProcess:
        if self._folder is None:
            self._folder = Path(tempfile.mkdtemp(prefix="rpa-tune-", dir=self._scratch_dir))
        self._num_started += 1
        worker = WorkerProcess(self._folder / f"worker{self._num_started}", self._environment)
        self.workers.append(worker)
        return worker

    def _collect(self, worker: WorkerProcess) -> TaskOutcome | None:
        """Takes one message from a worker, or its life; None when its task goes on."""
        task = worker.task
        assert task is not None
        if worker.connection.poll():
            try:
                kind, *rest = worker.connection.recv()
            except (EOFError, ConnectionResetError, BrokenPipeError):
                return self._bury(worker, task)
            return self._hear(worker, task, kind, rest)
        if time.monotonic() >= worker.deadline:
            failure = Failure(
                kind=FailureKind.DEADLINE,
                phase=worker.phase,
                detail=f"still in phase {worker.phase!r} after {task.deadline_s:g} s",
                log=worker.output(),
            )
        else:
            used, cap = worker.resident_bytes() / 2**30, self._memory_bytes / 2**30
            failure = Failure(
                kind=FailureKind.MEMORY,
                phase=worker.phase,
                detail=f"worker used {used:.1f} GiB of memory, the cap is {cap:.1f} GiB",
                log=worker.output(),
            )
        self._remove(worker)
        return TaskOutcome(task=task, failure=failure)

    def _hear(
        self, worker: WorkerProcess, task: Task, kind: str, rest: list[Any]
    ) -> TaskOutcome | None:
        """Understands one message; the first of a worker's life says whether it has started."""
        if kind == "phase":
            (worker.phase,) = rest
            worker.deadline = time.monotonic() + task.deadline_s
            self._on_phase(worker.phase)
            return None
        if not worker.is_ready:
            if kind == "error":
                raise _cannot_start(rest[0], rest[1])
            worker.is_ready = True
            self._num_failed_starts = 0
            worker.deadline = time.monotonic() + task.deadline_s
            return None
        worker.task = None
        if worker.resident_bytes() > self._memory_bytes / 2:
            self.workers.remove(worker)
            worker.dismiss()
        if kind == "value":
            return TaskOutcome(task=task, value=rest[0])
        failure = Failure(
            kind=FailureKind.EXCEPTION, phase=worker.phase, detail=rest[0], log=rest[1]
        )
        return TaskOutcome(task=task, failure=failure)

    def _bury(self, worker: WorkerProcess, task: Task) -> TaskOutcome | None:
        """Says how a worker died; a task whose worker was killed from outside goes again."""
        worker.process.wait()
        code, log, phase = worker.process.returncode, worker.output(), worker.phase
        self._remove(worker)
        if not worker.is_ready:
            self._num_failed_starts += 1
            if self._num_failed_starts >= _START_ATTEMPTS:
                raise _cannot_start(death(code, log), log)
        if not worker.is_ready or (code == -signal.SIGKILL and not task.was_killed):
            task.was_killed = worker.is_ready or task.was_killed
            self._again.append(task)
            return None
        failure = Failure(
            kind=FailureKind.DIED,
            phase=phase,
            detail=f"worker died in phase {phase!r}: {death(code, log)}",
            log=log,
        )
        return TaskOutcome(task=task, failure=failure)

    def _remove(self, worker: WorkerProcess) -> None:
        self.workers.remove(worker)
        worker.kill()


def _cannot_start(detail: str, log: str) -> RpaTuneError:
    return RpaTuneError(
        f"worker processes do not start: {detail}",
        where=log.strip().splitlines()[-1] if log.strip() else "",
        hint="`rpa-tune doctor` finds what is wrong with the installation",
    )
