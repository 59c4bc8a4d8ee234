"""Stand-ins for the simulate task, for test_simulated.py. They run in worker processes."""

import os
import signal
import time
from dataclasses import replace

from pure.evaluate.builders import answer

from rpa_tune.candidate import Status
from rpa_tune.compile.cache import Compiled
from rpa_tune.compile.worker import report_phase
from rpa_tune.evaluate.simulate_task import SimulateAnswer


def simulate(task):
    """Misbehaves as the number of buffers says; 2 buffers are fine."""
    phase, act = {
        2: ("simulate", lambda: None),
        3: ("compile", os.abort),
        4: ("compile", lambda: time.sleep(600)),
        5: ("lower", lambda: 1 / 0),
        6: ("simulate", lambda: [][0]),
        7: ("simulate", lambda: time.sleep(600)),
        8: ("compile", lambda: os.kill(os.getpid(), signal.SIGKILL)),
        9: ("compile", lambda: None),
    }[task.candidate.config.num_buffers]
    report_phase(phase)
    act()
    if task.candidate.config.num_buffers == 9:
        return SimulateAnswer(
            status=Status.OUT_OF_MEMORY,
            detail="vmem: the compiler needs 9 bytes, have 8",
            costs={"compile_s": 1.5, "vmem_bytes": None},
        )
    return answer(
        task, lower_s=0.25, compile_s=0.5, simulate_s=0.1, from_cache=False, vmem_bytes=4096
    )


def simulate_by_bytes(task):
    """A kernel whose time is its copies, and a little its bytes."""
    found = answer(
        task, lower_s=0.25, compile_s=0.5, simulate_s=0.1, from_cache=False, vmem_bytes=4096
    )
    timelines = tuple(
        replace(timeline, time_us=100.0 + 10 * timeline.num_copies + timeline.read_bytes / 1e5)
        for timeline in found.timelines
    )
    return replace(found, timelines=timelines)


def no_schedule(task):
    """A compile whose schedule nobody reads."""
    return Compiled(status=Status.OK, bundles=task.cache_dir / "schedule")
