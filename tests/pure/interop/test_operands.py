"""Launches of public functions are made once, and made again when what is kept is damaged."""

import errno

import numpy as np
import pytest

from rpa_tune.interop.public import operands
from rpa_tune.interop.public.operands import PallasCall, kept_calls

CALLS = (
    PallasCall(name="RPAd-p128 b", operands={0: np.arange(5, dtype=np.int32)}),
    PallasCall(name="without operands", operands={}),
    PallasCall(name="RPAm", operands={13: np.array([[-1, 7]], np.int32), 2: np.ones(1, np.int32)}),
)


class Maker:
    """Makes the launches, and counts."""

    def __init__(self):
        self.calls = 0

    def __call__(self):
        self.calls += 1
        return CALLS


def ask(folder, make, *decides):
    found = kept_calls(folder / "wheel-1.0", "package-1.0/1", decides, make)
    assert [call.name for call in found] == [call.name for call in CALLS]
    for call, wanted in zip(found, CALLS, strict=True):
        assert call.operands.keys() == wanted.operands.keys()
        for i, array in wanted.operands.items():
            assert call.operands[i].dtype == np.int32
            np.testing.assert_array_equal(call.operands[i], array)


def only_file(folder):
    (file,) = folder.glob("*/*")
    return file


def test_launches_are_made_once_for_what_decides_them(tmp_path, monkeypatch):
    make = Maker()
    ask(tmp_path / "new", make, "stacked", 1)
    ask(tmp_path / "new", make, "stacked", 1)
    assert make.calls == 1
    ask(tmp_path / "new", make, "stacked", 2)
    ask(tmp_path / "new", make, "batched", 1)
    monkeypatch.setattr(operands.importlib.metadata, "version", lambda name: "99")
    ask(tmp_path / "new", make, "stacked", 1)
    assert make.calls == 4


@pytest.mark.parametrize("content", [b"", b"nothing of the kind", b"PK\x03\x04", None])
def test_a_damaged_file_is_made_again(tmp_path, content):
    make = Maker()
    ask(tmp_path, make)
    file = only_file(tmp_path)
    file.write_bytes(file.read_bytes()[:-40] if content is None else content)
    ask(tmp_path, make)
    ask(tmp_path, make)
    assert make.calls == 2


@pytest.mark.parametrize("label", ["0 0 name", "0"])
def test_a_pickle_is_not_loaded_nor_a_name_of_another_form(tmp_path, label):
    make = Maker()
    ask(tmp_path, make)
    with only_file(tmp_path).open("wb") as out:
        np.savez(out, **{label: np.array([object()])})
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
