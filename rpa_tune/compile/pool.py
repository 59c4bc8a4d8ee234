"""Worker processes that may crash, hang, abort or grow without harming anybody else.

libtpu aborts the process on a failed check, and a compile can take forever: so work that touches
it runs in children, one task at a time, each with a deadline, a memory cap and a process group of
its own. Nothing here knows what the tasks are; the parent never imports jax or libtpu.

A task is the name of a function, `"module:function"`, and one picklable argument. The protocol
runs over a dedicated socket, never over stdout. Neighbours: `process.py` is
one child seen from here, `worker.py` the child's own half.
"""

import enum
import shutil
import signal
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import wait
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rpa_tune.compile import target
from rpa_tune.compile.process import START_DEADLINE_S, Task, WorkerProcess, death
from rpa_tune.errors import RpaTuneError

DEFAULT_DEADLINE_S = 180.0
# Workers that compile full-size kernels were seen to hold 0.7 GiB; one past this has gone wrong.
DEFAULT_MEMORY_BYTES = 4 << 30

_START_ATTEMPTS = 3
_POLL_S = 0.2  # how often memory is looked at


class FailureKind(enum.StrEnum):
    """How a task failed to give a value."""

    EXCEPTION = "exception"
    DEADLINE = "deadline"
    MEMORY = "memory"
    DIED = "died"


@dataclass(frozen=True, kw_only=True, slots=True)
class Failure:
    """Why a task gave no value.

    Attributes:
      kind: What happened.
      phase: What the task said it was doing; see `worker.report_phase`.
      detail: One line.
      log: Traceback, or the end of what the worker printed.
    """

    kind: FailureKind
    phase: str
    detail: str
    log: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Reply:
    """The answer to one task: a value, or a failure.

    Attributes:
      index: Position of the task's argument.
      seconds: Wall time from handing out the task, restarts included.
    """

    index: int
    seconds: float
    value: Any = None
    failure: Failure | None = None


