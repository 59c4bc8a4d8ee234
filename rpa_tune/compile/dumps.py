"""What the compiler wrote down about one kernel: its schedule and its VMEM report.

Files are called `<time>-<computation>-<NN>-<pass>.txt`; NN differs from one computation to the
next, so a pass is found by its suffix. No file says which chip it was compiled for: the caller
remembers. Parsing a schedule is `llo`'s work, not ours.
"""

import gzip
import hashlib
import json
import re
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rpa_tune.errors import DumpError
from rpa_tune.llo.sources import without_sources


class DiskFullError(DumpError):
    """Something is missing because there was no room to write it."""


_BUNDLES = re.compile(r"^\d+-(?P<computation>.+)-\d+-final_bundles\.txt$")
# What a schedule's text says beyond the instructions: comments, and the compiler's value ids, which
# stand before the physical register. Comments hold comments: that of a bounds check quotes the copy
# with its annotations, and on further lines the kernel's name (libtpu 0.0.42.1).
_COMMENT_MARK = re.compile(r"/\*|\*/")
_VALUE_ID = re.compile(r"%([a-z]*)\d+")
_TOP_LEVEL = "<top-inlining-caller>"


@dataclass(frozen=True, kw_only=True, slots=True)
class VmemReport:
    """VMEM of one kernel as the compiler laid it out.

    Attributes:
      total_bytes: Everything, spill slots and padding included.
      spill_bytes: Slots that the register allocator added.
      capacity_bytes: What one TensorCore has.
    """

    total_bytes: int
    spill_bytes: int
    capacity_bytes: int


def find_bundles(folder: Path, kernel_name: str) -> Path:
    """The schedule of the Pallas call named `kernel_name`, newest first.

    The computation is called `<kernel_name>.<N>`, or `<kernel_name>` when nothing else is.

    Raises:
      DumpError: No such file; the message lists the computations that there are.
    """
    found: dict[str, list[Path]] = {}
    for path in folder.glob("*-final_bundles.txt"):
        if match := _BUNDLES.match(path.name):
            found.setdefault(match["computation"], []).append(path)
    wanted = re.compile(re.escape(kernel_name) + r"(\.\d+)?")
    paths = [path for name, group in found.items() if wanted.fullmatch(name) for path in group]
    if not paths:
        raise DumpError(
            f"no schedule of kernel {kernel_name!r} among the dumps of {sorted(found)}",
            where=str(folder),
            hint="the kernel's name= and family.kernel_name must agree",
        )
    return max(paths, key=lambda path: path.name)


def unpack_bundles(bundles: Path, folder: Path) -> Path:
    """A schedule as plain text: the file itself, or a `.gz` of the cache unpacked into `folder`.

    Raises:
      DumpError: The compressed file is damaged.
    """
    if bundles.suffix != ".gz":
        return bundles
    plain = folder / bundles.name.removesuffix(".gz")
    try:
        plain.write_bytes(gzip.decompress(bundles.read_bytes()))
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DumpError(f"compressed schedule is damaged: {error}", where=str(bundles)) from error
    return plain


def schedule_digest(bundles: Path) -> str:
    """16 hex digits over the instructions of a schedule, as plain text.

    Two compiles agree when the chip is told the same: comments and value ids are left out.

    Raises:
      DumpError: A comment has no end.
    """
    text = without_sources(bundles.read_text(encoding="utf-8"))
    text = _without_comments(text, bundles)
    sha = hashlib.sha256()
    for line in text.splitlines():
        plain = _VALUE_ID.sub(r"%\1", line).strip()
        sha.update(f"{plain}\n".encode())
    return sha.hexdigest()[:16]


def _without_comments(text: str, path: Path) -> str:
    """The text outside of comments, which may hold comments and span lines."""
    kept = []
    depth = start = 0
    for mark in _COMMENT_MARK.finditer(text):
        if mark[0] == "/*":
            if depth == 0:
                kept.append(text[start : mark.start()])
                opened = mark.start()
            depth += 1
        elif depth > 0:
            depth -= 1
            start = mark.end() if depth == 0 else start
    if depth > 0:
        line = text.count("\n", 0, opened) + 1
        raise DumpError("a comment of the schedule has no end", where=f"{path}:{line}")
    return "".join([*kept, text[start:]])


def read_vmem_report(folder: Path, kernel_name: str) -> VmemReport | None:
    """VMEM of a kernel from the newest VMEM report, or None when the compiler wrote none.

    Raises:
      DumpError: There is a report, and it is not what it used to be.
    """
    paths = sorted(folder.glob("*-vmem_report.html"))
    if not paths:
        return None
    text = paths[-1].read_text()
    start = text.find("const DATA =")
    try:
        data, _ = json.JSONDecoder().raw_decode(text, text.index("{", start))
        return _vmem_of(data, kernel_name)
    except (ValueError, KeyError, TypeError) as error:
        raise DumpError(
            f"VMEM report is not understood: {type(error).__name__}: {error}", where=str(paths[-1])
        ) from error


def _vmem_of(data: dict[str, Any], kernel_name: str) -> VmemReport | None:
    wanted = re.compile(re.escape(kernel_name) + r"(\.\d+)?")
    for name, breakdown in data["hlo_breakdowns"].items():
        if name == _TOP_LEVEL or not wanted.fullmatch(name):
            continue
        allocations = [a for block in breakdown["blocks"] for a in block["allocations"]]
        return VmemReport(
            total_bytes=breakdown["total_size"],
            spill_bytes=sum(a["size"] for a in allocations if a.get("tag") == "SPILL"),
            capacity_bytes=data["global_info"]["vmem_capacity"],
        )
    return None
