"""A check on a made-up TPU: every step, every way to fail, and what an interrupted run leaves."""

import getpass
import json
import platform
from dataclasses import replace
from pathlib import Path

import pytest
from pure.check.host_of_a_tpu import DEVICE, MEASURED_US, DeadError, Host

from rpa_kernels.slots import SLOTS
from rpa_tune.candidate import Status
from rpa_tune.check import run, steps
from rpa_tune.check.artifact_task import RunArtifact
from rpa_tune.check.host import Check, Health
from rpa_tune.check.record import (
    ARTIFACT,
    CORRECTNESS,
    ENVIRONMENT,
    KERNELS,
    STEPS,
    PartOutcome,
    read_report,
)
from rpa_tune.errors import DeviceError, UsageError
from rpa_tune.evaluate import measured, simulated
from rpa_tune.evaluate.measurement import MeasureAnswer, Measurement
from rpa_tune.evaluate.simulate_task import SimulateAnswer

NUM_CASES = 5 * len(SLOTS) + 2 * 2  # features of each slot, and of latents


@pytest.fixture
def host(monkeypatch):
    return Host().install(monkeypatch)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "check.json"


def check(path, **options):
    return run.tpu_check(path, cache=path.parent / "cache", **options)


def failed(report):
    """The parts that are not well, by step."""
    return {
        (step, part.name): part
        for step in STEPS
        for part in report.parts[step]
        if part.outcome is not PartOutcome.OK
    }


def test_all_is_well(host, path):
    report = check(path)
    assert report.ok, failed(report)
    assert [report.outcome(step) for step in STEPS] == [PartOutcome.OK] * 4
    assert len(report.parts[CORRECTNESS]) == NUM_CASES
    assert len(report.times) == 10
    for _, times in report.times:
        assert times.measured_us == MEASURED_US
        assert times.rehearsed_us is None
        assert times.error == 0.0
        assert times.is_inside
    again = read_report(path)
    assert again.ok
    assert again.to_dict() == json.loads(path.read_text()) == report.to_dict()


def test_a_prediction_that_misses_is_a_finding_and_no_failure(host, path):
    host.simulated_us = 1.5 * MEASURED_US
    report = check(path)
    assert report.ok
    assert {times.is_inside for _, times in report.times} == {False}
    assert all(times.error == pytest.approx(0.5) for _, times in report.times)
    assert "+50.0%, OUTSIDE" in report.parts[KERNELS][0].detail


def test_a_rehearsal_measures_nothing_and_says_so(host, path):
    host.answers[run._INSPECT] = lambda _: {
        **DEVICE, "platform": "cpu", "device_kind": "cpu", "chip": "", "hbm_bytes": None
    }  # fmt: skip
    report = check(path, is_rehearsal=True, chip="v6e")
    assert report.ok
    data = json.loads(path.read_text())
    assert data["is_rehearsal"] is True
    assert "measured_us" not in path.read_text()
    kernels = data["steps"][STEPS.index(KERNELS)]["parts"]
    assert all(part["figures"]["rehearsed_us"] == MEASURED_US for part in kernels)
    assert not any({"error", "is_inside"} & set(part["figures"]) for part in kernels)
    assert all("not measured" in part["detail"] for part in kernels)


def wrong_answer(task):
    return MeasureAnswer(
        measurements=(Measurement(status=Status.WRONG_ANSWER, detail="batch 0: data race"),)
    )


def dies(_):
    raise DeadError("exit code -6")


def a_bug(_):
    return None  # the step reads a field of it


def differs(_):
    return RunArtifact(output_bytes=1000, output_bytes_changed=7, cache_bytes_changed=1)


def not_understood(_):
    return SimulateAnswer(status=Status.NOT_UNDERSTOOD, detail="unknown mnemonic vnew")


