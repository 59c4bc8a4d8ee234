"""`tpu-check` as a call: the steps in turn, one file that grows with every part.

The file is written after each part, so a run that was interrupted goes on where it was. What an
earlier run found well is kept only under the same identity: device, versions, sources.
"""

import datetime
import itertools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rpa_kernels import FAMILIES
from rpa_tune.check import steps
from rpa_tune.check.cases import correctness_cases, kernel_cases
from rpa_tune.check.privacy import public_settings
from rpa_tune.check.record import (
    ARTIFACT,
    CORRECTNESS,
    ENVIRONMENT,
    KERNELS,
    STEPS,
    CheckReport,
    Identity,
    Part,
    PartOutcome,
    is_report,
    read_report,
)
from rpa_tune.compile import target
from rpa_tune.compile.paths import default_cache_dir
from rpa_tune.compile.pool import TaskPool, WorkerPool
from rpa_tune.errors import DeviceError, UsageError
from rpa_tune.evaluate.measured import device_pool
from rpa_tune.hw.chip import load_chip
from rpa_tune.provenance import (
    kernel_digest,
    launch_digest,
    simulator_digest,
    verifier_digest,
    versions,
)
from rpa_tune.ranges import RANGES

DEFAULT_BUDGET_S = 3600.0
_INSPECT = "rpa_tune.check.on_device:inspect"
_INSPECT_DEADLINE_S = 120.0
# A bound on what a part takes on a TPU host: no more than guesses, none was timed on one.
_GUESSED_S = {ENVIRONMENT: 60.0, CORRECTNESS: 30.0, KERNELS: 60.0, ARTIFACT: 60.0}
# Timed on two cores of a busy machine.
_REHEARSED_S = {ENVIRONMENT: 20.0, CORRECTNESS: 40.0, KERNELS: 24.0, ARTIFACT: 20.0}
_STEPS: dict[str, Callable[[steps.Setup], Iterator[Part]]] = {
    ENVIRONMENT: steps.check_environment,
    CORRECTNESS: steps.check_correctness,
    KERNELS: steps.check_kernels,
    ARTIFACT: steps.check_artifact,
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Beginning:
    """What is known before the first step.

    Attributes:
      identity: What is checked.
      num_kept: Parts that an earlier run found well.
      old: Where an earlier file of another identity went, or None.
      changed: What is different from it.
      seconds: How long the rest takes, a guess; with a device only.
    """

    identity: Identity
    num_kept: int
    old: Path | None
    changed: tuple[str, ...]
    seconds: float


class CheckWatch:
    """Is told what happens; every method does nothing here."""

    def begin(self, beginning: Beginning) -> None:
        """Before the first step."""

    def begin_step(self, step: str) -> None:
        """Before a step's first part."""

    def part(self, step: str, part: Part) -> None:
        """A part has ended, and is in the file."""

    def end_step(self, step: str, outcome: PartOutcome, seconds: float) -> None:
        """A step has ended."""


def tpu_check(
    path: str | Path,
    *,
    chip: str | None = None,
    is_rehearsal: bool = False,
    fresh: bool = False,
    cache: str | Path | None = None,
    budget_s: float = DEFAULT_BUDGET_S,
    watch: CheckWatch | None = None,
) -> CheckReport:
    """Checks the TPU of this host, or rehearses that on a CPU. A failing part is no exception.

    Args:
      path: The file, written after each part; one of the same identity is gone on with, one of
        another is kept under a new name.
      chip: Name of the chip; of its device if None. A rehearsal needs one, and so does a device of
        a kind that the chip table does not have.
      is_rehearsal: Whether the CPU device stands in for the chip. Its times are no measurements.
      fresh: Whether to find everything anew; the old file gets a new name.
      cache: Folder for cached compiles; the user's cache folder if None.
      budget_s: Seconds from which on no part is begun.
      watch: Is told what happens.

    Raises:
      UsageError: No chip for a rehearsal, one that contradicts the device, or a file that is
        another's or cannot be written.
    """
    path, watch = Path(path), watch or CheckWatch()
    ends_at = time.monotonic() + RANGES["budget"].check(budget_s, "budget_s")
    if is_rehearsal and chip is None:
        raise UsageError(
            "a rehearsal needs the name of a chip", where="--rehearse", hint="add --chip v6e"
        )
    named = "" if chip is None else load_chip(chip).name
    with _pool(is_rehearsal) as pool:
        device, trouble = _ask_device(pool, is_rehearsal=is_rehearsal)
        found = named if is_rehearsal else _chip_of(device, named)
        if device and not found:
            trouble = DeviceError(
                f"unknown device kind {device['device_kind']!r}", hint="name its chip with --chip"
            )
            device = {}
        identity = _identity(found, device, is_rehearsal=is_rehearsal)
        beginning, report, known = _begin(path, identity, fresh=fresh)
        setup = steps.Setup(
            chip=found, is_rehearsal=is_rehearsal, device=device, trouble=trouble, pool=pool,
            cache_dir=default_cache_dir() if cache is None else Path(cache),
            known=known, ends_at=ends_at,
        )  # fmt: skip
        watch.begin(beginning)
        for step in STEPS:
            _run_step(step, setup, report, path, watch)
    return report


def _pool(is_rehearsal: bool) -> WorkerPool:
    """The worker that owns the device; in a rehearsal one that sees the CPU only."""
    if is_rehearsal:
        return WorkerPool(num_workers=1, environment=target.build_environment)
    return device_pool()


def _ask_device(pool: TaskPool, *, is_rehearsal: bool) -> tuple[dict[str, Any], DeviceError | None]:
    """What the device says of itself; or nothing, and why."""
    (reply,) = pool.map_unordered(_INSPECT, [None], deadline_s=_INSPECT_DEADLINE_S)
    if reply.failure is not None:
        return {}, DeviceError(
            f"the device cannot be used: {reply.failure.detail}",
            hint="end what holds the TPU; on a slice of several hosts jax waits for all of them",
        )
    device: dict[str, Any] = reply.value
    if not is_rehearsal and device["platform"] != "tpu":
        return {}, DeviceError(
            f"no TPU here: jax finds a {device['platform']} only",
            hint="to try the command without one: --rehearse --chip v6e",
        )
    return device, None


def _chip_of(device: dict[str, Any], named: str) -> str:
    """The device's chip, or the one that was named where its kind does not say.

    Raises:
      UsageError: They contradict each other.
    """
    own = device.get("chip", "")
    if named and own and named != own:
        raise UsageError(
            f"the device is a {own} ({device['device_kind']}), not a {named}", where="--chip",
            hint="leave --chip out",
        )  # fmt: skip
    return own or named


def _identity(chip: str, device: dict[str, Any], *, is_rehearsal: bool) -> Identity:
    kept = ("platform", "device_kind", "num_devices", "num_hosts")
    return Identity(
        is_rehearsal=is_rehearsal,
        chip=chip,
        device={name: device[name] for name in kept if name in device},
        versions=versions(),
        sources={family: kernel_digest(family) for family in FAMILIES}
        | {
            "launch": launch_digest(),
            "verifier": verifier_digest(),
            "simulator": simulator_digest(),
        },
    )


def _begin(
    path: Path, identity: Identity, *, fresh: bool
) -> tuple[Beginning, CheckReport, dict[tuple[str, str], Part]]:
    """What an earlier file gives: known parts, or a new name for it.

    Raises:
      UsageError: The file is something else, or of another version.
      DeviceError: There is no device, and the file is of one.
    """
    old, moved, changed = _read_old(path), None, []
    known: dict[tuple[str, str], Part] = {}
    if old is not None and _good_parts(old):
        changed = ["--fresh"] if fresh else identity.differences(old.identity)
        if changed and not identity.device:
            raise DeviceError(
                "there is no device to use, and the file is of one", where=str(path),
                hint="name another with --json to see what is wrong with the device",
            )  # fmt: skip
        if changed:
            moved = _free_name(path)
            path.rename(moved)
        else:
            known = _good_parts(old)
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    report = CheckReport(
        identity=identity,
        settings=public_settings(target.program_settings()),
        date=old.date if known and old is not None else today,
    )
    if known and old is not None:  # what failed stays in the file until it is tried again
        report.parts |= {step: old.parts[step] for step in STEPS if step != ENVIRONMENT}
    return (
        Beginning(
            identity=identity,
            num_kept=len(known),
            old=moved,
            changed=tuple(changed),
            seconds=_guess_s(identity, known),
        ),
        report,
        known,
    )


def _read_old(path: Path) -> CheckReport | None:
    """The file that is there; None when there is none.

    Raises:
      UsageError: It is something else, or of another version.
    """
    if not path.exists():
        return None
    if not is_report(path):
        raise UsageError(
            "it exists, and is no file of `rpa-tune tpu-check`", where=str(path),
            hint="name another with --json",
        )  # fmt: skip
    return read_report(path)


def _good_parts(report: CheckReport) -> dict[tuple[str, str], Part]:
    """What need not be found again: all that was well, but the state of the machine."""
    return {
        (step, part.name): part
        for step in STEPS
        if step != ENVIRONMENT
        for part in report.parts[step]
        if part.outcome is PartOutcome.OK
    }


def _free_name(path: Path) -> Path:
    """`tpu-check.1.json`, or the first number that is free."""
    names = (path.with_name(f"{path.stem}.{n}{path.suffix}") for n in itertools.count(1))
    return next(name for name in names if not name.exists())


def _guess_s(identity: Identity, known: dict[tuple[str, str], Part]) -> float:
    """How long the parts take that are not known."""
    chip, is_rehearsal = identity.chip, identity.is_rehearsal
    if not identity.device:
        return 0.0
    counts = {
        ENVIRONMENT: 1,
        CORRECTNESS: len(correctness_cases(chip, is_rehearsal=is_rehearsal)),
        KERNELS: len(kernel_cases(chip, is_rehearsal=is_rehearsal)),
        ARTIFACT: 1,
    }
    for step, _ in known:
        counts[step] -= 1
    each = _REHEARSED_S if is_rehearsal else _GUESSED_S
    return sum(count * each[step] for step, count in counts.items())


def _parts(step: str, setup: steps.Setup) -> Iterator[Part]:
    """The parts of a step; what goes wrong between two of them is one more."""
    if not setup.device and step != ENVIRONMENT:
        yield Part(name="device", outcome=PartOutcome.NOT_RUN, detail="there is none to use")
        return
    try:
        yield from _STEPS[step](setup)
    except Exception as error:  # a bug in one step must not cost the others
        yield steps.failure(step, error)


def _run_step(
    step: str, setup: steps.Setup, report: CheckReport, path: Path, watch: CheckWatch
) -> None:
    """One step: each part is in the file before the watch is told."""
    watch.begin_step(step)
    started = time.monotonic()
    found: list[Part] = []
    # Those of an earlier run stay in the file until their turn comes.
    waiting = {part.name: part for part in report.parts[step]}
    for part in _parts(step, setup):
        found.append(part)
        waiting.pop(part.name, None)
        report.parts[step] = [*found, *waiting.values()]
        report.save(path)
        watch.part(step, part)
    report.parts[step] = found
    watch.end_step(step, report.outcome(step), time.monotonic() - started)
