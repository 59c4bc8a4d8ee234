"""Launches of public functions, kept on disk. No jax, no wheel.

The launches for one batch are one `.npz` of int32 arrays beside the unpacked wheel, named by what
decides them; nothing in it is pickled.
"""

import contextlib
import hashlib
import importlib.metadata
import io
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from rpa_tune.files import write_whole

Operands = dict[int, npt.NDArray[np.int32]]
_NO_OPERANDS: Operands = {-1: np.zeros(0, np.int32)}


@dataclass(frozen=True, kw_only=True, slots=True)
class PallasCall:
    """One `pallas_call` that a public function makes.

    Attributes:
      name: The `name=` of the call, found again in compiler dumps.
      operands: int32 arrays the kernel reads as scalars, by operand index.
    """

    name: str
    operands: Operands


def kept_calls(
    root: Path, digest: str, decides: tuple[Any, ...], make: Callable[[], tuple[PallasCall, ...]]
) -> tuple[PallasCall, ...]:
    """The launches for a batch: read if they were kept, else made and kept.

    Args:
      root: Folder of the unpacked wheel.
      digest: Of the package.
      decides: Plain records of what was bound, and the batch.
      make: Called when they are not there, or not readable.
    """
    content = repr((digest, importlib.metadata.version("jax"), decides))
    name = f"{hashlib.sha256(content.encode()).hexdigest()}.npz"
    path = root.with_name(f"{root.name}-operands") / name
    with contextlib.suppress(OSError, ValueError, EOFError, zipfile.BadZipFile):
        return _unpack(path.read_bytes())
    calls = make()
    with contextlib.suppress(OSError):  # they are asked for again when the disk has room
        write_whole(path, _pack(calls))
    return calls


def _pack(calls: tuple[PallasCall, ...]) -> bytes:
    """Arrays by `<place of the call> <operand> <name of the call>`; one of none for no operands."""
    named: dict[str, Any] = {
        f"{place} {operand} {call.name}": array
        for place, call in enumerate(calls)
        for operand, array in (call.operands or _NO_OPERANDS).items()
    }
    packed = io.BytesIO()
    np.savez_compressed(packed, **named)
    return packed.getvalue()


def _unpack(content: bytes) -> tuple[PallasCall, ...]:
    found: dict[str, PallasCall] = {}
    with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
        for label in arrays.files:
            place, operand, name = label.split(" ", 2)
            call = found.setdefault(place, PallasCall(name=name, operands={}))
            if int(operand) not in _NO_OPERANDS:
                call.operands[int(operand)] = arrays[label]
    return tuple(found.values())