class WorkerPool:
    """Runs tasks in child processes; a task that goes wrong costs itself only.

    Workers start when there is work and are replaced when they die. Create and use the pool in a
    thread that lives as long as the work: Linux delivers the death signal when the thread that
    started a child ends.
    """

    def __init__(
        self,
        *,
        num_workers: int,
        deadline_s: float = DEFAULT_DEADLINE_S,
        memory_bytes: int = DEFAULT_MEMORY_BYTES,
        scratch_dir: Path | None = None,
        environment: Callable[[Path], dict[str, str]] = target.worker_environment,
    ) -> None:
        """Makes a pool; no process starts yet.

        Args:
          num_workers: Most processes at once.
          deadline_s: Seconds that one phase of a task may take.
          memory_bytes: Resident memory at which a worker is killed. One that is idle and above
            half of it is replaced.
          scratch_dir: Where workers keep dumps and logs; the system's temporary folder if None.
          environment: From a worker's folder to its environment variables.
        """
        if num_workers < 1:
            raise ValueError(f"num_workers={num_workers} must be at least 1")
        self.num_workers = num_workers
        self._deadline_s = deadline_s
        self._memory_bytes = memory_bytes
        self._scratch_dir = scratch_dir
        self._environment = environment
        self._folder: Path | None = None
        self._workers: list[WorkerProcess] = []
        self._num_started = 0
        self._num_failed_starts = 0

    def __enter__(self) -> Self:
        """The pool; `close` follows."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Closes the pool."""
        self.close()

    @property
    def pids(self) -> list[int]:
        """Process ids of the workers, for tests and status displays."""
        return [worker.process.pid for worker in self._workers]

    def map_unordered(self, function: str, arguments: Iterable[Any]) -> Iterator[Reply]:
        """Runs one task per argument and yields replies as they come.

        Arguments are taken as workers become free. Leaving the iterator early kills the tasks
        that are running.

        A worker killed from outside (SIGKILL, as by an out-of-memory killer) is no fault of the
        task: it is tried once more, then reported as DIED.

        Args:
          function: `"module:function"`, importable in a worker.
          arguments: One picklable argument per task.

        Raises:
          RpaTuneError: Workers cannot be started at all.
        """
        fresh = (
            Task(index=i, function=function, argument=argument)
            for i, argument in enumerate(arguments)
        )
        again: deque[Task] = deque()
        try:
            while True:
                self._hand_out(fresh, again)
                busy = [worker for worker in self._workers if worker.task is not None]
                if not busy:
                    return
                for worker in self._wait(busy):
                    reply = self._collect(worker, again)
                    if reply is not None:
                        yield reply
        finally:
            for worker in [w for w in self._workers if w.task is not None]:
                self._remove(worker)

    def close(self) -> None:
        """Ends all workers and removes their folders."""
        for worker in self._workers:
            if worker.task is None and worker.is_ready:
                worker.dismiss()
            else:
                worker.kill()
        self._workers = []
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None

    def _hand_out(self, fresh: Iterator[Task], again: deque[Task]) -> None:
        """Gives tasks to idle workers, and starts workers while there are tasks."""
        while sum(worker.task is not None for worker in self._workers) < self.num_workers:
            task = again.popleft() if again else next(fresh, None)
            if task is None:
                return
            idle = next((worker for worker in self._workers if worker.task is None), None)
            (idle or self._start_worker()).start(task, self._deadline_s + _start_extra_s(idle))

    def _start_worker(self) -> WorkerProcess:
        if self._folder is None:
            self._folder = Path(tempfile.mkdtemp(prefix="rpa-tune-", dir=self._scratch_dir))
        self._num_started += 1
        worker = WorkerProcess(self._folder / f"worker{self._num_started}", self._environment)
        self._workers.append(worker)
        return worker

    def _wait(self, busy: list[WorkerProcess]) -> list[WorkerProcess]:
        """Workers that have something to say, that are late, or that grew too big."""
        now = time.monotonic()
        patience = min(_POLL_S, *(max(0.0, worker.deadline - now) for worker in busy))
        talking = wait([worker.connection for worker in busy], timeout=patience)
        now = time.monotonic()
        return [
            worker
            for worker in busy
            if worker.connection in talking
            or now >= worker.deadline
            or worker.resident_bytes() > self._memory_bytes
        ]

    def _collect(self, worker: WorkerProcess, again: deque[Task]) -> Reply | None:
        """Takes one message from a worker, or its life; None when its task goes on."""
        task = worker.task
        assert task is not None
        if worker.connection.poll():
            try:
                kind, *rest = worker.connection.recv()
            except (EOFError, ConnectionResetError, BrokenPipeError):
                return self._bury(worker, task, again)
            return self._hear(worker, task, kind, rest)
        if time.monotonic() >= worker.deadline:
            failure = Failure(
                kind=FailureKind.DEADLINE,
                phase=worker.phase,
                detail=f"still in phase {worker.phase!r} after {self._deadline_s:g} s",
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
        return _reply(task, failure=failure)

    def _hear(self, worker: WorkerProcess, task: Task, kind: str, rest: list[Any]) -> Reply | None:
        """Understands one message; the first of a worker's life says whether it has started."""
        if kind == "phase":
            (worker.phase,) = rest
            worker.deadline = time.monotonic() + self._deadline_s
            return None
        if not worker.is_ready:
            if kind == "error":
                raise _cannot_start(rest[0], rest[1])
            worker.is_ready = True
            self._num_failed_starts = 0
            worker.deadline = time.monotonic() + self._deadline_s
            return None
        worker.task = None
        if worker.resident_bytes() > self._memory_bytes / 2:
            self._workers.remove(worker)
            worker.dismiss()
        if kind == "value":
            return _reply(task, value=rest[0])
        failure = Failure(
            kind=FailureKind.EXCEPTION, phase=worker.phase, detail=rest[0], log=rest[1]
        )
        return _reply(task, failure=failure)

    def _bury(self, worker: WorkerProcess, task: Task, again: deque[Task]) -> Reply | None:
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
            again.append(task)
            return None
        failure = Failure(
            kind=FailureKind.DIED,
            phase=phase,
            detail=f"worker died in phase {phase!r}: {death(code, log)}",
            log=log,
        )
        return _reply(task, failure=failure)

    def _remove(self, worker: WorkerProcess) -> None:
        self._workers.remove(worker)
        worker.kill()


def _start_extra_s(idle: WorkerProcess | None) -> float:
    """What a task waits longer for when its worker has yet to start."""
    return START_DEADLINE_S if idle is None else 0.0


def _reply(task: Task, *, value: Any = None, failure: Failure | None = None) -> Reply:
    return Reply(
        index=task.index, seconds=time.monotonic() - task.started, value=value, failure=failure
    )


def _cannot_start(detail: str, log: str) -> RpaTuneError:
    return RpaTuneError(
        f"worker processes do not start: {detail}",
        where=log.strip().splitlines()[-1] if log.strip() else "",
        hint="`rpa-tune doctor` finds what is wrong with the installation",
    )
