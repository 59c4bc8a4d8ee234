"""The four steps of a check. Each yields its parts as they end; a part that goes wrong ends alone.

No jax: whatever needs it runs in worker processes (`on_device.py`, `evaluate.measure_task`).
"""

import functools
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rpa_tune.candidate import Evaluation, Status
from rpa_tune.check.artifact_task import ArtifactTask
from rpa_tune.check.cases import Case, correctness_cases, kernel_cases
from rpa_tune.check.host import Health, run_checks
from rpa_tune.check.record import ARTIFACT, CORRECTNESS, KERNELS, Part, PartOutcome
from rpa_tune.check.times import KernelTimes, Prediction
from rpa_tune.compile.pool import TaskPool, WorkerPool
from rpa_tune.compile.target import build_environment
from rpa_tune.errors import DeviceError, RpaTuneError
from rpa_tune.evaluate import measured
from rpa_tune.evaluate.measured import MeasuredEvaluator
from rpa_tune.evaluate.measurement import MeasureTask
from rpa_tune.evaluate.simulated import SimulatedEvaluator

INTERPRETED = "rpa_tune.check.on_device:launch_interpreted"
_BUILD, _RUN = "rpa_tune.check.on_device:build", "rpa_tune.check.on_device:run"
_REPEATS, _ROUNDS = 20, 3
_REHEARSED_REPEATS, _REHEARSED_ROUNDS = 4, 1  # what a CPU takes says nothing anyway
_MADE = "decode and mixed"  # what the artefact holds
SPENT = "the time was spent"
_REPORT = "report this with the file: what failed is no setting of yours"


@dataclass(frozen=True, kw_only=True, slots=True)
class Setup:
    """What the steps share.

    Attributes:
      chip: Name in the chip table.
      is_rehearsal: Whether a CPU stands in for the chip.
      device: What `on_device.inspect` says; empty when there is no device to use.
      trouble: Why there is none; None when there is one.
      pool: One worker, which owns the device.
      cache_dir: Where compiles are kept.
      known: Parts that an earlier run found well, by step and name.
      ends_at: `time.monotonic()` from which on nothing is begun.
    """

    chip: str
    is_rehearsal: bool
    device: Mapping[str, Any]
    trouble: DeviceError | None
    pool: TaskPool
    cache_dir: Path
    known: Mapping[tuple[str, str], Part]
    ends_at: float

    def part(self, step: str, name: str, find: Callable[[], Part]) -> Part:
        """One part: kept, not begun for want of time, or found and timed.

        Args:
          step: Its step.
          name: Its name.
          find: Finds it; what it raises makes the part FAILED.
        """
        if (kept := self.known.get((step, name))) is not None:
            return replace(kept, is_kept=True)
        if time.monotonic() >= self.ends_at:
            return Part(
                name=name, outcome=PartOutcome.NOT_RUN, detail=SPENT,
                hint="run the same command again: it goes on here",
            )  # fmt: skip
        return attempt(name, find)


def attempt(name: str, find: Callable[[], Part]) -> Part:
    """A part, timed; FAILED when finding it raises."""
    started = time.monotonic()
    try:
        part = find()
    except Exception as error:  # a bug in one part must not cost the others
        part = failure(name, error)
    return replace(part, seconds=time.monotonic() - started)


def failure(name: str, error: Exception) -> Part:
    """The part that an exception is: what, where, hint."""
    if isinstance(error, RpaTuneError):
        where = f" in {error.where}" if error.where else ""
        detail, hint = f"{error.args[0]}{where}", error.hint or _REPORT
    else:
        detail, hint = " ".join(f"{type(error).__name__}: {error}".split()), _REPORT
    return Part(name=name, outcome=PartOutcome.FAILED, detail=detail, hint=hint)


def check_environment(setup: Setup) -> Iterator[Part]:
    """The device, and what `rpa-tune doctor` looks at; never kept from an earlier run."""
    yield attempt("device", functools.partial(_device, setup))
    checks = run_checks(setup.chip, setup.cache_dir)
    while True:
        started = time.monotonic()
        if (check := next(checks, None)) is None:
            return
        failed = check.health is Health.PROBLEM
        yield Part(
            name=check.name,
            outcome=PartOutcome.FAILED if failed else PartOutcome.OK,
            detail=check.found,
            hint=check.advice,
            seconds=time.monotonic() - started,
            figures={"health": check.health.value},
        )


