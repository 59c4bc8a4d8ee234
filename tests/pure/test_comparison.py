"""The kernel comparison counts what it is not sure of."""

import importlib
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def kernels(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("kernels")


def times(time_us, *sets_us):
    return {"time_us": time_us, "sets_us": sets_us}


@pytest.mark.parametrize(
    ("ours", "theirs", "verdict"),
    [
        (times(10, *[9] * 10), times(12, *[11] * 10), "ahead"),
        (times(12, *[11] * 10), times(10, *[9] * 10), "behind"),
        # Ahead in the mean, and slower under three of ten sets.
        (times(10, *[9] * 7, 13, 13, 13), times(12, *[11] * 10), "undecided"),
        (times(10.0, *[9] * 5, *[11] * 5), times(10.1, *[10] * 10), "level"),
        # Under nine of ten sets by a hair is ahead all the same.
        (times(10.0, *[9] * 9, 11), times(10.1, *[10] * 10), "ahead"),
    ],
)
def test_a_verdict_follows_from_the_sets(kernels, ours, theirs, verdict):
    assert kernels.verdict(ours, theirs) == verdict


def test_a_summary_counts_verdicts_and_makes_none_up(kernels):
    summary = importlib.import_module("summary")
    cell = {"chip": "v6e", "kind": "decode", "model": "llama3-8b", "speedup": 1.1, "best": {}}
    cells = [cell | {"verdict": v} for v in ("ahead", "ahead", "undecided", "behind", None)]
    text = "\n".join(summary.lines({"cells": cells}))
    assert (
        "Of 5 cells that were compared: ahead in 2, level in 0, behind in 1, undecided in 1."
        in text
    )
    assert "Without a verdict: 1." in text
