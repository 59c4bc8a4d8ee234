"""Files that are whole or not there: what tables, artefacts and caches are written with."""

import contextlib
import os
import threading
from pathlib import Path


def write_whole(path: Path, content: bytes) -> None:
    """Replaces a file in one step that survives a power cut: write, fsync, rename, fsync.

    Args:
      path: Replaced when there; its folder is made when missing.
      content: All of it.

    Raises:
      OSError: The disk is full or failing; an old file is untouched, nothing half-written stays.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
