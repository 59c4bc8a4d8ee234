"""Compiled kernels on disk, found by what they were made from.

One compile is a small JSON record and, when it succeeded, the compressed schedule beside it. The
schedule is written first and the record last, each to a temporary name and then renamed: a record
that is there is whole, whatever was killed when. That memory ran out is kept too, because it would
run out again. Other refusals are not, nor crashes and timeouts: another request tries again.

An answer is kept under the lowered program, and the key of what that was made from refers to it: a
comment or a rename in a kernel costs tracing, and no compile.
"""

import gzip
import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rpa_tune.candidate import Candidate, Status
from rpa_tune.compile import target
from rpa_tune.files import write_whole
from rpa_tune.provenance import versions

_SCHEMA = "rpa-compile/3"


@dataclass(frozen=True, kw_only=True, slots=True)
class Compiled:
    """What the compiler said about one candidate.

    Attributes:
      status: OK, OUT_OF_MEMORY or COMPILE_FAILED.
      detail: One line; empty when OK.
      kernel_name: `name=` of the Pallas call.
      bundles: The schedule, plain or `.gz`; None without one.
      lower_s: Tracing and lowering, when it was compiled.
      compile_s: Compiling and dumping, when it was compiled.
      vmem_bytes: VMEM as laid out by the compiler, spill slots included; None if not reported.
      vmem_spill_bytes: Of that, the register allocator's spill slots.
      hbm_allocated_bytes: HBM that arguments, results and temporaries of the call hold.
      from_cache: Whether nothing had to be compiled.
      not_cached: Why the answer could not be kept, for example a full disk; empty if it was.
    """

    status: Status
    detail: str = ""
    kernel_name: str = ""
    bundles: Path | None = None
    lower_s: float = 0.0
    compile_s: float = 0.0
    vmem_bytes: int | None = None
    vmem_spill_bytes: int | None = None
    hbm_allocated_bytes: int | None = None
    from_cache: bool = False
    not_cached: str = ""


def compile_key(
    candidate: Candidate, settings: Mapping[str, str] | None = None, kernel_name: str = ""
) -> str:
    """SHA-256 of everything that decides a schedule; the workload does not.

    Computable without importing jax or libtpu.

    Args:
      candidate: What is compiled.
      settings: `target.program_settings` of the process that compiles; a worker has none.
      kernel_name: One of the family's `kernel_names`; empty for the first.
    """
    content = candidate.to_dict()
    del content["workload"]
    family = candidate.family
    content |= {
        "schema": _SCHEMA,
        "kernel": family.digest,
        "kernel_name": kernel_name or family.kernel_name(candidate.problem, candidate.config),
        "flags": target.DUMP_FLAGS,
        "settings": dict(settings or {}),
        **{name: versions()[name] for name in ("jax", "jaxlib", "libtpu")},
    }
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def program_key(program: str, candidate: Candidate, settings: Mapping[str, str], name: str) -> str:
    """SHA-256 of what the compiler is given, and of all else that decides a schedule.

    Args:
      program: Text of the lowered program, without source locations (`target.set_up_worker`).
      candidate: What it was lowered from: its chip and its flags count.
      settings: `target.program_settings` of the process that compiles.
      name: Of the Pallas call.
    """
    content = (
        _SCHEMA, program, name, candidate.chip.name, candidate.libtpu_args, target.DUMP_FLAGS,
        sorted(settings.items()), [versions()[package] for package in ("jax", "jaxlib", "libtpu")],
    )  # fmt: skip
    return hashlib.sha256(repr(content).encode()).hexdigest()


class CompileCache:
    """A folder of compiles. Any number of processes may read and write it."""

    def __init__(self, folder: Path) -> None:
        """Names the folder; it is made when something is saved."""
        self._folder = folder / "compile"

    def load(self, key: str) -> Compiled | None:
        """The kept answer, or None when there is none or it is damaged."""
        try:
            record = json.loads(self._record(key).read_text())
            if "same_as" in record:
                key = record["same_as"]
                record = json.loads(self._record(key).read_text())
            bundles = self._bundles(key) if record["bundles_size"] is not None else None
            if bundles is not None and bundles.stat().st_size != record["bundles_size"]:
                return None
            return Compiled(
                **{
                    **record["compiled"],
                    "status": Status(record["compiled"]["status"]),
                    "bundles": bundles,
                    "from_cache": True,
                }
            )
        except (OSError, ValueError, KeyError, TypeError):
            return None  # a miss: the answer is compiled and written again

    def save(self, key: str, compiled: Compiled) -> Compiled:
        """Keeps an answer, and returns it with `bundles` pointing into the cache.

        Raises:
          OSError: It cannot be written; nothing half-written is left.
        """
        size = None
        if compiled.bundles is not None:
            packed = gzip.compress(compiled.bundles.read_bytes(), compresslevel=4, mtime=0)
            size = len(packed)
            write_whole(self._bundles(key), packed)
        fields = asdict(compiled)
        for name in ("bundles", "from_cache", "not_cached"):
            del fields[name]
        record = {"schema": _SCHEMA, "bundles_size": size, "compiled": fields}
        write_whole(self._record(key), json.dumps(record, sort_keys=True).encode())
        return _with_bundles(compiled, None if size is None else self._bundles(key))

    def refer(self, key: str, to: str) -> None:
        """Has a key stand for the answer that another one has.

        Raises:
          OSError: It cannot be written.
        """
        record = {"schema": _SCHEMA, "same_as": to}
        write_whole(self._record(key), json.dumps(record, sort_keys=True).encode())

    def _record(self, key: str) -> Path:
        return self._folder / key[:2] / f"{key}.json"

    def _bundles(self, key: str) -> Path:
        return self._folder / key[:2] / f"{key}-final_bundles.txt.gz"


def _with_bundles(compiled: Compiled, bundles: Path | None) -> Compiled:
    fields: dict[str, Any] = asdict(compiled) | {"bundles": bundles}
    return Compiled(**fields)
