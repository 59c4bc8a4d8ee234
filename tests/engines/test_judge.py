"""What the other tests count on: the judge refuses a step with other kernels than ours."""

import judge
import pytest

OURS = ["rpa_decode-p16-bkv32_32-s1", "rpa_mixed-p16-bq16_16-bkv32_32-n2"]


@pytest.mark.parametrize(
    "steps",
    [[], [[[], 3]], [[OURS[:1], 3]], [[["RPAm-p_16-bq_16_16-bkv_32_32"], 1]],
     [[OURS, 3], [[*OURS, "RPAm-p_16-bq_16_16-bkv_32_32"], 1]],
     [[[name.replace("32_32", "64_32") for name in OURS], 1]]],
    ids=["nothing", "no kernel", "one", "the engine's", "both", "blocks of no table"],
)  # fmt: skip
def test_steps_that_are_not_ours(steps):
    judge.check_steps([[OURS, 3]])
    with pytest.raises(AssertionError):
        judge.check_steps(steps)


def test_log_probabilities_that_are_off():
    judge.check_logprobs([[-1.0, -2.0]], [[-1.0, -2.0 - judge.BOUND / 2]])
    with pytest.raises(AssertionError):
        judge.check_logprobs([[-1.0, -2.0]], [[-1.0, -2.0 - judge.BOUND * 2]])
