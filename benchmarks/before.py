"""The kernels of an earlier commit, compiled by that commit's own code, for comparisons in one run.

Two halves. `Before` archives a commit to a folder and starts this file there in a process of its
own, whose `rpa_kernels` and `rpa_tune` are the commit's; that process compiles candidates and
leaves their schedules in a folder. Today's simulator then times them.
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

FAILED = ".failed"


class Before:
    """Schedules of a commit, kept in a folder; what is there is not compiled again."""

    def __init__(self, revision: str, folder: Path, *, workers: int = 2) -> None:
        """Archives the commit, unless the folder has it.

        Raises:
          subprocess.CalledProcessError: There is no such commit in this checkout's history.
        """
        git = ["git", "-C", str(Path(__file__).parent)]
        found = subprocess.run(
            [*git, "rev-parse", f"{revision}^{{commit}}"],
            check=True,
            capture_output=True,
            text=True,
        )
        self.commit = found.stdout.strip()
        self._folder, self._workers = folder.resolve() / self.commit[:12], workers
        tree = self._folder / "tree"
        if not tree.exists():
            part = self._folder / "tree.part"
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir(parents=True)
            top = subprocess.run(
                [*git, "rev-parse", "--show-toplevel"], check=True, capture_output=True, text=True
            ).stdout.strip()
            archive = subprocess.run(
                ["git", "-C", top, "archive", self.commit], check=True, capture_output=True
            )
            subprocess.run(["tar", "x", "-C", str(part)], input=archive.stdout, check=True)
            (part / "rpa_kernels").symlink_to("kernels")
            part.rename(tree)
        self.tree = tree

    def compile_all(self, candidates: Sequence[Any]) -> list[Path | str]:
        """The schedule of each candidate, or why it has none.

        Args:
          candidates: `rpa_tune.candidate.Candidate`s of families and configs that the commit has.
        """
        requests = [
            {
                "family": c.family.name, "chip": c.chip.name, "problem": _given(c.problem),
                "config": _given(c.config),
            }
            for c in candidates
        ]  # fmt: skip
        names = [
            hashlib.sha256(json.dumps(one, sort_keys=True).encode()).hexdigest()[:24]
            for one in requests
        ]
        todo = [
            {"name": name, **one}
            for name, one in zip(names, requests, strict=True)
            if not (self._folder / name).exists() and not (self._folder / (name + FAILED)).exists()
        ]
        if todo:
            # Its own packages before those that are installed, and this file's folder for workers.
            path = os.pathsep.join([str(self.tree), str(Path(__file__).parent)])
            subprocess.run(
                [sys.executable, __file__, str(self._folder), str(self._workers)],
                input=json.dumps(todo), text=True, check=True,
                env=os.environ | {"PYTHONPATH": path},
            )  # fmt: skip
        return [
            (self._folder / name)
            if (self._folder / name).exists()
            else (self._folder / (name + FAILED)).read_text()
            for name in names
        ]


def _given(record: Any) -> dict[str, Any]:
    """Fields that are not their defaults: an earlier commit may not have all fields of today."""
    values = {field.name: (getattr(record, field.name), field.default) for field in fields(record)}
    return {name: value for name, (value, default) in values.items() if value != default}


def compile_one(task: tuple[dict[str, Any], str]) -> None:
    """In a worker of the earlier commit: leaves a schedule, or the reason for none, in a folder.

    Written for the modules of that commit: a candidate names its family and chip there.
    """
    from rpa_kernels import load_family
    from rpa_kernels.problem import Problem
    from rpa_tune.candidate import Candidate
    from rpa_tune.compile import lower

    request, folder = task
    candidate = Candidate(
        family=request["family"],
        problem=Problem(**request["problem"]),
        config=load_family(request["family"]).config_from_dict(request["config"]),
        chip=request["chip"],
        workload="",
    )
    compiled = lower.compile_call(lower.candidate_call(candidate), candidate.chip)
    if compiled.bundles is None:
        _leave(folder, request["name"] + FAILED, compiled.detail.encode())
    else:
        _leave(folder, request["name"], compiled.bundles.read_bytes())


def _leave(folder: str, name: str, content: bytes) -> None:
    part = Path(folder, name + ".part")
    part.write_bytes(content)
    part.rename(Path(folder, name))


def _compile_requests(folder: str, workers: int) -> None:
    from rpa_tune.compile.pool import WorkerPool

    requests = json.load(sys.stdin)
    tasks = [(request, folder) for request in requests]
    with WorkerPool(num_workers=workers) as pool:
        for reply in pool.map_unordered("before:compile_one", tasks, deadline_s=600):
            if reply.failure:
                _leave(folder, requests[reply.index]["name"] + FAILED, str(reply.failure).encode())


if __name__ == "__main__":
    _compile_requests(sys.argv[1], int(sys.argv[2]))
