"""The kernel comparison counts what it is not sure of."""

import importlib
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def kernels(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("kernels")


@pytest.mark.parametrize("path", sorted(BENCHMARKS.glob("*.py")), ids=lambda path: path.stem)
def test_a_benchmark_finds_what_it_imports(path, kernels):
    assert importlib.import_module(path.stem).__doc__


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


@pytest.fixture
def mla(kernels):
    return importlib.import_module("mla")


def test_latent_cells_are_those_of_the_engines_shapes(mla):
    cells = importlib.import_module("mla_cells")
    found = list(mla.cases(mla.CHIPS, mla.HEADS, mla.KINDS))
    assert len(found) == len(mla.CHIPS) * len(cells.VARIANTS)
    groups = [group for case in found for group in case.by_kind.values()]
    assert {group.problem.num_q_heads for group in groups} == {128, 64, 32, 16, 8}
    assert {group.problem.page_size for group in groups} == {1024, 256}
    for group in groups:
        for name, batch in group.batches.items():
            assert batch.misfit(group.problem) is None, name
        assert cells.likely_sets(group), "beside what its engine looks up"


def test_a_bound_is_the_longer_of_bytes_and_multiplications(mla):
    case = next(iter(mla.cases(["v6e"], [128], ["decode"])))
    group = case.by_kind["decode"]
    tokens, heads = 4096 * 16, 128
    cell = mla.bound(group, group.batches["4kx16"])
    num_bytes = (tokens + 16) * 576 + 16 * heads * (2 * 512 + 64)  # float8
    flops = 2 * tokens * heads * (2 * 512 + 64)
    roofs = {"hbm": 1e6 * num_bytes / 1.64e12, "flops": 1e6 * flops / 9.2e14}  # chips.yaml
    assert cell["bound_by"] == max(roofs, key=roofs.get)
    assert cell["bound_us"] == pytest.approx(max(roofs.values()))


def test_a_public_answer_is_divided_among_the_kinds_of_cells(mla):
    case = next(iter(mla.cases(["v6e"], [128], mla.KINDS)))
    names = list(case.whole.batches)
    whole = kernels_answer(times_us=[float(i) for i in range(len(names))])
    for kind, group in case.by_kind.items():
        assert case.part(whole, kind).times_us == [names.index(name) for name in group.batches]


def kernels_answer(**fields):
    return importlib.import_module("kernels").Answer(**{"detail": "", **fields})


def test_a_report_counts_what_is_sure(mla):
    def cell(speedup, verdict):
        return {"name": "x", "best": {}, "speedup": speedup, "verdict": verdict}

    cells = [cell(2.0, "ahead"), cell(0.5, "behind"), cell(None, None)]
    result = {"chip": "v6e", "model": "m", "kind": "decode", "cells": cells, "failures": []}
    report = mla.report_of([result], 1.0)
    assert report["geomean_speedup"] == {"decode": pytest.approx(1.0), "mixed": None}
    assert report["worst_cell_speedup"] == 0.5
    assert report["verdicts"] == {"ahead": 1, "level": 0, "behind": 1, "undecided": 0}
    assert (report["num_cells"], report["num_compared"]) == (3, 2)
