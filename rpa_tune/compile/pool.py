"""Worker processes that may crash, hang, abort or grow without harming other processes.

libtpu aborts the process on a failed check, and a compile can take forever: so work that touches
it runs in children, one task at a time, each with a deadline, a memory cap and a process group of
its own. Nothing here knows what the tasks are; the parent never imports jax or libtpu.

A task is the name of a function, `"module:function"`, and one picklable argument. The protocol
runs over a dedicated socket, never over stdout. Neighbours: `crew.py` drives the children.
"""

import contextlib
import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from typing import Any

from rpa_tune.compile import target
from rpa_tune.compile.crew import Crew, TaskOutcome
from rpa_tune.compile.failure import (
    DEFAULT_DEADLINE_S,
    Failure,
    FailureKind,
    Reply,
    TaskPool,
)
from rpa_tune.compile.process import Task
from rpa_tune.errors import RpaTuneError

__all__ = [
    "DEFAULT_DEADLINE_S", "DEFAULT_MEMORY_BYTES", "Failure", "FailureKind", "Reply", "TaskPool",
    "WorkerPool",
]  # fmt: skip

# Workers that compile full-size kernels were seen to hold 0.7 GiB; one past this has gone wrong.
DEFAULT_MEMORY_BYTES = 4 << 30


class _Stream:
    """The tasks of one call, and the box in which its replies arrive."""

    def __init__(self, function: str, arguments: Iterable[Any], deadline_s: float) -> None:
        self._arguments = enumerate(arguments)
        self._function = function
        self._deadline_s = deadline_s
        self.num_running = 0
        self.is_exhausted = False
        self.is_abandoned = False
        # A reply, the error that ended the call, or None at its end.
        self.box: queue.SimpleQueue[Reply | BaseException | None] = queue.SimpleQueue()

    @property
    def is_over(self) -> bool:
        return self.is_abandoned or (self.is_exhausted and not self.num_running)

    def next_task(self) -> Task | None:
        """The next task; None when there is none. An error of the caller's iterator is its own."""
        if self.is_exhausted or self.is_abandoned:
            return None
        try:
            index, argument = next(self._arguments)
        except StopIteration:
            self.is_exhausted = True
            return None
        except Exception as error:
            self.box.put(error)
            self.is_exhausted = True
            return None
        self.num_running += 1
        return Task(
            index=index, function=self._function, argument=argument,
            deadline_s=self._deadline_s, owner=self,
        )  # fmt: skip

    def deliver(self, outcome: TaskOutcome) -> None:
        """Puts a task's outcome into the box."""
        self.num_running -= 1
        task = outcome.task
        reply = Reply(
            index=task.index,
            seconds=time.monotonic() - task.started,
            value=outcome.value,
            failure=outcome.failure,
        )
        self.box.put(reply)


