"""`explain` of any Pallas kernel: what is known of it without its account."""

import contextlib
import gzip
import pickle
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from multiprocessing import spawn
from pathlib import Path
from typing import Any

from rpa_tune.candidate import Status
from rpa_tune.compile.paths import default_cache_dir
from rpa_tune.compile.pool import WorkerPool
from rpa_tune.compile.target import sources_environment
from rpa_tune.errors import DumpError, UsageError
from rpa_tune.evaluate.evaluator import status_of_failure
from rpa_tune.hw.chip import Chip, load_chip
from rpa_tune.llo.ensemble import interval
from rpa_tune.llo.machine import load_machine
from rpa_tune.llo.parse import load_program
from rpa_tune.llo.profile import Profile, lines_to_dicts, profile, read_sources
from rpa_tune.llo.timeline import Timeline
from rpa_tune.provenance import provenance
from rpa_tune.user_kernel.answer import CallName, KernelAnswer, KernelTask, Refusal
from rpa_tune.user_kernel.send import pickled

TASK = "rpa_tune.user_kernel.task:explain_task"
DEFAULT_DEADLINE_S = 600.0


@dataclass(frozen=True, kw_only=True, slots=True)
class KernelExplanation:
    """What is known of one Pallas call of a function.

    Attributes:
      name: What was explained, as it was asked for.
      chip: Where it would run.
      answer: What the worker found.
      profile: Cycles by bundle and by source line; None without a time.
    """

    name: str
    chip: Chip
    answer: KernelAnswer
    profile: Profile | None = None

    @property
    def ok(self) -> bool:
        """Whether there is a time."""
        return self.answer.timeline is not None

    @property
    def timeline(self) -> Timeline | None:
        """One simulated launch."""
        return self.answer.timeline

    @property
    def time_us(self) -> float | None:
        """Simulated time of one launch; None without one."""
        return self.timeline.time_us if self.timeline else None

    @property
    def interval_us(self) -> tuple[float, float] | None:
        """Between which it lies with 90 %, by sets of parameters; None without a time."""
        return interval(self.timeline.set_us) if self.timeline and self.timeline.set_us else None

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        timeline = self.timeline
        return {
            "kernel": self.name,
            "chip": self.chip.name,
            "status": self.answer.status.value,
            "detail": self.answer.detail,
            "call": asdict(self.answer.call),
            "other_calls": list(self.answer.others),
            "time_us": self.time_us,
            "interval_us": self.interval_us,
            "timeline": asdict(timeline) if timeline else None,
            "lines": lines_to_dicts(self.profile),
            "cycles_without_line": round(self.profile.no_line, 1) if self.profile else None,
            **self.answer.costs,
            "provenance": provenance(""),
        }


def explain_kernel(
    function: Callable[..., Any],
    *args: Any,
    chip: str,
    call: str = "",
    cache: str | Path | None = None,
    deadline_s: float = DEFAULT_DEADLINE_S,
    **kwargs: Any,
) -> KernelExplanation:
    """Compiles a function with a Pallas call, simulates one launch, and shows where time goes.

    No TPU is needed. What the function computes around the call is not timed. A kernel that does
    not fit, does not compile or is not understood is an answer with a status.

    Args:
      function: One that a worker process can import: defined at the top level of a module, or a
        `functools.partial` of such a one.
      *args: Its arguments: arrays, `jax.ShapeDtypeStruct`s, trees of them, and Python values. An
        array's values are known; the simulator needs those that the kernel reads as scalars.
      chip: Chip name.
      call: Name of the Pallas call, where the function makes several.
      cache: Folder for cached compiles; the user's cache folder if None.
      deadline_s: Time limit, seconds, for tracing, compiling and simulating each.
      **kwargs: The function's arguments by name.

    Raises:
      UsageError: The function cannot be loaded, raises, makes no Pallas call or several, does not
        lower, or reads scalars whose values are not known.
      UsageError: No such chip.
    """
    name = f"{getattr(function, '__module__', '')}:{getattr(function, '__qualname__', 'function')}"
    try:
        sent = pickled((function, args, kwargs))
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise UsageError(
            f"{name} cannot be sent to a worker process: {error}",
            hint="define it at the top level of a module; a functools.partial of it is good too",
        ) from error
    main = spawn.get_preparation_data("kernel")
    task = KernelTask(
        chip=load_chip(chip),
        cache_dir=default_cache_dir() if cache is None else Path(cache),
        pickled=sent,
        main={key: value for key, value in main.items() if key.startswith("init_main")},
        call=call,
    )
    return explain_task(task, name, deadline_s=deadline_s)


def explain_task(
    task: KernelTask,
    name: str,
    *,
    deadline_s: float,
    on_phase: Callable[[str], None] = lambda phase: None,
) -> KernelExplanation:
    """The same of a task; `on_phase` is told the name of each phase when it begins.

    Raises:
      UsageError: See `explain_kernel`.
    """
    with WorkerPool(
        num_workers=1, deadline_s=deadline_s, environment=sources_environment, on_phase=on_phase
    ) as pool:
        (reply,) = pool.map_unordered(TASK, [task])
    if reply.failure is not None:
        status = status_of_failure(reply.failure)
        call = CallName(name=task.call, operands=(), grid=(), is_in_loop=False)
        answer = KernelAnswer(status=status, detail=reply.failure.detail, call=call)
        return KernelExplanation(name=name, chip=task.chip, answer=answer)
    if isinstance(reply.value, Refusal):
        refusal = reply.value
        raise UsageError(refusal.message, where=refusal.where, hint=refusal.hint)
    answer = reply.value
    found = None
    if answer.status is Status.OK:
        on_phase("profile")
        found = _profile(answer, task.chip)
    return KernelExplanation(name=name, chip=task.chip, answer=answer, profile=found)


def _profile(answer: KernelAnswer, chip: Chip) -> Profile:
    with plain_schedule(answer) as path:
        return profile(
            load_program(path),
            load_machine(chip.name),
            answer.scalars,
            read_sources(path.read_text()),
        )


@contextlib.contextmanager
def plain_schedule(answer: KernelAnswer) -> Iterator[Path]:
    """The schedule as a plain file, for as long as it is read.

    Raises:
      DumpError: There is none.
    """
    if answer.schedule is None:
        raise DumpError("there is no schedule of this kernel")
    raw = answer.schedule.read_bytes()
    content = gzip.decompress(raw) if answer.schedule.suffix == ".gz" else raw
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{answer.call.name.replace('/', '_')}-final_bundles.txt"
        path.write_bytes(content)
        yield path
