"""`rpa-tune opcodes`: schedules that are there, and small kernels compiled for chips."""

import gzip
import json

import pytest
from golden import make
from pure.evaluate.test_understood import Compiler

from rpa_kernels import FAMILIES
from rpa_tune.cli import opcodes as module
from rpa_tune.cli.main import main

GOLDEN = make.DUMPS / "0.0.52" / "v7x_decode.txt.gz"


def run(capsys, *args):
    with pytest.raises(SystemExit) as exited:
        main(["opcodes", *map(str, args)])
    return exited.value.code or 0, capsys.readouterr().out


def test_a_dump_of_ones_own_is_read(capsys, tmp_path):
    assert run(capsys, GOLDEN) == (0, f"{GOLDEN}: 0 unknown opcodes\n")
    strange = tmp_path / "a-final_bundles.txt"
    text = gzip.decompress(GOLDEN.read_bytes()).decode()
    strange.write_text(text.replace("vexp2.f32", "vexp3.f32"))
    code, out = run(capsys, GOLDEN, strange)
    assert code == 3
    assert f"{strange}: 1 unknown opcode\n  vexp3.f32  " in out
    assert "    line " in out
    code, out = run(capsys, "--json", strange)
    ((opcode,),) = json.loads(out)["dumps"].values()
    assert opcode["mnemonic"] == "vexp3.f32"
    assert run(capsys, tmp_path / "nowhere")[0] == 1


def test_small_kernels_are_compiled_for_chips(capsys, monkeypatch, tmp_path):
    class Pool(Compiler):
        def __enter__(self):
            return self

        def __exit__(self, *error):
            return None

    monkeypatch.setattr(module, "WorkerPool", lambda num_workers: Pool("v7x"))
    code, out = run(capsys, "--chip", "v6e", "--chip", "v7x", "--family", "decode")
    assert code == 3
    assert "v6e decode: ok\n" in out
    assert "v7x decode: not_understood\n  smov.u128  " in out
    assert "CONTRIBUTING.md" in out
    code, out = run(capsys, "--chip", "v6e")
    assert code == 0
    assert out.count("v6e ") == len(FAMILIES)
