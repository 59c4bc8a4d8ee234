"""Compiles launch plans on a machine without a TPU, into an artefact.

What is compiled is kept by content, so an interrupted build goes on where it was. The artefact
itself is written last, whole. Neighbours: `file.py` is the file; `compiled.py` loads.
"""

import contextlib
import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rpa_tune.artifact.compiled import package_versions, source_digests
from rpa_tune.artifact.file import Executable, Manifest, write_artifact
from rpa_tune.compile.failure import TaskPool
from rpa_tune.compile.lower import serialize_call
from rpa_tune.dispatch.plan import LaunchPlan
from rpa_tune.dispatch.runtime import flat_call
from rpa_tune.families.family import Call
from rpa_tune.families.own_call import abstract_inputs
from rpa_tune.files import write_whole
from rpa_tune.hw.chip import Chip, load_chip

_SCHEMA = 1  # of what is kept
_SHA256_BYTES = 32


@dataclass(frozen=True, kw_only=True, slots=True)
class Built:
    """One plan, compiled or not.

    Attributes:
      plan: The plan.
      content: Its executable; empty when the compiler refused.
      reason: Why it refused.
      seconds: Wall time.
      was_kept: Whether an earlier build had compiled it.
    """

    plan: LaunchPlan
    content: bytes
    reason: str = ""
    seconds: float = 0.0
    was_kept: bool = False


class Kept:
    """Executables of earlier builds, by content of what they were made from."""

    def __init__(self, folder: Path, libtpu_args: str = "") -> None:
        """Names the folder; it is made when something is saved.

        Args:
          folder: Where they are.
          libtpu_args: Flags that the compiler is given.
        """
        self._folder = folder
        self.libtpu_args = libtpu_args

    def load(self, key: str) -> bytes | None:
        """The executable, or None when it is not there or damaged."""
        try:
            whole = (self._folder / f"{key}.bin").read_bytes()
        except OSError:
            return None
        digest, content = whole[:_SHA256_BYTES], whole[_SHA256_BYTES:]
        return content if hashlib.sha256(content).digest() == digest else None

    def save(self, key: str, content: bytes) -> None:
        """Keeps an executable if there is room."""
        with contextlib.suppress(OSError):  # a lost one is compiled again
            digest = hashlib.sha256(content).digest()
            write_whole(self._folder / f"{key}.bin", digest + content)


def build_plans(
    plans: Iterable[LaunchPlan], pool: TaskPool, kept: Kept, *, deadline_s: float | None = None
) -> Iterator[Built]:
    """Compiles plans, those of earlier builds first; in no particular order.

    Args:
      plans: All for one chip.
      pool: Its workers need `compile.target.build_environment`, with the flags of `kept`.
      kept: What earlier builds made; gets what this one makes.
      deadline_s: Seconds that tracing or compiling a plan may take; the pool's own if None.
    """
    todo = []
    for plan in dict.fromkeys(plans):
        if (content := kept.load(_key(plan, kept.libtpu_args))) is not None:
            yield Built(plan=plan, content=content, was_kept=True)
        else:
            todo.append(plan)
    task = f"{__name__}:{compile_plan.__name__}"
    for reply in pool.map_unordered(task, todo, deadline_s=deadline_s):
        plan = todo[reply.index]
        content, reason = reply.value or (b"", reply.failure.detail if reply.failure else "")
        if content:
            kept.save(_key(plan, kept.libtpu_args), content)
        yield Built(plan=plan, content=content, reason=reason, seconds=reply.seconds)


def compile_plan(plan: LaunchPlan) -> tuple[bytes, str]:
    """In a worker: (executable, empty), or (empty, why the compiler refused)."""
    function, donated = flat_call(plan)
    call = Call(
        function=function, arguments=abstract_inputs(plan.problem), kernel_name="", donated=donated
    )
    made = serialize_call(call, load_chip(plan.target.chip))
    return (made, "") if isinstance(made, bytes) else (b"", f"{made.status}: {made.detail}")


def write_built(
    path: Path, chip: Chip, built: Sequence[Built], libtpu_args: str = ""
) -> tuple[Manifest, str]:
    """Writes an artefact of what was compiled.

    Args:
      path: The file; replaced when there.
      chip: What it was compiled for.
      built: In any order; the same plans, compiled by the same versions, give the same bytes.
      libtpu_args: Flags that the compiler was given.

    Returns:
      What is in it, and its SHA-256.

    Raises:
      ArtifactError: It cannot be written.
    """
    executables: list[Executable] = []
    contents: dict[str, bytes] = {}
    left_out: list[dict[str, Any]] = []
    for one in sorted(built, key=lambda one: _key(one.plan)):
        problem, launches = _plan_fields(one.plan)
        if not one.content:
            left_out.append({"problem": problem, "launches": launches, "reason": one.reason})
            continue
        name = f"executables/{len(executables):04}.bin"
        contents[name] = one.content
        executables.append(
            Executable(
                name=name,
                num_bytes=len(one.content),
                sha256=hashlib.sha256(one.content).hexdigest(),
                problem=problem,
                launches=tuple(launches),
            )
        )
    manifest = Manifest(
        chip=chip.name,
        device_kind=chip.device_kinds[0],
        versions=package_versions(libtpu_args),
        sources=source_digests(),
        executables=tuple(executables),
        left_out=tuple(left_out),
    )
    return manifest, write_artifact(path, manifest, contents)


def _plan_fields(plan: LaunchPlan) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    launches = [{"family": one.family, "config": asdict(one.config)} for one in plan.launches]
    return plan.problem.to_dict(), launches


def _key(plan: LaunchPlan, libtpu_args: str = "") -> str:
    """What a plan's executable is kept under: all that it is made from."""
    problem, launches = _plan_fields(plan)
    content = {
        "schema": _SCHEMA,
        "problem": problem,
        "launches": launches,
        "target": asdict(plan.target),
        "versions": package_versions(libtpu_args),
        "sources": source_digests(),
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
