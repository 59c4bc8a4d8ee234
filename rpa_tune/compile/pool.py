"""Worker processes that may crash, hang, abort or grow without harming anybody else.

libtpu aborts the process on a failed check, and a compile can take forever: so work that touches
it runs in children, one task at a time, each with a deadline, a memory cap and a process group of
its own. Nothing here knows what the tasks are; the parent never imports jax or libtpu.

A task is the name of a function, `"module:function"`, and one picklable argument. The protocol
runs over a dedicated socket, never over stdout. Neighbour: `worker.py` is the child half.
"""

import contextlib
import enum
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection, Pipe, wait
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rpa_tune.compile import target
from rpa_tune.errors import RpaTuneError

DEFAULT_DEADLINE_S = 180.0
DEFAULT_MEMORY_BYTES = 8 << 30

_SETUP = "rpa_tune.compile.target:set_up_worker"
_START_DEADLINE_S = 120.0
_START_ATTEMPTS = 3
_POLL_S = 0.2  # how often memory is looked at
_LOG_TAIL_BYTES = 16 << 10
_GRACE_S = 5.0  # what a worker gets to leave when asked


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


@dataclass(kw_only=True, slots=True)
class _Task:
    """A task on its way."""

    index: int
    function: str
    argument: Any
    started: float = 0.0
    was_killed: bool = False


class _Worker:
    """One child process, and what it is doing."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        target.dump_folder(folder).mkdir()
        self.folder = folder
        self.task: _Task | None = None
        self.phase = "start"
        self.deadline = time.monotonic() + _START_DEADLINE_S
        self.is_ready = False
        self._log = folder / "output.txt"
        ours, theirs = Pipe()
        self.connection: Connection[Any, Any] = ours
        with self._log.open("ab") as log, theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-m", "rpa_tune.compile.worker",
                 str(theirs.fileno()), str(os.getpid())],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                pass_fds=[theirs.fileno()], start_new_session=True,
                env=target.worker_environment(folder),
            )  # fmt: skip
        self._send({"sys_path": sys.path, "folder": folder, "setup": _SETUP})

    def start(self, task: _Task, deadline_s: float) -> None:
        """Hands out a task. A worker that is dead by now is found out when its answer is due."""
        now = time.monotonic()
        task.started = task.started or now
        self.task, self.phase, self.deadline = task, "start", now + deadline_s
        os.truncate(self._log, 0)
        self._send((task.function, task.argument))

    def _send(self, message: Any) -> None:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self.connection.send(message)

    def resident_bytes(self) -> int:
        """Memory in use, or 0 when the process is gone."""
        try:
            pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        except (OSError, IndexError):
            return 0
        return pages * os.sysconf("SC_PAGE_SIZE")

    def output(self) -> str:
        """The end of what the worker printed during its task."""
        try:
            with self._log.open("rb") as log:
                log.seek(max(0, os.fstat(log.fileno()).st_size - _LOG_TAIL_BYTES))
                return log.read().decode(errors="replace")
        except OSError:
            return ""

    def kill(self) -> None:
        """Kills the process group and forgets its folder."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self._leave()

    def dismiss(self) -> None:
        """Asks an idle worker to leave."""
        self._send(None)
        try:
            self.process.wait(_GRACE_S)
        except subprocess.TimeoutExpired:
            self.kill()
            return
        self._leave()

    def _leave(self) -> None:
        self.process.wait()
        self.connection.close()
        shutil.rmtree(self.folder, ignore_errors=True)


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
    ) -> None:
        """Makes a pool; no process starts yet.

        Args:
          num_workers: Most processes at once.
          deadline_s: Seconds that one phase of a task may take.
          memory_bytes: Resident memory at which a worker is killed. One that is idle and above
            half of it is replaced.
          scratch_dir: Where workers keep dumps and logs; the system's temporary folder if None.
        """
        if num_workers < 1:
            raise ValueError(f"num_workers={num_workers} must be at least 1")
        self.num_workers = num_workers
        self._deadline_s = deadline_s
        self._memory_bytes = memory_bytes
        self._scratch_dir = scratch_dir
        self._folder: Path | None = None
        self._workers: list[_Worker] = []
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
            _Task(index=i, function=function, argument=argument)
            for i, argument in enumerate(arguments)
        )
        again: deque[_Task] = deque()
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

    def _hand_out(self, fresh: Iterator[_Task], again: deque[_Task]) -> None:
        """Gives tasks to idle workers, and starts workers while there are tasks."""
        while sum(worker.task is not None for worker in self._workers) < self.num_workers:
            task = again.popleft() if again else next(fresh, None)
            if task is None:
                return
            idle = next((worker for worker in self._workers if worker.task is None), None)
            (idle or self._start_worker()).start(task, self._deadline_s + _start_extra_s(idle))

    def _start_worker(self) -> _Worker:
        if self._folder is None:
            self._folder = Path(tempfile.mkdtemp(prefix="rpa-tune-", dir=self._scratch_dir))
        self._num_started += 1
        worker = _Worker(self._folder / f"worker{self._num_started}")
        self._workers.append(worker)
        return worker

    def _wait(self, busy: list[_Worker]) -> list[_Worker]:
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

    def _collect(self, worker: _Worker, again: deque[_Task]) -> Reply | None:
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

    def _hear(self, worker: _Worker, task: _Task, kind: str, rest: list[Any]) -> Reply | None:
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

    def _bury(self, worker: _Worker, task: _Task, again: deque[_Task]) -> Reply | None:
        """Says how a worker died; a task whose worker was killed from outside goes again."""
        worker.process.wait()
        code, log, phase = worker.process.returncode, worker.output(), worker.phase
        self._remove(worker)
        if not worker.is_ready:
            self._num_failed_starts += 1
            if self._num_failed_starts >= _START_ATTEMPTS:
                raise _cannot_start(_death(code, log), log)
        if not worker.is_ready or (code == -signal.SIGKILL and not task.was_killed):
            task.was_killed = worker.is_ready or task.was_killed
            again.append(task)
            return None
        failure = Failure(
            kind=FailureKind.DIED,
            phase=phase,
            detail=f"worker died in phase {phase!r}: {_death(code, log)}",
            log=log,
        )
        return _reply(task, failure=failure)

    def _remove(self, worker: _Worker) -> None:
        self._workers.remove(worker)
        worker.kill()


def _start_extra_s(idle: _Worker | None) -> float:
    """What a task waits longer for when its worker has yet to start."""
    return _START_DEADLINE_S if idle is None else 0.0


def _reply(task: _Task, *, value: Any = None, failure: Failure | None = None) -> Reply:
    return Reply(
        index=task.index, seconds=time.monotonic() - task.started, value=value, failure=failure
    )


def _death(code: int, log: str) -> str:
    """One line on how a process ended: the signal, and the last thing it had to say."""
    how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
    said = [line.strip() for line in log.splitlines() if line.strip()]
    # A failed check in libtpu is logged as `F1123 06:35:34.1 ...] Check failed: ...`.
    fatal = [line for line in said if line.startswith("F") and line[1:5].isdigit()]
    last = (fatal or [line for line in said if "Error" in line or "error" in line] or [""])[-1]
    return f"{how}: {last}" if last else how


def _cannot_start(detail: str, log: str) -> RpaTuneError:
    return RpaTuneError(
        f"worker processes do not start: {detail}",
        where=log.strip().splitlines()[-1] if log.strip() else "",
        hint="`rpa-tune doctor` finds what is wrong with the installation",
    )
