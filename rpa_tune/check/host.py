"""Can this machine tune, and if not, how to fix it: what `rpa-tune doctor` and a check look at."""

import enum
import functools
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from rpa_tune.candidate import Status
from rpa_tune.compile import target
from rpa_tune.compile.pool import WorkerPool
from rpa_tune.errors import DumpError, RpaTuneError, install_command
from rpa_tune.evaluate.understood import RECIPE, probe_all
from rpa_tune.hw.chip import load_chip
from rpa_tune.known_versions import faults, pair_advice
from rpa_tune.llo.parse import load_program
from rpa_tune.provenance import versions

if TYPE_CHECKING:
    from rpa_tune.compile.probe import Probe

_PYTHON = (3, 11)
_INSTALL = install_command("tune")
_NEEDED = ("jax", "jaxlib", "libtpu", "numpy", "click", "optuna", "pandas", "rich")
_LEAST_DISK_BYTES = 1 << 30  # a sweep's cache: some 400 kB a candidate, and dumps while compiling
_LEAST_MEMORY_BYTES = 2 << 30  # two workers at 0.7 GiB each, as seen, and the parent
_PROBE = "rpa_tune.compile.probe:compile_probe"
_PROBE_DEADLINE_S = 120.0


class Health(enum.StrEnum):
    """How a check ended."""

    OK = "ok"
    WARNING = "warning"
    PROBLEM = "problem"


@dataclass(frozen=True, kw_only=True, slots=True)
class Check:
    """One thing looked at.

    Attributes:
      name: What.
      health: How it is.
      found: What there is, in one line.
      advice: What to do; empty when nothing.
    """

    name: str
    health: Health
    found: str
    advice: str = ""


def run_checks(chip: str, cache: Path, *, only: bool = False) -> Iterator[Check]:
    """Every check, the slow ones last.

    Args:
      chip: What to compile for; nothing is compiled if empty.
      cache: Folder of cached compiles.
      only: Whether known faults of other chips are left out.
    """
    yield check_python()
    yield check_platform()
    yield check_packages()
    yield check_libtpu()
    yield from check_faults(chip if only else None)
    yield check_writable("cache folder", cache)
    yield check_disk("disk of the cache", cache)
    yield check_disk("disk of temporary files", Path(tempfile.gettempdir()))
    yield check_memory()
    if chip:
        yield from check_compiles(chip)


def check_python() -> Check:
    """Whether Python is new enough."""
    good = sys.version_info[:2] >= _PYTHON
    return Check(
        name="python",
        health=Health.OK if good else Health.PROBLEM,
        found=platform.python_version(),
        advice="" if good else f"use Python {'.'.join(map(str, _PYTHON))} or newer",
    )


def check_platform() -> Check:
    """Whether libtpu exists for this kind of machine."""
    found = f"{platform.system()} {platform.machine()}"
    good = found == "Linux x86_64"
    return Check(
        name="platform",
        health=Health.OK if good else Health.PROBLEM,
        found=found,
        advice="" if good else "libtpu, the compiler, exists for Linux x86_64 only",
    )


def check_packages() -> Check:
    """Whether everything that tuning imports is installed, and jax and jaxlib agree."""
    found, missing = [], []
    for name in _NEEDED:
        try:
            found.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            missing.append(name)
    if missing:
        return Check(
            name="packages",
            health=Health.PROBLEM,
            found=f"missing: {', '.join(missing)}",
            advice=_INSTALL,
        )
    jax, jaxlib = versions()["jax"], versions()["jaxlib"]
    agree = jax == jaxlib
    return Check(
        name="packages",
        health=Health.OK if agree else Health.WARNING,
        found=", ".join(found),
        advice="" if agree else f"jax {jax} and jaxlib {jaxlib} differ: pip install -U 'jax[tpu]'",
    )


def check_libtpu() -> Check:
    """Whether this compiler, with this jax, is one that tests hold."""
    version = versions()["libtpu"]
    if version is None:
        return Check(name="libtpu", health=Health.PROBLEM, found="not installed", advice=_INSTALL)
    advice = pair_advice(versions())
    return Check(
        name="libtpu",
        health=Health.WARNING if advice else Health.OK,
        found=f"{version}, with jax {versions().get('jax')}",
        advice=advice,
    )


def check_faults(chip: str | None = None) -> Iterator[Check]:
    """What others have reported of the installed versions, on a chip or any (None)."""
    for fault in faults(versions(), chip):
        yield Check(
            name="known faults",
            health=Health.WARNING,
            found=fault.text(versions()[fault.package] or ""),
            advice=fault.cure,
        )


def check_writable(name: str, folder: Path) -> Check:
    """Whether files can be made in a folder."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        return Check(
            name=name,
            health=Health.PROBLEM,
            found=f"{folder}: {error.strerror}",
            advice="choose another with --cache",
        )
    return Check(name=name, health=Health.OK, found=f"{folder}, writable")


def check_disk(name: str, folder: Path) -> Check:
    """Whether there is room for compiles."""
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    good = free >= _LEAST_DISK_BYTES
    return Check(
        name=name,
        health=Health.OK if good else Health.PROBLEM,
        found=f"{free / 1e9:.1f} GB free at {folder}",
        advice="" if good else f"make room for {_LEAST_DISK_BYTES / 1e9:.0f} GB",
    )


def check_memory() -> Check:
    """Whether a worker can compile a large kernel."""
    available = _available_memory_bytes()
    cores = len(os.sched_getaffinity(0))
    good = available >= _LEAST_MEMORY_BYTES
    return Check(
        name="memory",
        health=Health.OK if good else Health.WARNING,
        found=f"{available / 1e9:.1f} GB available, {cores} cores",
        advice="" if good else "run sweeps with --workers 1, or on a larger machine",
    )


def _available_memory_bytes() -> int:
    """Memory that new processes may take without swapping."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return 0


