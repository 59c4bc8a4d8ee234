"""Operands of public launches are made once, and made again when what is kept is damaged."""

import errno
from dataclasses import replace

import numpy as np
import pytest
from pure.interop.test_guards import BATCH, candidate

from rpa_tune.interop import operands
from rpa_tune.interop.operands import kept_operands

ARRAYS = {0: np.arange(5, dtype=np.int32), 13: np.array([[-1, 7]], np.int32)}


class Maker:
    """Makes the arrays, and counts."""

    def __init__(self):
        self.calls = 0

    def __call__(self):
        self.calls += 1
        return ARRAYS


def ask(folder, make, *, name="public-stacked-decode", batch=BATCH, **changes):
    found = kept_operands(folder, replace(candidate(name), **changes), batch, make)
    assert list(found) == list(ARRAYS)
    for i, array in ARRAYS.items():
        assert found[i].dtype == np.int32
        np.testing.assert_array_equal(found[i], array)


def test_operands_are_made_once_for_a_launch(tmp_path):
    make = Maker()
    ask(tmp_path / "new", make)
    ask(tmp_path / "new", make, workload="another")
    assert make.calls == 1
    ask(tmp_path / "new", make, batch=replace(BATCH, kv_lens=(101, 51, 26)))
    ask(tmp_path / "new", make, chip="v7x")
    ask(tmp_path / "new", make, name="public-stacked-mixed")
    assert make.calls == 4


@pytest.mark.parametrize("content", [b"", b"nothing of the kind", b"PK\x03\x04", None])
def test_a_damaged_file_is_made_again(tmp_path, content):
    make = Maker()
    ask(tmp_path, make)
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:-40] if content is None else content)
    ask(tmp_path, make)
    ask(tmp_path, make)
    assert make.calls == 2


def test_a_pickle_is_not_loaded(tmp_path):
    make = Maker()
    ask(tmp_path, make)
    (file,) = tmp_path.iterdir()
    with file.open("wb") as out:
        np.savez(out, **{"0": np.array([object()])})
    ask(tmp_path, make)
    assert make.calls == 2


def test_a_full_disk_costs_time_only(tmp_path, monkeypatch):
    def refuse(path, content):
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(operands, "write_whole", refuse)
    make = Maker()
    ask(tmp_path, make)
    ask(tmp_path, make)
    assert make.calls == 2
