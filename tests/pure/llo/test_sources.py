"""Source lines in a schedule: read, and taken out again."""

import pytest
from golden import make

from rpa_tune.compile.dumps import schedule_digest
from rpa_tune.llo.machine import load_machine
from rpa_tune.llo.parse import load_program
from rpa_tune.llo.profile import lines_to_dicts, profile, read_sources
from rpa_tune.llo.simulate import simulate
from rpa_tune.llo.sources import SourceLine, lines_of, without_sources

NAME = "0.0.42.1/v6e_decode.txt.gz"
LINE = SourceLine("/my/kernel.py", 12)


def noted(text):
    """A dump with a line behind each vector load and behind each comment of a phi."""
    lines = []
    for line in text.splitlines():
        parts = line.split("  ;;  ")
        for i, part in enumerate(parts):
            note = 'loc("/my/kernel.py":12:3 to :9)'
            if "= vld [" in part and "/*" not in part and "}" not in part:
                parts[i] = f"{part} /* {note} */"
            elif part.endswith("/* phi copy */"):
                parts[i] = part.replace("phi copy */", f"phi copy :: {note} :: {note} */")
        lines.append("  ;;  ".join(parts))
    return "\n".join(lines) + "\n"


@pytest.fixture
def both(tmp_path):
    plain = make.unpack(make.DUMPS / NAME, tmp_path)
    other = tmp_path / "noted-final_bundles.txt"
    other.write_text(noted(plain.read_text()))
    assert other.read_text().count("loc(") > 40
    return plain, other


def test_without_its_lines_a_schedule_is_what_it_was(both):
    plain, other = both
    assert without_sources(other.read_text()) == plain.read_text()
    assert schedule_digest(other) == schedule_digest(plain)


def test_lines_change_no_time(both):
    machine, operands = load_machine("v6e"), make.operands("decode")
    first, second = (simulate(load_program(path), machine, operands) for path in both)
    assert first.total_cycles == second.total_cycles
    assert first.slots == second.slots


def test_cycles_are_divided_among_lines_and_add_up(both):
    program, machine, operands = load_program(both[1]), load_machine("v6e"), make.operands("decode")
    sources = read_sources(both[1].read_text())
    found = profile(program, machine, operands, sources)
    timeline = simulate(program, machine, operands)
    assert found.cycles.sum() + timeline.cycles_by_owner["launch"] == timeline.total_cycles
    assert found.stalls.sum() + timeline.num_bundles == found.cycles.sum()
    assert sum(found.lines.values()) + found.no_line == pytest.approx(found.cycles.sum())
    with_line = [bool(lines) for lines in sources]
    assert found.lines == {LINE: found.cycles[with_line].sum()}
    (row,) = lines_to_dicts(found)
    assert (row["file"], row["line"]) == LINE
    assert lines_to_dicts(None) == []


def test_an_instruction_counts_its_first_line_once():
    text = (
        '%a = vld [vmem:[%b]] /* loc("x.py":3:1 to :5) */  ;;  %c = vpow2 %d  ;;  '
        '%e = smov 0 /* phi copy :: loc("y.py":7:1 to :5) :: loc("y.py":8:1 to :5) */'
    )
    assert lines_of(text) == {SourceLine("x.py", 3): 1, SourceLine("y.py", 7): 1}
