"""A workload's weights, to the last bit: its digest is of them."""

from rpa_tune.workload.batches import plain_sum


def test_weights_are_summed_alike_under_every_python():
    # `sum` of Python 3.12 says 1.0 here, and that of 3.11 does not.
    assert plain_sum([0.1] * 10) == 0.9999999999999999
    assert plain_sum([]) == 0.0
