"""What `rpa-tune explain` is doing while a person waits, on stderr."""

import contextlib
import time
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

# Phases of workers, and of what follows them.
_WORDS = {
    "start": "starting a worker process",
    "trace": "tracing the function",
    "lower": "tracing the kernel",
    "compile": "compiling",
    "parse": "reading the schedule",
    "simulate": "simulating",
    "profile": "finding the source lines",
    "neighbours": "trying neighbours",
    "second opinion": "asking the compiler's cost model",
}


@contextlib.contextmanager
def phases_on_stderr(what: str = "") -> Iterator[Callable[[str], None]]:
    """Gives a function that takes the name of a phase when it begins, and says so.

    A terminal has one line with a clock, which is taken away at the end; a log a line for each
    phase with the seconds until it began.

    Args:
      what: Put in front, where several are waited for one after the other.
    """
    console = Console(stderr=True)
    head = f"{what}: " if what else ""
    if not console.is_terminal:
        began = time.monotonic()

        def say(phase: str) -> None:
            text = f"[{time.monotonic() - began:6.1f} s] {head}{_WORDS.get(phase, phase)}"
            console.print(text, markup=False, highlight=False, soft_wrap=True)

        say("start")
        yield say
        return
    columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        line = progress.add_task(f"{head}{_WORDS['start']}", total=None)

        def show(phase: str) -> None:
            progress.update(line, description=f"{head}{_WORDS.get(phase, phase)}")

        yield show
