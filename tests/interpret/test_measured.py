"""The measured evaluator with everything but the chip: CPU device, reference as the kernel."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
from pure.evaluate.builders import PROBLEM, WORKLOAD, candidate

from rpa_tune.candidate import Fidelity, Status
from rpa_tune.errors import DeviceError
from rpa_tune.evaluate import measure_task, measured
from rpa_tune.evaluate.measured import REFERENCE, MeasuredEvaluator, fitting_batches
from rpa_tune.evaluate.measurement import MeasureTask


@pytest.fixture
def make(tmp_path, monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    # Checking all hostile lengths takes the reference half a minute; two sequences do here.
    monkeypatch.setattr(measured, "fitting_batches", lambda _: (WORKLOAD.batches[0].batch,))
    made = []

    def make(**options):
        good = {"num_repeats": 4, "max_rounds": 2, "platform": "cpu"}
        pool = measured.device_pool(tmp_path)
        made.append(MeasuredEvaluator(**good | options, pool=pool))
        return made[-1]

    yield make
    for evaluator in made:
        evaluator.close()


def test_check_batches_fit_and_have_the_family():
    batches = fitting_batches(candidate())
    assert batches
    for batch in batches:
        assert batch.misfit(candidate().problem) is None
        assert len(batch.family_seqs("decode"))


def test_right_answers_are_timed_and_every_sample_is_kept(make):
    evaluator = make(launcher=REFERENCE)
    answers = list(evaluator.evaluate_all([candidate(), candidate(bkv_sz=100)], WORKLOAD))
    bad, good = sorted(answers, key=lambda e: e.ok)
    assert bad.status is Status.INFEASIBLE
    assert good.status is Status.OK
    assert good.fidelity is Fidelity.MEASURED
    assert good.time_us == pytest.approx(0.75 * good.batch_us[0] + 0.25 * good.batch_us[1])
    for rounds in good.metrics["samples_ns"]:
        assert 1 <= len(rounds) <= 2
        assert all(len(samples) == 4 and min(samples) > 0 for samples in rounds)
    assert good.provenance["device"]["platform"] == "cpu"
    assert good.provenance["device"]["flags"] == {}  # nothing that decides a program


def test_one_bad_kernel_does_not_spoil_its_group(make):
    evaluator = make(launcher="interpret.measure_tasks:launch_odd_one_out", max_rounds=1)
    asked = [candidate(bq_sz=n) for n in (8, 16, 24, 32, 40, 64)]
    answers = {e.candidate.config.bq_sz: e for e in evaluator.evaluate_all(asked, WORKLOAD)}
    assert answers[8].status is Status.OK
    assert answers[16].status is Status.WRONG_ANSWER
    assert "exceeds tolerance" in answers[16].detail
    assert answers[16].time_us is None
    assert answers[24].status is Status.COMPILE_FAILED
    assert answers[32].status is Status.COMPILE_FAILED
    assert "a target that nobody has" in answers[32].detail
    assert answers[40].status is Status.RUN_FAILED
    assert "made up" in answers[40].detail
    assert answers[64].status is Status.CRASHED


def test_a_machine_without_the_chip_is_said_so(make):
    evaluator = make(platform="tpu")
    with pytest.raises(DeviceError, match="needs a tpu, but jax found a cpu"):
        list(evaluator.evaluate_all([candidate()], WORKLOAD))


def test_a_device_of_an_unknown_kind_contradicts_nobody():
    """Whoever measures on one has been told by a person which chip it is."""
    task = MeasureTask(
        candidates=(candidate(),), batches=(), check_batches=(), num_repeats=1, max_rounds=1,
        launcher="", platform="tpu",
    )  # fmt: skip
    for kind, wrong in (("TPU v6 huge", ""), ("TPU v5e", "candidates are for v6e, this is a v5e")):
        device = SimpleNamespace(platform="tpu", device_kind=kind)
        assert measure_task._wrong_device(device, task) == wrong


def test_the_host_is_described_by_a_worker(make, tmp_path):
    with measured.device_pool(tmp_path) as pool:
        host = measured.find_host(pool)
    assert host.chip == ""
    assert host.reason == "jax finds a cpu only"
    assert host.device["num_devices"] >= 1


def test_a_host_whose_device_is_taken_says_so(make, tmp_path, monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "no_such_platform")
    with measured.device_pool(tmp_path) as pool:
        assert "the TPU cannot be used: " in measured.find_host(pool).reason
    with pytest.raises(DeviceError, match="jax finds no device"):
        list(make().evaluate_all([candidate()], WORKLOAD))


@pytest.mark.parametrize(
    ("vendor", "device", "found"),
    [("0x1ae0", "0x006f", True), ("0x1ae0", "0x0042", False), ("0x8086", "0x006f", False)],
)
def test_a_tpu_is_known_by_its_pci_ids(tmp_path, vendor, device, found):
    (tmp_path / "0000:00:04.0").mkdir()
    (tmp_path / "0000:00:05.0").mkdir()  # one that vanishes while it is read
    (tmp_path / "0000:00:04.0" / "vendor").write_text(f"{vendor}\n")
    (tmp_path / "0000:00:04.0" / "device").write_text(f"{device}\n")
    assert measured.has_tpu(tmp_path) is found
    assert not measured.has_tpu(tmp_path / "none")


@pytest.mark.slow
def test_a_whole_sweep_measures_on_the_cpu_device(make, tmp_path):
    """Everything but the chip: bounds, made-up simulations, real launches of the reference."""
    from fake_sweep import make_evaluators, make_study

    from rpa_tune.store.journal import Journal
    from rpa_tune.sweep.sweep import Sweep
    from rpa_tune.sweep.watch import Watch

    study = make_study(problem=PROBLEM, simulate=4, bkv_sz=(128,), bkv_csz=(128,))
    study = replace(study, workload=WORKLOAD, search=replace(study.search, measure=2, wave=4))
    evaluators = make_evaluators()
    evaluators[Fidelity.MEASURED] = make(launcher=REFERENCE, max_rounds=1)
    with Journal(tmp_path / "store.jsonl") as journal:
        sweep = Sweep(evaluators=evaluators, journal=journal, watch=Watch(), chip_here="v6e")
        (result,) = sweep.run([study])
    assert {a.status for a in result.answers} == {Status.OK}
    assert result.row().evidence.fidelity == "measured"
    assert result.agreement.num_configs == len(result.answers) >= 2
    assert result.agreement.regret_pct >= 0


QUIET = (100.0, 101.0, 99.0, 100.0) * 2
NOISY = (100.0, 140.0, 70.0, 120.0) * 2
THROTTLED = (100.0, 100.0, 102.0, 103.0, 104.0, 105.0)


@pytest.mark.parametrize(
    ("rounds", "num_taken", "is_steady"),
    [
        ([QUIET, NOISY], 1, True),
        ([NOISY, QUIET], 2, True),
        ([THROTTLED, QUIET], 2, True),
        ([NOISY, THROTTLED, NOISY, QUIET], 3, False),
    ],
)
def test_noisy_and_throttled_rounds_are_repeated(monkeypatch, rounds, num_taken, is_steady):
    """One unsteady candidate repeats the round for its whole group; three rounds at most."""
    script = iter(rounds)
    monkeypatch.setattr(measure_task, "_run_round", lambda *_: [QUIET, next(script)])
    task = MeasureTask(
        candidates=(candidate(), candidate(bq_sz=16)), batches=(), check_batches=(),
        num_repeats=8, max_rounds=3, launcher="", platform="cpu",
    )  # fmt: skip
    batch = WORKLOAD.batches[0].batch
    calm, shaky = measure_task._time_batch(task.candidates, batch, task, lambda *_: lambda *a: a[0])
    assert list(shaky.rounds_ns) == rounds[:num_taken]
    assert shaky.is_steady is is_steady
    assert calm.is_steady
    assert len(calm.rounds_ns) == num_taken


@pytest.mark.tpu
def test_on_a_tpu():
    jax = pytest.importorskip("jax")
    if jax.default_backend() != "tpu":
        pytest.skip("needs a TPU, this machine has none")
    from rpa_tune.hw.chip import chip_of_device_kind

    chip = chip_of_device_kind(jax.devices()[0].device_kind).name
    evaluator = MeasuredEvaluator()
    (evaluation,) = evaluator.evaluate_all([candidate(chip=chip)], WORKLOAD)
    evaluator.close()
    assert evaluation.status is Status.OK, evaluation.detail