class WorkerPool(contextlib.AbstractContextManager["WorkerPool"]):
    """Runs tasks in child processes; a task that goes wrong costs itself only.

    Any number of threads may ask at once; the first to ask is served first. A thread of the
    pool's own drives the children. Workers start when there is work and are replaced when they die.
    """

    def __init__(
        self,
        *,
        num_workers: int,
        deadline_s: float = DEFAULT_DEADLINE_S,
        memory_bytes: int = DEFAULT_MEMORY_BYTES,
        scratch_dir: Path | None = None,
        environment: Callable[[Path], dict[str, str]] = target.worker_environment,
        on_phase: Callable[[str], None] = lambda phase: None,
    ) -> None:
        """Makes a pool; no process starts yet.

        Args:
          num_workers: Most processes at once.
          deadline_s: Seconds that one phase of a task may take.
          memory_bytes: Resident memory at which a worker is killed. One that is idle and above
            half of it is replaced.
          scratch_dir: Where workers keep dumps and logs; the system's temporary folder if None.
          environment: From a worker's folder to its environment variables.
          on_phase: Told the name of a phase when a task begins it, by the pool's own thread.
        """
        if num_workers < 1:
            raise ValueError(f"num_workers={num_workers} must be at least 1")
        self.num_workers = num_workers
        self._deadline_s = deadline_s
        self._make_crew: Callable[[], Crew] = lambda: Crew(
            num_workers=num_workers,
            memory_bytes=memory_bytes,
            scratch_dir=scratch_dir,
            environment=environment,
            on_phase=on_phase,
        )
        self._crew: Crew | None = None
        self._driver: threading.Thread | None = None
        self._lock = threading.Lock()
        self._streams: list[_Stream] = []
        self._is_closing = False
        self._bell: tuple[Connection[Any, Any], Connection[Any, Any]] | None = None

    @property
    def pids(self) -> list[int]:
        """Process ids of the workers, for tests and status displays."""
        return [worker.process.pid for worker in self._crew.workers] if self._crew else []

    def map_unordered(
        self, function: str, arguments: Iterable[Any], *, deadline_s: float | None = None
    ) -> Iterator[Reply]:
        """Runs one task per argument and yields replies as they come.

        Arguments are taken as workers become free. Leaving the iterator early kills the tasks
        that are running.

        A worker killed from outside (SIGKILL, as by an out-of-memory killer) is no fault of the
        task: it is tried once more, then reported as DIED.

        Args:
          function: `"module:function"`, importable in a worker.
          arguments: One picklable argument per task; iterated over by the pool's own thread.
          deadline_s: Seconds that one phase of a task may take; the pool's own if None.

        Raises:
          RpaTuneError: Workers cannot be started at all, or the pool was closed meanwhile.
        """
        stream = _Stream(function, arguments, deadline_s or self._deadline_s)
        self._submit(stream)
        try:
            while (reply := stream.box.get()) is not None:
                if isinstance(reply, BaseException):
                    raise reply
                yield reply
        finally:
            if not stream.is_over:
                stream.is_abandoned = True
                self._ring()
                while stream.box.get() is not None:
                    pass

    def __exit__(self, *error: object) -> None:
        """Closes, whatever happened."""
        self.close()

    def close(self) -> None:
        """Ends all workers and removes their folders; callers that still wait get an error."""
        self._is_closing = True
        driver = self._driver
        if driver is not None:
            self._ring()
            driver.join()

    def _submit(self, stream: _Stream) -> None:
        with self._lock:
            if self._is_closing:
                raise RpaTuneError("the worker pool is closed")
            self._streams.append(stream)
            if self._driver is None or not self._driver.is_alive():
                self._bell = Pipe(duplex=False)
                self._driver = threading.Thread(target=self._drive, args=self._bell, daemon=True)
                self._driver.start()
        self._ring()

    def _ring(self) -> None:
        """Wakes the driver."""
        with contextlib.suppress(OSError):  # it has ended
            if self._bell is not None:
                self._bell[1].send_bytes(b"!")

    def _drive(self, bell: "Connection[Any, Any]", rope: "Connection[Any, Any]") -> None:
        """Serves streams until the pool is closed or cannot go on."""
        crew = self._crew = self._make_crew()
        error: BaseException = RpaTuneError("the worker pool was closed")
        try:
            while True:
                # In this order: what rings after the bell was silenced ends the next wait.
                while bell.poll():
                    bell.recv_bytes()
                if self._is_closing:
                    break
                for stream in [stream for stream in self._streams if stream.is_abandoned]:
                    crew.drop(stream)
                crew.fill(iter(self._next_task, None))
                self._retire()
                for outcome in crew.wait(bell):
                    outcome.task.owner.deliver(outcome)
                self._retire()
        except BaseException as reason:  # a waiting thread must not wait forever
            error = reason
        finally:
            crew.close()
            with self._lock:
                left, self._streams = self._streams, []
                self._driver = None
                bell.close()
                rope.close()
            for stream in left:
                stream.is_abandoned = True
                stream.box.put(error)
                stream.box.put(None)

    def _next_task(self) -> Task | None:
        """The next task of the thread that asked first."""
        for stream in list(self._streams):
            if (task := stream.next_task()) is not None:
                return task
        return None

    def _retire(self) -> None:
        """Tells the callers whose last task has ended."""
        with self._lock:
            over = [stream for stream in self._streams if stream.is_over]
            self._streams = [stream for stream in self._streams if not stream.is_over]
        for stream in over:
            stream.box.put(None)
