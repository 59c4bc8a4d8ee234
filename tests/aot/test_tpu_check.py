"""A check with the real compiler: what is timed is what is simulated, and ten times tell much."""

import math
from dataclasses import replace

import pytest

from rpa_tune.artifact.file import Artifact
from rpa_tune.candidate import Evaluation, Fidelity, Status
from rpa_tune.check.artifact_task import ArtifactTask
from rpa_tune.check.cases import kernel_cases
from rpa_tune.cli.calibrate import DEFAULT_PARAMETERS
from rpa_tune.compile.pool import WorkerPool
from rpa_tune.compile.target import build_environment
from rpa_tune.evaluate.observations import observe
from rpa_tune.llo.calibrate import fit, predict, with_followers
from rpa_tune.llo.machine import load_machine

pytestmark = [pytest.mark.aot, pytest.mark.slow]

# A machine that differs in everything that is fitted.
CHANGES = {
    "read_linear_bytes_per_s": 0.8,
    "read_strided_bytes_per_s": 1.2,
    "read_fixed_cycles": 1.5,
    "read_latency_cycles": 1.4,
    "matmul_latency_bf16_cycles": 1.3,
    "matmul_latency_f32_cycles": 1.2,
    "launch_us": 1.5,
}


@pytest.mark.parametrize("chip", ["v6e", "v7x"])
def test_the_program_that_is_timed_has_the_schedule_that_is_simulated(chip):
    """XLA decides from the surroundings of a kernel where small operands live."""
    small = (
        "decode, one short sequence",
        "decode, two buffers, short sequences",
        "prefill, float32",
    )
    cases = [c for c in kernel_cases(chip, is_rehearsal=False) if c.name in small]
    with WorkerPool(num_workers=2, deadline_s=600) as pool:
        replies = list(pool.map_unordered("aot.check_tasks:simulated_and_measured", cases))
    assert len(replies) == len(small)
    for reply in replies:
        assert reply.failure is None, reply.failure
        simulated, measured = reply.value
        assert simulated == measured, cases[reply.index].name


def test_ten_times_tell_what_is_wrong_with_the_machine(tmp_path):
    cases = kernel_cases("v6e", is_rehearsal=False)
    answers = [
        Evaluation(
            candidate=case.candidate, fidelity=Fidelity.MEASURED, status=Status.OK, time_us=1.0,
            batch_us=(1.0,),
        )
        for case in cases
    ]  # fmt: skip
    workloads = {case.workload.digest: case.workload for case in cases}
    with WorkerPool(num_workers=2, deadline_s=600) as pool:
        seen = list(observe(answers, workloads, pool, cache_dir=tmp_path, num_batches=1))
    assert [one for one in seen if isinstance(one, str)] == []
    ours = load_machine("v6e")
    changed = {name: ours.value(name) * factor for name, factor in CHANGES.items()}
    theirs = ours.with_values(with_followers(changed), source="test", confidence="guess")
    times = predict(theirs, seen)
    seen = [replace(one, measured_us=float(us)) for one, us in zip(seen, times, strict=True)]
    found = fit(ours, seen, DEFAULT_PARAMETERS, hold_out=False)
    deviations = [math.sqrt(v) for v in found.covariance.diagonal()]
    for name, factor in CHANGES.items():
        deviation = deviations[DEFAULT_PARAMETERS.index(name)]
        assert found.values[name] / ours.value(name) == pytest.approx(factor, rel=0.15), name
        assert deviation < 0.35, name  # 0.5 was assumed before


def test_the_artefact_of_a_check_is_built_without_the_chip_and_is_for_it_alone(tmp_path):
    task = ArtifactTask(chip="v6e", is_rehearsal=False, path=tmp_path / "kernels.zip")
    with WorkerPool(num_workers=1, deadline_s=600, environment=build_environment) as pool:
        (reply,) = pool.map_unordered("rpa_tune.check.on_device:build", [task])
        assert reply.failure is None, reply.failure
        built = reply.value
        assert built.families == ("decode", "mixed")
        assert Artifact(task.path, sha256=built.sha256).manifest.device_kind == "TPU v6 lite"
        (reply,) = pool.map_unordered(
            "rpa_tune.check.on_device:run", [replace(task, sha256=built.sha256)]
        )
        expected = "not for this host: device kind TPU v6 lite there, cpu here"
        assert expected in reply.failure.detail
