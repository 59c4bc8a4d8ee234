"""The compiler's own linter, where the version has it: copies of a kernel, looked at in a compile.

It raises from the compile, changes no schedule, and knows no batch: it steps through the program.
What it misses stands in docs/versions.md; the interpreter's race detector (`rpa-tune verify`) finds
those. Source: observed with libtpu 0.0.52, on v4, v5e, v5p, v6e and v7x.
"""

import re
from dataclasses import dataclass, replace
from pathlib import Path

from rpa_tune.candidate import Candidate, Status
from rpa_tune.compile.cache import CompileCache
from rpa_tune.known_versions import version_number
from rpa_tune.libtpu_args import parse_args

TASK = "rpa_tune.compile.lint:lint_candidate"
# `vmem_poison_use` is left out: it refuses XLA's own code, and every buffer that a copy fills whose
# size is data, as all of ours are (docs/versions.md).
TARGETS = ("dma_race", "bounds_check")
_FIRST = "0.0.52"  # the only version of those tried that has the targets
_FOUND = re.compile(r"\[LLO_LINT\] (\w+) :: (.*)")


@dataclass(frozen=True, kw_only=True, slots=True)
class Lint:
    """What the linter said of one kernel.

    Attributes:
      status: OK, WRONG_ANSWER for a finding, or what kept it from being linted.
      kind: Target that the finding is of, such as `dma_race`; empty without one.
      detail: Its text, or why it was not linted; empty when OK.
    """

    status: Status
    kind: str = ""
    detail: str = ""

    @classmethod
    def failed(cls, detail: str) -> "Lint":
        """Of a kernel that could not be linted."""
        return cls(status=Status.COMPILE_FAILED, detail=detail)


def has_linter(libtpu: str | None) -> bool:
    """Whether a version of libtpu has the targets."""
    return libtpu is not None and version_number(libtpu) >= version_number(_FIRST)


def linter_flags(targets: tuple[str, ...] = TARGETS) -> str:
    """Flags that a worker gives libtpu to lint what it compiles."""
    return " ".join((
        "--xla_tpu_enable_llo_linter=true",
        "--xla_tpu_llo_linter_analyze_tpu_custom_calls=true",
        f"--xla_tpu_llo_linter_targets={';'.join(targets)}",
    ))  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class LintTask:
    """A kernel to lint.

    Attributes:
      candidate: Its flags are the linter's, too: see `lint_task`.
      cache_dir: Where compiles are kept; one without a finding is not done again.
    """

    candidate: Candidate
    cache_dir: Path


def lint_task(
    candidate: Candidate, cache_dir: Path, targets: tuple[str, ...] = TARGETS
) -> LintTask:
    """What a worker with the flags `task.candidate.libtpu_args` is given."""
    flags = parse_args(f"{candidate.libtpu_args} {linter_flags(targets)}")
    return LintTask(candidate=replace(candidate, libtpu_args=flags), cache_dir=cache_dir)


def lint_candidate(task: LintTask) -> Lint:
    """Compiles a candidate under the linter, in a worker that has its flags.

    Raises:
      Exception: What tracing raises.
    """
    # Here, so that the parent needs no jax.
    from rpa_tune.compile.lower import compile_candidate

    task.candidate.family.fetch(task.cache_dir)
    compiled = compile_candidate(task.candidate, CompileCache(task.cache_dir))[0]
    return lint_of(compiled.status, compiled.detail)


def lint_of(status: Status, detail: str) -> Lint:
    """What a compile under the linter says.

    Args:
      status: Of the compile.
      detail: Its message.
    """
    if found := _FOUND.search(detail):
        return Lint(status=Status.WRONG_ANSWER, kind=found[1], detail=found[2].strip())
    return Lint(status=status, detail=detail)