FAULTS = {
    "wrong answer": (measured.TASK, wrong_answer, CORRECTNESS, "wrong_answer: batch 0: data race"),
    "the worker dies": (measured.TASK, dies, KERNELS, "crashed: DeadError: exit code -6"),
    "a bug of ours": (measured.TASK, a_bug, CORRECTNESS, "AttributeError: "),
    "not simulated": (simulated.TASK, not_understood, KERNELS, "unknown mnemonic vnew"),
    "not built": (steps._BUILD, dies, ARTIFACT, "cannot be built: DeadError: exit code -6"),
    "not run": (steps._RUN, dies, ARTIFACT, "cannot be run: DeadError: exit code -6"),
    "differs": (steps._RUN, differs, ARTIFACT, "differs from the jitted call in 7 of 1,000 bytes"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_fails_says_so_and_the_rest_is_run(host, path, fault):
    task, answer, step, detail = FAULTS[fault]
    host.answers[task] = answer
    report = check(path)
    assert not report.ok
    assert report.outcome(step) is PartOutcome.FAILED
    parts = [part for part in report.parts[step] if part.outcome is PartOutcome.FAILED]
    assert parts
    assert all(detail in part.detail and part.hint for part in parts)
    asked = {measured.TASK: (CORRECTNESS, KERNELS), simulated.TASK: (KERNELS,)}
    for other in set(STEPS) - set(asked.get(task, (ARTIFACT,))):
        assert report.outcome(other) is PartOutcome.OK
    assert PartOutcome.NOT_RUN not in {p.outcome for p in failed(report).values()}
    # What went wrong is tried again, what was well is not.
    host.asked.clear()
    host.answers[task] = Host().answers[task]
    again = check(path)
    assert again.ok
    assert {p.name for p in again.parts[step] if not p.is_kept} == {p.name for p in parts}


def test_one_case_that_fails_costs_no_other(host, path):
    def only_float32_prefill(task):
        (candidate,) = task.candidates
        if candidate.family.name == "prefill" and candidate.problem.q_dtype == "float32":
            raise ZeroDivisionError("made up")
        return host.measure(task)

    host.answers[measured.TASK] = only_float32_prefill
    report = check(path)
    assert list(failed(report)) == [(CORRECTNESS, "prefill, float32")]
    part = failed(report)[CORRECTNESS, "prefill, float32"]
    assert part.detail == "ZeroDivisionError: made up (while: check)"


def test_a_time_without_a_prediction_is_kept(host, path):
    """Another machine can make the prediction from the file."""
    host.answers[simulated.TASK] = not_understood
    check(path)
    report = read_report(path)
    assert len(report.times) == 10
    for _, times in report.times:
        assert times.measured_us == MEASURED_US
        assert times.simulated is times.error is times.is_inside is None


def test_a_problem_of_the_machine_is_a_failure_of_the_first_step(host, path):
    host.checks.append(Check(name="disk", health=Health.PROBLEM, found="full", advice="make room"))
    report = check(path)
    assert list(failed(report)) == [(ENVIRONMENT, "disk")]
    assert failed(report)[ENVIRONMENT, "disk"].hint == "make room"


@pytest.mark.parametrize("name", ["kernel_cases", "correctness_cases", "run_checks"])
def test_a_bug_between_two_parts_costs_one_step(host, path, monkeypatch, name):
    def broken(*args, **options):
        raise ZeroDivisionError("made up")

    monkeypatch.setattr(steps, name, broken)
    report = check(path)
    (part,) = failed(report).values()
    assert part.detail == "ZeroDivisionError: made up"
    assert "report this" in part.hint


def test_a_user_may_be_called_like_a_word_of_ours(host, path, monkeypatch):
    monkeypatch.setattr(getpass, "getuser", lambda: "tpu")
    assert check(path).ok
    assert read_report(path).identity.device["platform"] == "tpu"
    assert check(path).parts[KERNELS][0].is_kept


def test_a_failed_time_is_in_the_file_until_it_is_taken_again(host, path):
    """A measured time whose prediction failed: the next run is interrupted before its turn."""
    host.answers[simulated.TASK] = not_understood
    check(path)
    host.checks = iter_then_interrupt()
    with pytest.raises(KeyboardInterrupt):
        check(path)
    assert len(read_report(path).times) == 10


def test_an_interrupted_check_goes_on_where_it_was(host, path):
    calls = []

    def interrupted(task):
        calls.append(task)
        if len(calls) == 12:  # in the middle of the second step
            raise KeyboardInterrupt
        return host.measure(task)

    host.answers[measured.TASK] = interrupted
    with pytest.raises(KeyboardInterrupt):
        check(path)
    assert len(read_report(path).parts[CORRECTNESS]) == 11
    host.answers[measured.TASK] = host.measure
    for _ in range(2):  # interrupted once more, before it has come so far again
        host.answers[run._INSPECT] = lambda _: dict(DEVICE)
        host.checks = iter_then_interrupt()
        with pytest.raises(KeyboardInterrupt):
            check(path)
        assert len(read_report(path).parts[CORRECTNESS]) == 11
    host.checks = Host().checks
    host.asked.clear()
    report = check(path)
    assert report.ok
    assert sum(part.is_kept for part in report.parts[CORRECTNESS]) == 11
    assert host.count(measured.TASK) == NUM_CASES - 11 + 10
    assert len(report.parts[CORRECTNESS]) == NUM_CASES


def iter_then_interrupt():
    yield Check(name="python", health=Health.OK, found="3.11")
    raise KeyboardInterrupt


def test_a_finished_check_is_not_done_again(host, path):
    check(path)
    host.asked.clear()
    seen = []
    watch = run.CheckWatch()
    watch.begin = seen.append
    report = check(path, watch=watch)
    assert report.ok
    assert host.asked == [run._INSPECT]
    assert seen[0].num_kept == NUM_CASES + 10 + 1
    assert seen[0].seconds == run._GUESSED_S[ENVIRONMENT]


@pytest.mark.parametrize("how", ["device", "versions", "fresh", "chip"])
def test_another_device_or_version_starts_anew_and_keeps_the_old_file(host, path, monkeypatch, how):
    check(path)
    old, options = path.read_text(), {}
    if how == "device":
        host.answers[run._INSPECT] = lambda _: {**DEVICE, "num_devices": 8}
    elif how == "versions":
        here = run.versions()
        monkeypatch.setattr(run, "versions", lambda: {**here, "libtpu": "9.9"})
    elif how == "chip":
        other = {"device_kind": "TPU v5 lite", "chip": "v5e"}
        host.answers[run._INSPECT] = lambda _: {**DEVICE, **other}
    else:
        options["fresh"] = True
    host.asked.clear()
    report = check(path, **options)
    assert report.ok
    assert not any(part.is_kept for step in STEPS for part in report.parts[step])
    assert path.with_name("check.1.json").read_text() == old
    check(path, fresh=True)
    assert path.with_name("check.2.json").exists()
    assert path.with_name("check.1.json").read_text() == old


def test_a_rehearsal_never_goes_on_with_a_measurement(host, path):
    check(path)
    report = check(path, is_rehearsal=True, chip="v6e")
    assert not any(part.is_kept for step in STEPS for part in report.parts[step])
    assert not read_report(path.with_name("check.1.json")).identity.is_rehearsal


@pytest.mark.parametrize("text", ["{}", "", "[1]", "not json", '{"schema": "rpa-workload/1"}'])
def test_a_file_that_is_something_else_is_left_alone(host, path, text):
    path.write_text(text)
    with pytest.raises(UsageError, match="is no file of `rpa-tune tpu-check`"):
        check(path)
    assert path.read_text() == text


def test_spent_time_leaves_parts_for_the_next_run(host, path):
    report = check(path, budget_s=0)
    assert report.outcome(ENVIRONMENT) is PartOutcome.OK
    for step in STEPS[1:]:
        assert report.outcome(step) is PartOutcome.NOT_RUN
        assert {part.detail for part in report.parts[step]} == {steps.SPENT}
    assert check(path).ok


@pytest.mark.parametrize(
    ("answer", "detail", "hint"),
    [
        (dies, "the device cannot be used: DeadError: exit code -6", "end what holds the TPU"),
        (lambda _: {**DEVICE, "platform": "cpu", "chip": ""}, "jax finds a cpu only", "--rehearse"),
        (
            lambda _: {**DEVICE, "device_kind": "TPU v9", "chip": ""},
            "unknown device kind 'TPU v9'", "name its chip with --chip",
        ),
    ],
)  # fmt: skip
def test_without_a_device_the_machine_is_looked_at_and_no_more(host, path, answer, detail, hint):
    host.answers[run._INSPECT] = answer
    report = check(path)
    device = failed(report)[ENVIRONMENT, "device"]
    assert detail in device.detail
    assert hint in device.hint
    assert [report.outcome(step) for step in STEPS[1:]] == [PartOutcome.NOT_RUN] * 3
    assert len(report.parts[ENVIRONMENT]) == 1 + len(host.checks)
    host.answers[run._INSPECT] = Host().answers[run._INSPECT]
    assert check(path).ok  # in the same file, there was nothing to keep
    assert not path.with_name("check.1.json").exists()


def test_a_device_that_is_gone_does_not_cost_the_file(host, path):
    check(path)
    old = path.read_text()
    host.answers[run._INSPECT] = dies
    with pytest.raises(DeviceError, match="there is no device to use"):
        check(path)
    assert path.read_text() == old


def test_a_device_of_an_unknown_kind_may_be_named(host, path):
    host.answers[run._INSPECT] = lambda _: {**DEVICE, "device_kind": "TPU v6 huge", "chip": ""}
    report = check(path, chip="trillium")
    assert report.ok
    assert report.identity.chip == "v6e"


def test_a_chip_that_contradicts_the_device_is_refused(host, path):
    with pytest.raises(UsageError, match=r"the device is a v6e \(TPU v6 lite\), not a v5e"):
        check(path, chip="v5e")
    assert not path.exists()


def test_a_rehearsal_needs_a_chip(path):
    with pytest.raises(UsageError, match="needs the name of a chip"):
        run.tpu_check(path, is_rehearsal=True)


def test_a_file_that_cannot_be_written_is_said_so(host, path):
    (path.parent / "file").touch()
    with pytest.raises(UsageError, match="cannot write"):
        check(path.parent / "file" / "check.json")


def test_nothing_says_whose_machine_it_was(host, path, monkeypatch):
    home = f"{Path.home()}/models/secret"
    names = ("some-host-7", "alice-and-bob")
    monkeypatch.setattr(platform, "node", lambda: names[0])
    monkeypatch.setattr(getpass, "getuser", lambda: names[1])
    monkeypatch.setenv("XLA_FLAGS", f"--xla_dump_to={home} --xla_other=true")
    monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", "10.1.2.3:8476")

    def leaks(_):
        raise ZeroDivisionError(f"{home}: no {names[1]} on {names[0]}")

    host.answers[steps._BUILD] = leaks
    host.checks.append(Check(name="cache", health=Health.OK, found=f"{home}, writable"))
    check(path)
    text = path.read_text()
    for secret in (home, *names, "10.1.2.3", "secret"):
        assert secret not in text
    data = json.loads(text)
    assert data["settings"]["XLA_FLAGS"] == "--xla_dump_to=<path> --xla_other=true"
    assert data["settings"]["JAX_COORDINATOR_ADDRESS"] == "<left out>"
    assert data["versions"]["libtpu"] == run.versions()["libtpu"]
    assert "<path>: no <user> on <host>" in text


def test_the_watch_is_told_what_is_in_the_file(host, path):
    told = []

    class Watch(run.CheckWatch):
        def begin(self, beginning):
            told.append(beginning.seconds)

        def part(self, step, part):
            kept = read_report(path).parts[step]
            assert [(p.name, p.detail) for p in kept][-1] == (part.name, part.detail)
            told.append(part.name)

        def end_step(self, step, outcome, seconds):
            told.append(outcome)

    report = check(path, watch=Watch())
    assert told[0] > 600  # seconds, a guess, of a whole check
    assert told.count(PartOutcome.OK) == 4
    assert len(told) == 1 + 4 + sum(len(report.parts[step]) for step in STEPS)


def test_unsteady_samples_are_pointed_out(host, path):
    def shaky(task):
        found = host.measure(task)
        changed = [
            replace(one, samples=tuple(replace(s, is_steady=False) for s in one.samples))
            for one in found.measurements
        ]
        return replace(found, measurements=tuple(changed))

    host.answers[measured.TASK] = shaky
    report = check(path)
    assert report.ok
    assert all("calibrate leaves it out" in part.hint for part in report.parts[KERNELS])
    assert not any(times.is_steady for _, times in report.times)