def check_compiles(chip: str) -> Iterator[Check]:
    """Whether a kernel compiles for a chip that is not there, in a worker and in the user's shell.

    A sweep's workers do not see the shell's settings; a server that calls the kernels does.
    """

    def judge(health: Health, found: str, advice: str = "") -> Check:
        return Check(name="compile", health=health, found=found, advice=advice)

    probe, wrong, log = _probe(chip, target.worker_environment)
    if probe is None:
        yield judge(Health.PROBLEM, wrong, _advice(log))
        return
    yield _judge_schedule(chip, probe.schedule, probe.seconds, judge)
    yield check_own_environment(chip, probe)


def check_schedules(chips: Sequence[str], cache: Path) -> Iterator[Check]:
    """Whether the schedule of a small kernel is understood, for each of several chips, as it comes.

    Args:
      chips: Names; one worker for each, as far as there are cores.
      cache: Folder for compiles.
    """
    asked = [load_chip(name) for name in chips]
    num_workers = max(1, min(len(asked), len(os.sched_getaffinity(0))))
    with WorkerPool(num_workers=num_workers, deadline_s=_PROBE_DEADLINE_S) as pool:
        for found in probe_all(asked, ("decode",), pool, cache):
            name, good = f"schedule, {found.chip.name}", found.status is Status.OK
            if good:
                yield Check(name=name, health=Health.OK, found="compiled, parsed and simulated")
                continue
            error = found.error()
            where = f" in {error.where}" if error.where else ""
            yield Check(
                name=name, health=Health.PROBLEM, found=f"{error.args[0]}{where}",
                advice=error.hint or "",
            )  # fmt: skip


def check_own_environment(chip: str, wanted: "Probe") -> Check:
    """Whether a kernel compiles with the shell's settings, to the schedule that workers get."""

    def judge(health: Health, found: str, advice: str = "") -> Check:
        return Check(name="compile, your settings", health=health, found=found, advice=advice)

    def is_right(only: Collection[str] | None) -> tuple[bool, str]:
        probe, wrong, _ = _probe(chip, functools.partial(target.users_environment, only=only))
        if probe is None:
            return False, wrong
        return probe.digest == wanted.digest, ""

    right, wrong = is_right(None)
    if right:
        settings = ", ".join(target.program_settings()) or "none that jax or XLA reads"
        return judge(Health.OK, f"the same schedule as with the defaults ({settings})")
    guilty = [name for name in target.suspects() if not is_right([name])[0]]
    names = ", ".join(f"{name}={value}" for name, value in target.settings_named(guilty).items())
    if wrong:
        advice = f"unset {', '.join(guilty)}" if guilty else "compare with an empty environment"
        advice += " where the kernels are called; sweep workers run without them"
        return judge(Health.PROBLEM, f"{names or 'your environment'}: {wrong}", advice)
    return judge(
        Health.WARNING,
        f"a different schedule with {names or 'your environment'}",
        "tuned times hold for the compiler's defaults; sweep workers run without these settings",
    )


def _probe(
    chip: str, environment: Callable[[Path], dict[str, str]]
) -> "tuple[Probe | None, str, str]":
    """The compiled probe; or None, what is wrong, and what the worker said."""
    try:
        with WorkerPool(
            num_workers=1, deadline_s=_PROBE_DEADLINE_S, environment=environment
        ) as pool:
            (reply,) = pool.map_unordered(_PROBE, [chip])
    except RpaTuneError as error:
        return None, error.args[0], error.where
    if reply.failure is not None:
        return None, reply.failure.detail, reply.failure.log
    if reply.value.detail:
        return None, reply.value.detail, ""
    return reply.value, "", ""


def _judge_schedule(chip: str, schedule: str, seconds: float, judge: Callable[..., Check]) -> Check:
    """Parses the probe's schedule."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "probe-final_bundles.txt"
        path.write_text(schedule)
        try:
            program = load_program(path)
        except DumpError as error:
            return judge(
                Health.PROBLEM,
                f"the schedule cannot be parsed: {error.args[0]}",
                f"`rpa-tune opcodes --chip {chip}` lists unknown opcodes with examples; {RECIPE}, "
                "says how to take in a new libtpu",
            )
    return judge(Health.OK, f"{seconds:.1f} s for {chip}, {len(program.bundles)} bundles, parsed")


def _advice(log: str) -> str:
    """What to do about a compile that went wrong, from what the worker said."""
    if "multi-process lockfile" in log or "libtpu_lockfile" in log:
        return "another process holds libtpu: end it, or remove /tmp/libtpu_lockfile"
    if "No module named" in log or "libtpu" in log.lower():
        return _INSTALL
    return pair_advice(versions()) or "report this with your versions"
