"""Compiled kernels in one file: what `rpa-tune compile` writes and the dispatcher loads.

The file is a plain zip: `manifest.json`, and one serialised executable for each launch plan. It is
data from elsewhere until it is loaded, so the reader trusts nothing: every size is bounded before
it is read, names are those the manifest lists and no others, nothing is unpacked to disk, nothing
is unpickled, and every executable has the digest that the manifest says. An executable is machine
code all the same: load those only that come from where you would take a program from, and give the
file's digest, which `rpa-tune compile` prints, to `load_dispatcher`.

No jax. Neighbours: `build.py` compiles; `compiled.py` loads and runs.
"""

import hashlib
import io
import json
import os
import re
import struct
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import IO, Any

from rpa_tune.errors import ArtifactError
from rpa_tune.files import write_whole

SCHEMA = "rpa-artifact/1"
MANIFEST = "manifest.json"
# Executables that were seen have 0.8 to 4 MiB; an engine has some tens of plans.
MAX_EXECUTABLE_BYTES = 256 << 20
MAX_EXECUTABLES = 4096
MAX_MANIFEST_BYTES = 16 << 20
MAX_FILE_BYTES = (4 << 30) - 1  # beyond it zip needs an extension that is refused
MAX_DIRECTORY_BYTES = 1 << 20
_MEMBER_NAME = re.compile(r"executables/[0-9]{4}\.bin")
_SHA256 = re.compile(r"[0-9a-f]{64}")
# End of a zip's directory. Source: PKWARE APPNOTE 6.3.10, section 4.3.16.
_END = struct.Struct("<4s4H2LH")
_END_SIGNATURE = b"PK\x05\x06"
_LOCATOR_SIGNATURE, _LOCATOR_BYTES = b"PK\x06\x07", 20
_EPOCH = (1980, 1, 1, 0, 0, 0)  # the earliest time a zip can say: the same content, the same bytes


