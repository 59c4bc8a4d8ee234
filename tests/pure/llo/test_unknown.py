"""Opcodes that the table lacks, all of them with where they stand; and renames that it has."""

import gzip

import pytest
from golden import make
from pure.llo.dump_text import dump

from rpa_tune.errors import DumpError
from rpa_tune.llo.opcodes import meaning
from rpa_tune.llo.parse import load_program
from rpa_tune.llo.unknown import unknown_opcodes


def test_every_unknown_opcode_is_listed_with_its_first_examples(tmp_path):
    moves = "  ;;  ".join(f"%s{i}_s{i} = smov.u64 {i}" for i in range(1, 6))
    text = dump(
        "%s0_s0 = smov 1",
        ("LB", moves, "a comment and new.opcode"),
        "%v9_v9 = vnew.f32 %v1_v1  ;;  %p1_p1 = scmp.eq.s32.totalorder %s0_s0, 1",
        "",
    )
    often, once = unknown_opcodes(text)
    assert (often.mnemonic, often.count) == ("smov.u64", 5)
    assert often.examples == tuple((6, f"%s{i}_s{i} = smov.u64 {i}") for i in (1, 2, 3))
    assert (once.mnemonic, once.count) == ("vnew.f32", 1)
    assert once.examples == ((7, "%v9_v9 = vnew.f32 %v1_v1"),)
    path = tmp_path / "1-toy.1-01-final_bundles.txt"
    path.write_text(text)
    with pytest.raises(DumpError, match="unknown opcode") as refused:
        load_program(path)  # names the first of them at the same place
    assert "`smov.u64`" in refused.value.args[0]
    assert refused.value.where == f"{path}:6"
    assert "0.0.52" in refused.value.hint


def test_goldens_have_none_whatever_their_compiler_called_things():
    words = {}
    for version in ("0.0.42.1", "0.0.48", "0.0.50.1", "0.0.52"):
        path = make.DUMPS / version / "v6e_decode.txt.gz"
        text = gzip.decompress(path.read_bytes()).decode()
        assert unknown_opcodes(text) == []
        words[version] = {w for w in ("= smov ", "= smov.u32 ", "vpow2", "vexp2") if w in text}
    old, new = {"= smov ", "vpow2"}, {"= smov.u32 ", "vexp2"}
    assert words["0.0.42.1"] == words["0.0.48"] == old
    assert words["0.0.52"] == new
    assert meaning("smov") == meaning("smov.u32")
    assert meaning("vpop.eup") == meaning("vpop.erf")
