"""How a task in another process ends: words shared by every pool of processes."""

import enum
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

DEFAULT_DEADLINE_S = 180.0


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


class TaskPool(Protocol):
    """Processes that take tasks, here (`pool.WorkerPool`) or on a cluster (`ray_pool.RayPool`)."""

    def map_unordered(
        self, function: str, arguments: Iterable[Any], *, deadline_s: float | None = None
    ) -> Iterator[Reply]:
        """One reply per argument as they come; see `WorkerPool.map_unordered`."""

    def close(self) -> None:
        """Ends the processes; of no use afterwards."""
