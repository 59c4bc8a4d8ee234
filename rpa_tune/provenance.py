"""Where an answer comes from: versions, source digests, host and time.

Versions are read from package metadata: nothing here imports jax or libtpu.
"""

import datetime
import functools
import hashlib
import platform
from collections.abc import Collection, Iterable, Iterator
from importlib import metadata, resources
from importlib.resources.abc import Traversable
from typing import Any

from rpa_kernels import FAMILIES
from rpa_tune.public_configs import KERNEL_DIGEST
from rpa_tune.public_kernels import PUBLIC_FAMILIES

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

    Covers all of `rpa_kernels` but the folders of the other families, so that a change to one
    family leaves the answers of the others valid. Read once a process. A public kernel is told by
    its version.
    """
    if family in PUBLIC_FAMILIES:
        return KERNEL_DIGEST
    others = set(FAMILIES) - {family}
    return _digest(_files(resources.files("rpa_kernels"), (".py",), leave_out=others))


@functools.cache
def launch_digest() -> str:
    """Digest of what turns a launch plan into a program: the launching code and the chip table."""
    package = resources.files("rpa_tune")
    launching = _files(package / "dispatch", ("runtime.py", "plan.py"))
    return _digest([*launching, *_files(package / "hw", (".py", ".yaml"))])


@functools.cache
def simulator_digest() -> str:
    """Digest of the simulator and of the chip table: what a simulated time depends on."""
    package, suffixes = resources.files("rpa_tune"), (".py", ".yaml")
    return _digest([*_files(package / "llo", suffixes), *_files(package / "hw", suffixes)])


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


def _files(
    folder: Traversable, suffixes: tuple[str, ...], *, leave_out: Collection[str] = ()
) -> Iterator[tuple[str, bytes]]:
    """(path below `folder`, content) of files with one of the suffixes, in a fixed order."""
    for entry in sorted(folder.iterdir(), key=lambda entry: entry.name):
        if entry.is_file() and entry.name.endswith(suffixes):
            yield entry.name, entry.read_bytes()
        elif entry.is_dir() and entry.name not in leave_out:
            for path, content in _files(entry, suffixes):
                yield f"{entry.name}/{path}", content


def _digest(files: Iterable[tuple[str, bytes]]) -> str:
    sha = hashlib.sha256()
    for path, content in files:
        sha.update(f"{path}:{len(content)}:".encode())
        sha.update(content)
    return sha.hexdigest()[:DIGEST_LENGTH]
