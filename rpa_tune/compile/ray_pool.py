"""The same tasks on the nodes of a Ray cluster: the only file that imports ray.

Ray places a task and notices when a node is lost; on the node the task runs in a `WorkerPool` of
one worker, so that deadlines, memory caps and crashes are handled as they are at home. Compiling
asks for a CPU; measuring asks for a TPU, which only TPU hosts have.
"""

import functools
import socket
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from rpa_tune.compile import target
from rpa_tune.compile.failure import DEFAULT_DEADLINE_S, Failure, FailureKind, Reply
from rpa_tune.compile.pool import WorkerPool
from rpa_tune.errors import UsageError, install_command

# How often a task starts again after the process or the node it ran on was lost.
MAX_RETRIES = 3
_POLL_S = 1.0
_ANSWER_S = 10.0

_compilers: dict[str, WorkerPool] = {}  # by flags of libtpu: usually one a process of Ray


class RayPool:
    """Runs tasks wherever a Ray cluster has room; any number of threads may ask."""

    def __init__(
        self,
        *,
        num_workers: int | None = None,
        address: str | None = None,
        resources: Mapping[str, float] | None = None,
        deadline_s: float = DEFAULT_DEADLINE_S,
        libtpu_args: str = "",
    ) -> None:
        """Connects to a cluster, if this process has not done so.

        Args:
          num_workers: Tasks that a sweep should keep going; the cluster's CPUs if None.
          address: Of the cluster; None starts one on this machine.
          resources: What a task needs beside one CPU: `{"TPU": 1}` to measure.
          deadline_s: Seconds that one phase of a task may take.
          libtpu_args: Flags that workers give libtpu.

        Raises:
          UsageError: Ray is not installed, or no cluster answers at the address.
        """
        try:
            import ray
        except ImportError as error:
            raise UsageError(
                "--executor ray needs Ray, which is not installed",
                hint=install_command("ray"),
            ) from error
        if not ray.is_initialized():
            if address is not None:
                require_answer(address)
            ray.init(address=address, log_to_driver=False, include_dashboard=False)
        self._ray: Any = ray
        self._deadline_s = deadline_s
        self._is_closed = False
        self.num_workers = num_workers or self.num_cpus
        self._task = ray.remote(run_here).options(
            num_cpus=1,
            resources=dict(resources or {}),
            max_retries=MAX_RETRIES,
            retry_exceptions=False,
        )
        self._needs = {"CPU": 1.0, **(resources or {})}
        # On a TPU host the environment is the host's own; a compiler's is made up.
        self._on_device = "TPU" in (resources or {})
        self._libtpu_args = libtpu_args

    @property
    def num_cpus(self) -> int:
        """CPUs of the cluster at this moment."""
        resources: Mapping[str, float] = self._ray.cluster_resources()
        return int(resources.get("CPU", 1))

    @property
    def has_room(self) -> bool:
        """Whether some node that is alive has what a task needs."""
        alive = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        return any(
            all(node.get(name, 0) >= need for name, need in self._needs.items()) for node in alive
        )

    def map_unordered(
        self, function: str, arguments: Iterable[Any], *, deadline_s: float | None = None
    ) -> Iterator[Reply]:
        """One reply per argument as they come; see `WorkerPool.map_unordered`.

        Leaving early cancels what is running. A task whose node is lost runs again on another one,
        at most `MAX_RETRIES` times; then it is reported as DIED.
        """
        limit_s = deadline_s or self._deadline_s
        submitted = time.monotonic()
        waiting = {
            self._task.remote(
                function, argument, limit_s, self._on_device, self._libtpu_args
            ): index
            for index, argument in enumerate(arguments)
        }
        try:
            while waiting:
                done, _ = self._ray.wait(list(waiting), num_returns=1, timeout=_POLL_S)
                if self._is_closed:
                    raise UsageError("the pool was closed")
                for reference in done:
                    index = waiting.pop(reference)
                    yield self._collect(reference, index, time.monotonic() - submitted)
        finally:
            for reference in waiting:
                self._ray.cancel(reference, force=True)

    def close(self) -> None:
        """Ends the calls that still wait. The cluster goes on; it is not ours."""
        self._is_closed = True

    def _collect(self, reference: Any, index: int, since_submitted_s: float) -> Reply:
        """A node's reply; its seconds are the node's, without the time in Ray's queue."""
        try:
            reply: Reply = self._ray.get(reference)
        except self._ray.exceptions.RayError as error:
            failure = Failure(
                kind=FailureKind.DIED,
                phase="start",
                detail=f"the task was lost on the cluster: {type(error).__name__}",
                log=str(error),
            )
            return Reply(index=index, seconds=since_submitted_s, failure=failure)
        return replace(reply, index=index)


def require_answer(address: str) -> None:
    """Refuses an address where nothing listens, which Ray itself would try for minutes.

    Args:
      address: `HOST:PORT` or `ray://HOST:PORT`; names that Ray looks up itself are let through.

    Raises:
      UsageError: Nothing listens.
    """
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not port.isdigit():
        return
    try:
        socket.create_connection((host, int(port)), timeout=_ANSWER_S).close()
    except OSError as error:
        raise UsageError(
            f"cannot connect to a Ray cluster: {error.strerror or error}",
            where=f"RAY_ADDRESS={address}",
            hint="start one with `ray start --head`, or unset RAY_ADDRESS for a local one",
        ) from error


def run_here(
    function: str, argument: Any, deadline_s: float, on_device: bool, libtpu_args: str = ""
) -> Reply:
    """Runs one task on a node, in a worker process.

    A compiler outlives its task and serves the next one. A process that has a TPU is ended with its
    task: Ray may lend the chip to another process next.
    """
    if on_device:
        environment = functools.partial(target.device_environment, libtpu_args=libtpu_args)
        with WorkerPool(num_workers=1, environment=environment) as pool:
            return _run_one(pool, function, argument, deadline_s)
    if libtpu_args not in _compilers:
        environment = functools.partial(target.worker_environment, libtpu_args=libtpu_args)
        _compilers[libtpu_args] = WorkerPool(num_workers=1, environment=environment)
    return _run_one(_compilers[libtpu_args], function, argument, deadline_s)


def _run_one(pool: WorkerPool, function: str, argument: Any, deadline_s: float) -> Reply:
    (reply,) = pool.map_unordered(function, [argument], deadline_s=deadline_s)
    return reply