@dataclass(frozen=True, kw_only=True, slots=True)
class Executable:
    """One compiled plan.

    Attributes:
      name: Its name in the zip.
      num_bytes: Size when unpacked.
      sha256: Of the unpacked bytes, hex.
      problem: Fields of the `Problem` it was compiled for.
      launches: `{"family": ..., "config": {...}}` in launch order.
    """

    name: str
    num_bytes: int
    sha256: str
    problem: Mapping[str, Any]
    launches: tuple[Mapping[str, Any], ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Manifest:
    """What is in an artefact, and where it may be used.

    Attributes:
      chip: Name in the chip table.
      device_kind: What `jax.Device.device_kind` says there.
      versions: Package -> version; all must be the same where it is loaded.
      sources: What -> digest of its sources: kernel families, and what launches them; all must be
        the same.
      executables: The plans.
      left_out: `{"problem": ..., "launches": ..., "reason": ...}` of plans that did not compile.
    """

    chip: str
    device_kind: str
    versions: Mapping[str, str]
    sources: Mapping[str, str]
    executables: tuple[Executable, ...]
    left_out: tuple[Mapping[str, Any], ...] = ()

    def to_json(self) -> str:
        """The text of `manifest.json`."""
        return json.dumps({"schema": SCHEMA, **asdict(self)}, indent=1, allow_nan=False) + "\n"


class Artifact:
    """An artefact on disk whose every byte has been checked; executables are read when asked for.

    Attributes:
      path: The file.
      sha256: Of the whole file, hex.
      manifest: What is in it.
    """

    def __init__(self, path: Path | str, *, sha256: str | None = None) -> None:
        """Opens and checks a file.

        Args:
          path: What `rpa-tune compile` wrote.
          sha256: Digest that the file must have, or None for any.

        Raises:
          ArtifactError: It cannot be read, is not what it says, is damaged, or has another digest.
        """
        self.path = path = Path(path)
        try:
            with path.open("rb") as file:
                _check_size(file, path)
                self.sha256 = hashlib.file_digest(file, "sha256").hexdigest()
                if sha256 is not None and sha256.lower() != self.sha256:
                    raise ArtifactError(
                        f"sha256 is {self.sha256}, not {sha256}",
                        where=str(path),
                        hint="do not load it: it is not the expected file",
                    )
                with zipfile.ZipFile(file) as archive:
                    self.manifest = _read_manifest(archive, path)
                    for executable in self.manifest.executables:
                        _read_executable(archive, executable, path)
        except OSError as error:
            raise ArtifactError(f"cannot read: {error.strerror}", where=str(path)) from error
        except (zipfile.BadZipFile, NotImplementedError, ValueError) as error:
            raise ArtifactError(f"not an artefact: {error}", where=str(path)) from error

    def read(self, executable: Executable) -> bytes:
        """The bytes of an executable, checked again: the file may have changed since.

        Raises:
          ArtifactError: It has.
        """
        try:
            with zipfile.ZipFile(self.path) as archive:
                return _read_executable(archive, executable, self.path)
        except (OSError, zipfile.BadZipFile, KeyError, NotImplementedError) as error:
            raise ArtifactError(f"cannot read: {error}", where=str(self.path)) from error


def write_artifact(path: Path, manifest: Manifest, contents: Mapping[str, bytes]) -> str:
    """Writes an artefact whole, or not at all. The same content gives the same bytes.

    Args:
      path: Replaced when there.
      manifest: Its executables are those of `contents`.
      contents: Name -> bytes.

    Returns:
      SHA-256 of the file, hex.

    Raises:
      ArtifactError: It cannot be written.
    """
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        _add(archive, MANIFEST, manifest.to_json().encode())
        for executable in manifest.executables:
            _add(archive, executable.name, contents[executable.name])
    try:
        write_whole(path, packed.getvalue())
    except OSError as error:
        raise ArtifactError(f"cannot write: {error.strerror}", where=str(path)) from error
    return hashlib.sha256(packed.getbuffer()).hexdigest()


def _add(archive: zipfile.ZipFile, name: str, content: bytes) -> None:
    info = zipfile.ZipInfo(name, date_time=_EPOCH)
    info.compress_type = zipfile.ZIP_DEFLATED
    info.external_attr = 0o644 << 16
    archive.writestr(info, content)


def _check_size(file: IO[bytes], path: Path) -> None:
    """Refuses what a zip reader should not even start on: it reads the whole directory."""
    size = file.seek(0, os.SEEK_END)
    if size > MAX_FILE_BYTES:
        raise ArtifactError(f"larger than {MAX_FILE_BYTES:,} bytes", where=str(path))
    if size < _END.size:
        raise ArtifactError("not an artefact: too short for a zip", where=str(path))
    file.seek(-min(size, _END.size + _LOCATOR_BYTES), os.SEEK_END)
    tail = file.read()
    end = _END.unpack(tail[-_END.size :])
    signature, num_members, directory_bytes, comment_bytes = end[0], end[4], end[5], end[7]
    # A comment, or the locator of the big-file extension, would send the reader to another end.
    if signature != _END_SIGNATURE or comment_bytes or tail.startswith(_LOCATOR_SIGNATURE):
        raise ArtifactError("not an artefact: no plain zip directory at its end", where=str(path))
    if num_members > MAX_EXECUTABLES + 1 or directory_bytes > MAX_DIRECTORY_BYTES:
        raise ArtifactError(
            f"a directory of {num_members:,} members and {directory_bytes:,} bytes, "
            f"at most {MAX_EXECUTABLES + 1:,} and {MAX_DIRECTORY_BYTES:,}",
            where=str(path),
        )
    file.seek(0)


def _read_manifest(archive: zipfile.ZipFile, path: Path) -> Manifest:
    members = archive.infolist()
    names = [info.filename for info in members]
    if names[:1] != [MANIFEST]:
        raise ArtifactError(f"the first member is not {MANIFEST}", where=str(path))
    if members[0].header_offset:  # a zip reader would not mind what is before it
        raise ArtifactError("not an artefact: it does not begin with its first member",
                            where=str(path))  # fmt: skip
    text = _read_bounded(archive, MANIFEST, MAX_MANIFEST_BYTES, path)
    try:
        manifest = manifest_from_dict(json.loads(text))
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"bad {MANIFEST}: {error}", where=str(path)) from error
    listed = [executable.name for executable in manifest.executables]
    if names[1:] != listed:
        odd = sorted(set(names[1:]) ^ set(listed)) or "their order or number"
        raise ArtifactError(f"members are not those of {MANIFEST}: {odd!r:.200}", where=str(path))
    return manifest


