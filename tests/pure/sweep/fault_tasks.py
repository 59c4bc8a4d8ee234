"""Simulate tasks with accidents, for test_sweep_faults.py. They run in worker processes."""

import json
import os
import signal
import time
from pathlib import Path

from pure.evaluate.builders import answer

from rpa_tune.compile.worker import report_phase


def no_setup(_):
    """Workers that need no jax start in an instant."""


def simulate(task):
    """Has the accident that `cache_dir/accidents.json` gives a config: `[phase, what, how often]`.

    Slow enough that a test can kill whoever is at it: `cache_dir/asked` says who is at what.
    """
    folder = Path(task.cache_dir)
    accidents = json.loads((folder / "accidents.json").read_text())
    config = task.candidate.config
    name = f"{config.bkv_sz} {config.bkv_csz} {config.seqs_per_step} {config.num_buffers}"
    with (folder / "asked").open("a") as file:
        file.write(f"{os.getpid()} {name}\n")
    phase, what, times = accidents.get(name, ["simulate", "nothing", 0])
    report_phase(phase)
    before = (folder / name).read_text() if (folder / name).exists() else ""
    if len(before) < times:
        (folder / name).write_text(before + "x")
        have_accident(what)
    time.sleep(0.03)
    with (folder / "asked").open("a") as file:
        file.write(f"{os.getpid()} done\n")
    return answer(task)


def have_accident(what):
    if what == "abort":
        os.abort()
    if what == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if what == "hang":
        time.sleep(600)
    if what == "grow":
        hoard = bytearray(b"x" * (600 << 20))
        time.sleep(600 + len(hoard))
    if what == "raise":
        raise MemoryError("no more of it\nat all")
