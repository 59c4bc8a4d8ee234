"""Phases of a kernel, by opcodes and source lines."""

import ast
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from golden import make

from rpa_tune.analysis import phases
from rpa_tune.analysis.phases import bundle_labels, cycles_by_phase, function_of, phase_of
from rpa_tune.analysis.schedules import profile_program
from rpa_tune.llo.engines import Owner, direction_of
from rpa_tune.llo.opcodes import Op, Slot
from rpa_tune.llo.profile import Profile
from rpa_tune.llo.sources import SourceLine

ROOT = Path(__file__).resolve().parents[3]
KERNELS = ROOT / "kernels"
NAME = "0.0.42.1/v6e_decode.txt.gz"


def line_of(file, function):
    """The last line of a function of our kernels."""
    tree = ast.parse((KERNELS / file).read_text())
    (node,) = (n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef) and n.name == function)
    return SourceLine(str(KERNELS / file), node.end_lineno)


def test_every_function_and_file_that_has_a_phase_is_one_of_our_kernels():
    sources = list(KERNELS.rglob("*.py"))
    text = "\n".join(path.read_text() for path in sources)
    missing = [name for name in phases._PHASE_OF if f"def {name}(" not in text]
    assert missing == []
    assert set(phases._FILES) <= {path.name for path in sources}


@pytest.mark.parametrize(
    ("file", "function", "phase"),
    [
        ("decode/kernel.py", "start_fetch", "prefetch"),
        ("decode/kernel.py", "wait_fetch", "wait"),
        ("online_softmax.py", "softmax_step", "softmax"),
        ("online_softmax.py", "_product", "pv"),
        ("packed.py", "load_words", "unpack"),
        ("decode/seq_blocks.py", "start_send", "write"),
        ("decode/walk.py", "item_at", "walk"),
        ("decode/kernel.py", "run", "control"),
    ],
)
def test_lines_of_our_kernels_have_phases(file, function, phase):
    assert phase_of(line_of(file, function)) == phase


def test_of_other_kernels_the_function_is_the_phase(tmp_path):
    path = tmp_path / "theirs.py"
    path.write_text("def kernel(x):\n    def _():\n        pass\n    return x\nx = 1\n")
    assert phase_of(SourceLine(str(path), 4)) == "kernel"
    assert phase_of(SourceLine(str(path), 3)) == "kernel"  # a body of `pl.when` has no name
    assert phase_of(SourceLine(str(path), 5)) == "theirs.py"
    assert function_of(SourceLine("/no/such/file.py", 3)) == "file.py"


def test_copies_and_what_has_no_line_go_by_their_opcodes():
    program = make.program(NAME)
    none = tuple(Counter() for _ in program.bundles)
    theirs = bundle_labels(program, none)
    mine = line_of("decode/walk.py", "item_at")
    ours = bundle_labels(program, (Counter({mine: 1}), *none[1:]))
    assert ours[0] == "walk"
    for i, bundle in enumerate(program.bundles):
        starts = [direction_of(item.detail) for item in bundle.instructions if item.op is Op.COPY]
        if starts and starts[0] in phases._STARTS:
            assert theirs[i] == phases._STARTS[starts[0]]
        elif bundle.slots[Slot.MXU]:
            assert (theirs[i], ours[i]) == ("", "qk")
    assert {"prefetch", "write", "qk", "softmax"} <= set(ours)


def test_cycles_of_phases_add_up_and_stalls_for_copies_are_waits():
    program = make.program(NAME)
    count = len(program.bundles)
    stalls = np.zeros((count, len(Owner)), np.int64)
    stalls[3, Owner.DMA_WAIT_READ] = 40
    stalls[3, Owner.MXU_WAIT] = 5
    cycles = np.ones(count, np.int64) + stalls.sum(axis=1)
    found = Profile(cycles=cycles, stalls=stalls, lines={}, no_line=0.0)
    by_phase = cycles_by_phase(found, program, ("qk",) * count)
    assert by_phase == {"qk": count + 5, "wait": 40}
    named = cycles_by_phase(found, program, ("",) * count)
    assert "matmul, no line" in named
    assert sum(named.values()) == cycles.sum()


def test_a_schedule_without_lines_has_phases_all_the_same(tmp_path):
    text = make.unpack(make.DUMPS / NAME, tmp_path).read_text()
    found = profile_program(make.program(NAME), make.operands("decode"), "v6e", text)
    assert found.cycles.lines == {}
    assert {"prefetch", "write", "wait"} <= set(found.phases)
