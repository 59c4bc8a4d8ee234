"""One worker process as the pool sees it: started, given tasks, watched, killed with its group."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from typing import Any

from rpa_tune.compile import target

SETUP = "rpa_tune.compile.target:set_up_worker"
START_DEADLINE_S = 120.0
_LOG_TAIL_BYTES = 16 << 10
_GRACE_S = 5.0  # what a worker gets to leave when asked


@dataclass(kw_only=True, slots=True)
class Task:
    """A task on its way.

    Attributes:
      index: Position of its argument.
      function: `module:function`.
      argument: What the function takes.
      deadline_s: Seconds that one of its phases may take.
      owner: Whose task it is; opaque here.
      started: When it was first handed out, `time.monotonic`; 0 before.
      was_killed: Whether a worker was killed from outside while at it.
    """

    index: int
    function: str
    argument: Any
    deadline_s: float
    owner: Any = None
    started: float = 0.0
    was_killed: bool = False


class WorkerProcess:
    """One child process, and what it is doing."""

    def __init__(self, folder: Path, environment: Callable[[Path], dict[str, str]]) -> None:
        """Starts the process; it says when it is ready.

        Args:
          folder: Made, and removed at the end.
          environment: From the folder to the environment variables.
        """
        folder.mkdir(parents=True)
        target.dump_folder(folder).mkdir()
        self.folder = folder
        self.task: Task | None = None
        self.phase = "start"
        self.deadline = time.monotonic() + START_DEADLINE_S
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
                env=environment(folder),
            )  # fmt: skip
        self._send({"sys_path": sys.path, "folder": folder, "setup": SETUP})

    def start(self, task: Task, deadline_s: float) -> None:
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


def death(code: int, log: str) -> str:
    """One line on how a process ended: the signal, and the last thing it had to say."""
    how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
    said = [line.strip() for line in log.splitlines() if line.strip()]
    # A failed check in libtpu is logged as `F1123 06:35:34.1 ...] Check failed: ...`.
    fatal = [line for line in said if line.startswith("F") and line[1:5].isdigit()]
    last = (fatal or [line for line in said if "Error" in line or "error" in line] or [""])[-1]
    return f"{how}: {last}" if last else how
