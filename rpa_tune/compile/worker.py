"""The child half of `pool.py`: takes tasks from a pipe, answers on the same pipe.

Run as `python -m rpa_tune.compile.worker FD PARENT_PID`. What a compiler prints goes to the log
file that the pool made stdout and stderr of; it cannot disturb the protocol. Order is load-bearing:
the death signal is armed before anything slow is imported.
"""

import ctypes
import faulthandler
import importlib
import os
import signal
import sys
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

_PR_SET_PDEATHSIG = 1  # Source: linux/prctl.h

_connection: Connection | None = None
_folder: Path | None = None


def report_phase(name: str) -> None:
    """Tells the pool what the current task is doing; its deadline starts again.

    Does nothing outside a worker, so that task functions can be called directly.
    """
    if _connection is not None:
        _connection.send(("phase", name))


def worker_folder() -> Path:
    """The private folder of this worker.

    Raises:
      RuntimeError: This process is not a worker.
    """
    if _folder is None:
        raise RuntimeError("worker_folder() is for tasks that run in a WorkerPool")
    return _folder


def resolve(name: str) -> Callable[[Any], Any]:
    """Imports the function that `module:function` names."""
    module, _, attribute = name.partition(":")
    function: Callable[[Any], Any] = getattr(importlib.import_module(module), attribute)
    return function


def serve(connection: Connection) -> None:
    """Runs tasks until the pool says None or goes away."""
    global _connection, _folder
    setup = connection.recv()
    sys.path[:] = setup["sys_path"]
    _connection, _folder = connection, setup["folder"]
    _answer(connection, setup["setup"], None)
    while (task := connection.recv()) is not None:
        _answer(connection, *task)


def _answer(connection: Connection, function: str, argument: Any) -> None:
    """Sends ("value", ...) or ("error", one line, traceback)."""
    try:
        connection.send(("value", resolve(function)(argument)))
    except Exception as error:  # whatever a task does wrong costs that task only
        detail = f"{type(error).__name__}: {one_line(str(error))}"
        connection.send(("error", detail, traceback.format_exc()))


def one_line(message: str) -> str:
    """The line of a message that says most: the first, or the last if it carries a traceback."""
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    if not lines:
        return "(no message)"
    return lines[-1] if lines[0].endswith("Traceback (most recent call last):") else lines[0]


def main() -> None:
    """Arms the death signal and serves."""
    fd, parent_pid = int(sys.argv[1]), int(sys.argv[2])
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent_pid:  # the parent died before the signal was armed
        return
    faulthandler.enable()
    # When memory runs out the kernel should choose a worker, not the sweep.
    Path("/proc/self/oom_score_adj").write_text("1000")
    try:
        # `-m` made this module `__main__`; tasks must find the state under its real name.
        resolve("rpa_tune.compile.worker:serve")(Connection(fd))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return  # the pool is gone, and no answer is awaited


if __name__ == "__main__":
    main()
