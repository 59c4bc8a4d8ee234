"""Files that are whole or not there: what tables, artefacts and caches are written with."""

import contextlib
import glob
import os
import socket
import threading
from pathlib import Path


def write_whole(path: Path, content: bytes) -> None:
    """Replaces a file in one step that survives a power cut: write, fsync, rename, fsync.

    Args:
      path: Replaced when there; its folder is made when missing.
      content: All of it. What a process of this host left behind when it was killed here is
        cleared away.

    Raises:
      OSError: The disk is full or failing; an old file is untouched, nothing half-written stays.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    own = f".{path.name}.{socket.gethostname()}."
    for other in path.parent.glob(f"{glob.escape(own)}*.tmp"):
        if not _is_running(int(other.name.removeprefix(own).split(".")[0])):
            other.unlink(missing_ok=True)
    temporary = path.with_name(f"{own}{os.getpid()}.{threading.get_ident()}.tmp")
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


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # another user's
    return True
