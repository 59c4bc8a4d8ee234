"""`tpu-check` on a TPU; without one its parts are tested elsewhere, the whole by its document."""

import pytest

from rpa_tune.check.run import tpu_check
from rpa_tune.evaluate.measured import has_tpu


@pytest.mark.tpu
def test_on_a_tpu(tmp_path):
    if not has_tpu():
        pytest.skip("needs a TPU, this machine has none")
    report = tpu_check(tmp_path / "check.json")
    assert report.ok, report.to_dict()
    assert all(times.measured_us for _, times in report.times)