def _device(setup: Setup) -> Part:
    if setup.trouble is not None:
        raise setup.trouble
    device = setup.device
    num, hbm = device["num_devices"], device["hbm_bytes"]
    memory = f", {hbm / 1e9:.1f} GB of HBM each" if hbm else ""
    hosts = f" on {device['num_hosts']} hosts" if device["num_hosts"] > 1 else ""
    what = f"a CPU in place of a {setup.chip}" if setup.is_rehearsal else setup.chip
    return Part(
        name="device",
        outcome=PartOutcome.OK,
        detail=f"{what} ({device['device_kind']}), {num} device{'s'[: num > 1]}{hosts}{memory}",
        figures={"hbm_bytes": hbm} if hbm else {},
    )


def check_correctness(setup: Setup) -> Iterator[Part]:
    """Each family against the float32 reference, on fragmented pages and hostile lengths."""
    for case in correctness_cases(setup.chip, is_rehearsal=setup.is_rehearsal):
        yield setup.part(CORRECTNESS, case.name, functools.partial(_compare, setup, case))


def _compare(setup: Setup, case: Case) -> Part:
    task = MeasureTask(
        candidates=(case.candidate,),
        batches=(),
        check_batches=case.batches,
        num_repeats=1,
        max_rounds=1,
        launcher=INTERPRETED if setup.is_rehearsal else measured.OWN_KERNEL,
        platform="cpu" if setup.is_rehearsal else "tpu",
    )
    (reply,) = setup.pool.map_unordered(measured.TASK, [task])
    if reply.failure is not None:
        return _failed(case.name, f"{reply.failure.detail} (while: {reply.failure.phase})")
    if reply.value.wrong_device:
        raise DeviceError(reply.value.wrong_device)
    (found,) = reply.value.measurements
    if found.status is not Status.OK:
        return _failed(case.name, f"{found.status}: {found.detail}")
    share, lengths = found.error_of_tolerance, case.batches
    return Part(
        name=case.name,
        outcome=PartOutcome.OK,
        detail=(
            f"{sum(b.num_seqs for b in lengths)} sequences, contexts to "
            f"{max(max(b.kv_lens) for b in lengths)} tokens, error {share:.0%} of what it may be"
        ),
        figures={"error_of_tolerance": share, "candidate": case.candidate.to_dict()},
    )


def check_kernels(setup: Setup) -> Iterator[Part]:
    """Ten kernels, measured beside their simulated times."""
    simulator = SimulatedEvaluator(cache_dir=setup.cache_dir)
    timer = MeasuredEvaluator(
        num_repeats=_REHEARSED_REPEATS if setup.is_rehearsal else _REPEATS,
        max_rounds=_REHEARSED_ROUNDS if setup.is_rehearsal else _ROUNDS,
        launcher=measured.REFERENCE if setup.is_rehearsal else measured.OWN_KERNEL,
        platform="cpu" if setup.is_rehearsal else "tpu",
        pool=setup.pool,
    )
    try:
        for case in kernel_cases(setup.chip, is_rehearsal=setup.is_rehearsal):
            find = functools.partial(_time, setup, case, simulator, timer)
            yield setup.part(KERNELS, case.name, find)
    finally:
        simulator.close()


def _time(
    setup: Setup, case: Case, simulator: SimulatedEvaluator, timer: MeasuredEvaluator
) -> Part:
    # On the device first: what cannot be simulated here can be elsewhere, from the file.
    (timed,) = timer.evaluate_all([case.candidate], case.workload)
    if not timed.ok:
        return _failed(case.name, f"on the device: {timed.status}: {timed.detail}")
    (simulated,) = simulator.evaluate_all([case.candidate], case.workload)
    times = _times(setup, case, timed, simulated)
    if times.simulated is None:
        failed = _failed(case.name, f"simulated: {simulated.status}: {simulated.detail}")
        return replace(failed, figures=times.to_dict())
    is_of_use = times.is_steady or setup.is_rehearsal
    hint = "" if is_of_use else "the samples scatter or drift: calibrate leaves it out"
    return Part(
        name=case.name, outcome=PartOutcome.OK, detail=_words(times), hint=hint,
        figures=times.to_dict(),
    )  # fmt: skip


