"""Scalar operands of public launches, kept on disk: a batched kernel's schedule takes minutes.

One launch is one `.npz` of int32 arrays, named by what decides them; nothing in it is pickled.
"""

import contextlib
import hashlib
import io
import json
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from rpa_kernels.batch import Batch
from rpa_tune.candidate import Candidate
from rpa_tune.compile.cache import compile_key
from rpa_tune.files import write_whole

Operands = Mapping[int, np.ndarray]


def kept_operands(
    folder: Path, candidate: Candidate, batch: Batch, make: Callable[[], Operands]
) -> Operands:
    """The operands of a launch: read if they were kept, else made and kept.

    Args:
      folder: Made when the first operands are kept.
      candidate: Its workload plays no part.
      batch: The launch.
      make: Called when they are not there, or not readable.
    """
    content = f"{compile_key(candidate)} {json.dumps(asdict(batch), sort_keys=True)}"
    path = folder / f"{hashlib.sha256(content.encode()).hexdigest()}.npz"
    with (
        contextlib.suppress(OSError, ValueError, EOFError, zipfile.BadZipFile),
        np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as arrays,
    ):
        return {int(name): arrays[name] for name in arrays.files}
    operands = make()
    packed = io.BytesIO()
    named: dict[str, Any] = {str(i): array for i, array in operands.items()}
    np.savez_compressed(packed, **named)
    with contextlib.suppress(OSError):  # they are asked for again when the disk has room
        write_whole(path, packed.getvalue())
    return operands
