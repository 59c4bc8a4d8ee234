"""A host with a made-up TPU: every worker task answered in this process."""

import contextlib
import itertools
from dataclasses import replace
from types import SimpleNamespace

from pure.evaluate import builders

from rpa_tune.candidate import Status
from rpa_tune.check import run, steps
from rpa_tune.check.artifact_task import BuiltArtifact, RunArtifact
from rpa_tune.check.host import Check, Health
from rpa_tune.compile.pool import Failure, FailureKind, Reply
from rpa_tune.evaluate import measured, simulated
from rpa_tune.evaluate.measurement import BatchSamples, MeasureAnswer, Measurement

DEVICE = {
    "platform": "tpu", "device_kind": "TPU v6 lite", "num_devices": 4, "num_hosts": 1,
    "coords": [0, 0, 0], "flags": {}, "chip": "v6e", "hbm_bytes": 33_000_000_000,
}  # fmt: skip
MEASURED_US = 100.0
CHECKS = [
    Check(name="python", health=Health.OK, found="3.11"),
    Check(name="libtpu", health=Health.WARNING, found="9.9", advice="watch"),
]


class DeadError(Exception):
    """Raised by an answer: the worker died."""


class Host:
    """Answers tasks, each by a function that a test may replace; counts what was asked."""

    def __init__(self):
        self.asked = []
        self.checks = list(CHECKS)
        self.simulated_us = MEASURED_US
        self.answers = {
            run._INSPECT: lambda _: dict(DEVICE),
            measured.TASK: self.measure,
            simulated.TASK: self.simulate,
            steps._BUILD: lambda task: BuiltArtifact(
                families=("decode", "mixed"), sha256="0" * 64, num_bytes=2_400_000
            ),
            steps._RUN: lambda task: RunArtifact(
                output_bytes=1000, output_bytes_changed=0, cache_bytes_changed=0
            ),
        }

    def install(self, monkeypatch):
        """Puts the host in the place of the real one."""
        monkeypatch.setattr(run, "_pool", lambda is_rehearsal: Pool(self))
        monkeypatch.setattr(steps, "WorkerPool", lambda **_: Pool(self))
        monkeypatch.setattr(simulated, "WorkerPool", lambda **_: Pool(self))
        monkeypatch.setattr(steps, "run_checks", lambda chip, cache: iter(self.checks))
        return self

    def measure(self, task):
        """Right, and `MEASURED_US` for each batch."""
        samples = BatchSamples(rounds_ns=((MEASURED_US * 1e3,) * 4,), is_steady=True)
        return MeasureAnswer(
            device={**DEVICE},
            measurements=tuple(
                Measurement(
                    status=Status.OK, samples=(samples,) * len(task.batches),
                    error_of_tolerance=0.25,
                )
                for _ in task.candidates
            ),
        )  # fmt: skip

    def simulate(self, task):
        """`simulated_us` for each batch, and two per cent around it."""
        us = self.simulated_us
        found = builders.answer(task, schedule_digest="5" * 16)
        timelines = tuple(
            replace(t, time_us=us, set_us=(0.98 * us, us, 1.02 * us)) for t in found.timelines
        )
        return replace(found, timelines=timelines)

    def count(self, task):
        """How often a task was asked."""
        return self.asked.count(task)


class Pool(contextlib.AbstractContextManager["Pool"]):
    """A pool without processes."""

    def __init__(self, host):
        self._host = host

    def map_unordered(self, function, arguments, *, deadline_s=None):
        for index, argument in zip(itertools.count(), arguments, strict=False):
            self._host.asked.append(function)
            try:
                reply = SimpleNamespace(value=self._host.answers[function](argument), failure=None)
            except DeadError as error:
                reply = SimpleNamespace(value=None, failure=_failure(FailureKind.DIED, error))
            except ArithmeticError as error:
                reply = SimpleNamespace(value=None, failure=_failure(FailureKind.EXCEPTION, error))
            yield Reply(index=index, seconds=0.1, value=reply.value, failure=reply.failure)

    def __exit__(self, *error):
        self.close()

    def close(self):
        pass


def _failure(kind, error):
    return Failure(kind=kind, phase="check", detail=f"{type(error).__name__}: {error}")
