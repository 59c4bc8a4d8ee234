"""Where an answer comes from: versions, source digests, host and time.

Versions are read from package metadata: nothing here imports jax or libtpu.
"""

import datetime
import functools
import hashlib
import platform
from collections.abc import Iterable
from importlib import metadata, resources
from importlib.resources.abc import Traversable
from typing import Any

_PACKAGES = {"rpa_tune": "rpa-tune", "jax": "jax", "jaxlib": "jaxlib", "libtpu": "libtpu"}
DIGEST_LENGTH = 16  # hex digits kept of a SHA-256


@functools.cache
def versions() -> dict[str, str | None]:
    """Version of each package that an answer depends on, and of Python; None if not installed."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for name, distribution in _PACKAGES.items():
        try:
            found[name] = metadata.version(distribution)
        except metadata.PackageNotFoundError:
            found[name] = None
    return found


@functools.cache
def kernel_digest(family: str) -> str:
    """Digest of the sources that a family's kernel is made of.

    Covers the modules that families share and the family's own folder, so that a change to one
    family leaves the answers of the others valid. Read once a process.
    """
    package = resources.files("rpa_kernels")
    return _digest([*_files(package, ".py"), *_files(package / family, ".py")])


@functools.cache
def simulator_digest() -> str:
    """Digest of the simulator and of the chip table: what a simulated time depends on."""
    package = resources.files("rpa_tune")
    suffixes = (".py", ".yaml")
    return _digest([*_files(package / "llo", *suffixes), *_files(package / "hw", *suffixes)])


def provenance(family: str | None = None) -> dict[str, Any]:
    """What to stamp on a record.

    Args:
      family: Whose kernel digest to include; None for a record about no kernel.

    Returns:
      Plain JSON values: the versions, `kernel` and `simulator` digests, `host`, and `time` in UTC.
    """
    stamp: dict[str, Any] = {
        **versions(),
        "simulator": simulator_digest(),
        "host": platform.node(),
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
    return stamp if family is None else {**stamp, "kernel": kernel_digest(family)}


def _files(folder: Traversable, *suffixes: str) -> Iterable[Traversable]:
    """Files directly in `folder` with one of the suffixes, by name; none if it is not there."""
    if not folder.is_dir():
        return []
    return sorted(
        (path for path in folder.iterdir() if path.is_file() and path.name.endswith(suffixes)),
        key=lambda path: path.name,
    )


def _digest(files: Iterable[Traversable]) -> str:
    sha = hashlib.sha256()
    for path in files:
        content = path.read_bytes()
        sha.update(f"{path.name}:{len(content)}:".encode())
        sha.update(content)
    return sha.hexdigest()[:DIGEST_LENGTH]
