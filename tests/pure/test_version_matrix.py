"""`make test-versions`: what is compiled, and how answers of several pairs are judged."""

import importlib
from pathlib import Path

import pytest

from rpa_kernels import FAMILIES
from rpa_kernels.infeasible import Infeasible
from rpa_tune.evaluate.evaluator import find_obstacle
from rpa_tune.hw.chip import load_chips
from rpa_tune.known_versions import supported_pairs

PAIRS = supported_pairs()[:3]


@pytest.fixture
def run(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "versions"))
    return importlib.import_module("run")


def row(chip="v6e", time_us=10.0, sources="a b", **rest):
    return {
        "chip": chip, "family": "decode", "status": "ok", "detail": "", "time_us": time_us,
        "sources": sources, "seconds": 3.0, "kept": False, **rest,
    }  # fmt: skip


def test_every_family_is_asked_on_every_chip_and_can_be_answered(run):
    matrix = importlib.import_module("matrix")
    assert set(matrix.CASES) == set(FAMILIES)
    for chip in load_chips():
        for family in matrix.CASES:
            study = matrix.study_of(chip, family)
            config = study.heuristic()
            assert not isinstance(config, Infeasible), (chip, family, config)
            assert not find_obstacle(study.candidate(config), study.workload), (chip, family)


@pytest.mark.parametrize(
    ("answer", "first", "text", "cause"),
    [
        (row(), None, "10.0 us", ""),
        (row(time_us=10.9), row(), "1.090", ""),
        (row(time_us=9.1), row(), "0.910", ""),
        (row(time_us=11.1), row(), "1.110", "11.1 us instead of 10.0 us, outside of 0.9 to 1.1"),
        (row(time_us=8.9), row(), "0.890", "8.9 us instead of 10.0 us, outside of 0.9 to 1.1"),
        (row(), {}, "10.0 us", "the first pair has no time"),
        (row(), row(time_us=None, status="crashed"), "10.0 us", "the first pair has no time"),
        (row(sources="c b"), row(), "10.0 us", "kernel or simulator changed during the run"),
        (
            row(time_us=None, status="not_understood", detail="unknown opcode smov.u32"),
            row(),
            "not_understood",
            "not_understood: unknown opcode smov.u32",
        ),
    ],
)
def test_an_answer_is_held_against_the_first_pair(run, answer, first, text, cause):
    cell = run.judge(answer, first)
    assert cell.text == text
    assert cell.cause.startswith(cause)
    assert bool(cell.cause) == bool(cause)


def test_the_table_has_every_cell_and_numbers_the_causes(run, monkeypatch, capsys):
    told = {
        PAIRS[0]: [row("v6e"), row("v7x", 20.0)],
        PAIRS[1]: [row("v6e", 10.2, kept=True), row("v7x", 30.0)],
        PAIRS[2]: [row("v7x", 20.0)],  # the process ended after its first answer
    }
    monkeypatch.setattr(run, "answers_of", lambda python, *rest: iter(told[python]))
    cells = run.run_matrix({pair: pair for pair in PAIRS}, Path(), "v6e,v7x", ["decode"], 1)
    assert run.print_table(cells, PAIRS) == 2
    out, err = capsys.readouterr()
    lines = [" ".join(line.split()) for line in out.splitlines()]
    assert lines[0] == " ".join(pair.libtpu for pair in PAIRS)
    assert lines[1:3] == [
        "v6e decode 10.0 us 1.020 no answer [1]",
        "v7x decode 20.0 us 1.500 [2] 1.000",
    ]
    assert lines[3].startswith(f"[1] decode v6e, {PAIRS[2]}: the process ended")
    assert lines[4].startswith(f"[2] decode v7x, {PAIRS[1]}: 30.0 us instead of 20.0 us")
    progress = err.splitlines()
    assert len(progress) == 5
    assert progress[2].endswith(f"3 of 6: decode v6e, {PAIRS[1]}: 1.020 (kept)")