def _times(setup: Setup, case: Case, timed: Evaluation, simulated: Evaluation) -> KernelTimes:
    """Both answers as one record. The one batch's samples are the whole of them."""
    (samples,) = timed.metrics["samples_ns"]
    prediction = None
    if simulated.ok:
        low, high = simulated.metrics["interval_us"]
        prediction = Prediction(
            time_us=_of(simulated),
            interval_us=(low, high),
            schedule_digest=simulated.metrics["schedule_digest"],
            bound_by=simulated.metrics["bound_by"],
        )
    return KernelTimes(
        candidate=case.candidate,
        workload=case.workload,
        measured_us=None if setup.is_rehearsal else _of(timed),
        rehearsed_us=_of(timed) if setup.is_rehearsal else None,
        simulated=prediction,
        spread=timed.metrics["spread"],
        is_steady=timed.metrics["is_steady"],
        samples_ns=tuple(map(tuple, samples)),
    )


def _of(answer: Evaluation) -> float:
    assert answer.time_us is not None  # its status is OK
    return answer.time_us


def _words(times: KernelTimes) -> str:
    """A kernel in one line."""
    assert times.simulated is not None
    low, high = times.simulated.interval_us
    said = f"simulated {times.simulated.time_us:.1f} us ({low:.1f} to {high:.1f})"
    if times.error is None:
        return f"{said}; not measured: a CPU took {times.rehearsed_us:.0f} us"
    place = "inside" if times.is_inside else "OUTSIDE"
    return f"measured {times.measured_us:.1f} us, {said}, {times.error:+.1%}, {place}"


def check_artifact(setup: Setup) -> Iterator[Part]:
    """An artefact built without the device, loaded and run on it, equal to the jitted call."""
    yield setup.part(ARTIFACT, _MADE, functools.partial(_artifact, setup))


def _artifact(setup: Setup) -> Part:
    with tempfile.TemporaryDirectory() as folder:
        task = ArtifactTask(
            chip=setup.chip, is_rehearsal=setup.is_rehearsal, path=Path(folder) / "kernels.zip"
        )
        with WorkerPool(num_workers=1, environment=build_environment) as pool:
            (reply,) = pool.map_unordered(_BUILD, [task])
        if reply.failure is not None:
            return _failed(_MADE, f"cannot be built: {reply.failure.detail}")
        built = reply.value
        (reply,) = setup.pool.map_unordered(_RUN, [replace(task, sha256=built.sha256)])
    if reply.failure is not None:
        return _failed(_MADE, f"cannot be run: {reply.failure.detail}")
    ran = reply.value
    figures = {
        "bytes": built.num_bytes,
        "families": list(built.families),
        "output_bytes_changed": ran.output_bytes_changed,
        "cache_bytes_changed": ran.cache_bytes_changed,
    }
    if ran.output_bytes_changed or ran.cache_bytes_changed:
        return replace(
            _failed(
                _MADE,
                f"differs from the jitted call in {ran.output_bytes_changed:,} of "
                f"{ran.output_bytes:,} bytes of the output, {ran.cache_bytes_changed:,} of the "
                "KV cache",
            ),
            figures=figures,
        )
    how = "the reference in its place" if setup.is_rehearsal else "+".join(built.families)
    return Part(
        name=_MADE,
        outcome=PartOutcome.OK,
        detail=f"{built.num_bytes / 1e6:.2f} MB ({how}), loaded and run, equal to the jitted call",
        figures=figures,
    )


def _failed(name: str, detail: str) -> Part:
    return Part(name=name, outcome=PartOutcome.FAILED, detail=detail, hint=_REPORT)
