"""Tasks for test_ray.py: measuring without a chip, saying on which node it was done."""

import os

from rpa_tune.candidate import Status
from rpa_tune.evaluate.measurement import BatchSamples, MeasureAnswer, Measurement

DEVICE = {
    "platform": "tpu", "device_kind": "made up", "num_devices": 1, "num_hosts": 1, "coords": [0],
    "flags": {},
}  # fmt: skip


def find_v6e(_):
    """A host with a v6e."""
    return {**DEVICE, "chip": "v6e"}


def measure(task):
    """Times that tell the candidates apart."""
    measurements = []
    for candidate in task.candidates:
        samples_ns = (1e5 + candidate.config.bkv_sz,) * 4
        taken = BatchSamples(rounds_ns=(samples_ns,), is_steady=True)
        samples = (taken,) * len(task.batches)
        measurements.append(Measurement(status=Status.OK, samples=samples))
    # Ray tells its workers who runs the node they are on; theirs inherit it.
    device = {**DEVICE, "raylet": int(os.environ["RAY_RAYLET_PID"])}
    return MeasureAnswer(device=device, measurements=tuple(measurements))
