"""Loops named by their place in the nest."""

from rpa_tune.report.nest import places


def test_loops_have_the_numbers_of_those_that_they_are_in():
    bounds = [(50, 80), (10, 90), (20, 40), (25, 30), (100, 110), (60, 70)]
    assert places(bounds) == {
        (10, 90): "1", (20, 40): "1.1", (25, 30): "1.1.1", (50, 80): "1.2", (60, 70): "1.2.1",
        (100, 110): "2",
    }  # fmt: skip
    assert places([]) == {}