def _read_executable(archive: zipfile.ZipFile, executable: Executable, path: Path) -> bytes:
    content = _read_bounded(archive, executable.name, executable.num_bytes, path)
    if (
        len(content) != executable.num_bytes
        or hashlib.sha256(content).hexdigest() != executable.sha256
    ):
        raise ArtifactError(
            f"{executable.name} is damaged: not the bytes that {MANIFEST} lists", where=str(path)
        )
    return content


def _read_bounded(archive: zipfile.ZipFile, name: str, limit: int, path: Path) -> bytes:
    """Unpacks at most `limit` bytes, whatever the directory claims."""
    info = archive.getinfo(name)
    if info.flag_bits & 1 or info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ArtifactError(f"{name} is encrypted or oddly compressed", where=str(path))
    try:
        with archive.open(info) as member:
            content = member.read(limit + 1)
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError) as error:
        raise ArtifactError(f"{name} is damaged: {error}", where=str(path)) from error
    if len(content) > limit:
        raise ArtifactError(f"{name} is larger than {limit:,} bytes", where=str(path))
    return content


def manifest_from_dict(data: Any) -> Manifest:
    """Reads the JSON form.

    Raises:
      ValueError: Another schema, or a field that is missing, unknown or of the wrong type or size.
    """
    entries = _record(data, "manifest", {"schema", *(field.name for field in fields(Manifest))})
    if entries.pop("schema") != SCHEMA:
        raise ValueError(f"schema {data['schema']!r:.40}, this version reads {SCHEMA}")
    executables, left_out = entries.pop("executables"), entries.pop("left_out")
    for name in ("chip", "device_kind"):
        _check(isinstance(entries[name], str), name, entries[name])
    for name in ("versions", "sources"):
        table = entries[name]
        good = isinstance(table, dict) and all(isinstance(v, str) for v in table.values())
        _check(good, name, table)
    _check(
        isinstance(executables, list) and len(executables) <= MAX_EXECUTABLES,
        "executables",
        executables,
    )
    _check(
        isinstance(left_out, list) and all(isinstance(entry, dict) for entry in left_out),
        "left_out",
        left_out,
    )
    found = tuple(_executable(entry, i) for i, entry in enumerate(executables))
    _check(len({e.name for e in found}) == len(found), "executables", "a name twice")
    return Manifest(executables=found, left_out=tuple(left_out), **entries)


def _executable(data: Any, index: int) -> Executable:
    what = f"executables[{index}]"
    entry = _record(data, what, {field.name for field in fields(Executable)})
    name, num_bytes, sha256 = entry["name"], entry["num_bytes"], entry["sha256"]
    _check(isinstance(name, str) and _MEMBER_NAME.fullmatch(name), f"{what}.name", name)
    good = type(num_bytes) is int and 0 < num_bytes <= MAX_EXECUTABLE_BYTES
    _check(good, f"{what}.num_bytes", num_bytes)
    _check(isinstance(sha256, str) and _SHA256.fullmatch(sha256), f"{what}.sha256", sha256)
    _check(isinstance(entry["problem"], dict), f"{what}.problem", entry["problem"])
    launches = entry["launches"]
    _check(isinstance(launches, list) and 1 <= len(launches) <= 3, f"{what}.launches", launches)
    for i, launch in enumerate(launches):
        fields_of = _record(launch, f"{what}.launches[{i}]", {"family", "config"})
        good = isinstance(fields_of["family"], str) and isinstance(fields_of["config"], dict)
        _check(good, f"{what}.launches[{i}]", launch)
    return Executable(**{**entry, "launches": tuple(launches)})


def _record(data: Any, what: str, names: set[str]) -> dict[str, Any]:
    if not isinstance(data, dict) or set(data) != names:
        got = f"fields {sorted(data)}" if isinstance(data, dict) else f"{data!r}"
        raise ValueError(f"{what}: {got:.200}, must be an object with {sorted(names)}")
    return dict(data)


def _check(good: Any, what: str, got: Any) -> None:
    if not good:
        raise ValueError(f"{what}={got!r:.100} is invalid")
