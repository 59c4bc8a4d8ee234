"""The measured evaluator with everything but the chip: CPU device, reference as the kernel."""

import pytest
from pure.evaluate.builders import WORKLOAD, candidate

from rpa_tune.candidate import Fidelity, Status
from rpa_tune.errors import DeviceError
from rpa_tune.evaluate import measured
from rpa_tune.evaluate.measured import REFERENCE, MeasuredEvaluator, fitting_batches


@pytest.fixture
def make(tmp_path, monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    # Checking all hostile lengths takes the reference half a minute; two sequences do here.
    monkeypatch.setattr(measured, "fitting_batches", lambda _: (WORKLOAD.batches[0].batch,))
    made = []

    def make(**options):
        good = {"num_repeats": 4, "max_rounds": 2, "platform": "cpu", "scratch_dir": tmp_path}
        made.append(MeasuredEvaluator(**good | options))
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
    assert good.provenance["device"]["flags"]["JAX_PLATFORMS"] == "cpu"


def test_one_bad_kernel_does_not_spoil_its_group(make):
    evaluator = make(launcher="interpret.measure_tasks:launch_odd_one_out", max_rounds=1)
    asked = [candidate(bq_sz=n) for n in (8, 16, 32, 64)]
    answers = {e.candidate.config.bq_sz: e for e in evaluator.evaluate_all(asked, WORKLOAD)}
    assert answers[8].status is Status.OK
    assert answers[16].status is Status.WRONG_ANSWER
    assert "exceeds tolerance" in answers[16].detail
    assert answers[16].time_us is None
    assert answers[32].status is Status.RUN_FAILED
    assert answers[64].status is Status.CRASHED


def test_a_machine_without_the_chip_is_said_so(make):
    evaluator = make(platform="tpu")
    with pytest.raises(DeviceError, match="needs a tpu, but jax found a cpu"):
        list(evaluator.evaluate_all([candidate()], WORKLOAD))


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
