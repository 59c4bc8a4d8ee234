"""The compiler's own linter on the kernels of table rows. No TPU needed; libtpu 0.0.52."""

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from rpa_tune.candidate import Candidate
from rpa_tune.compile.cache import compile_key
from rpa_tune.compile.lint import TARGETS, TASK, Lint, lint_task
from rpa_tune.compile.pool import WorkerPool
from rpa_tune.compile.target import worker_environment
from rpa_tune.errors import UsageError
from rpa_tune.hw.chip import load_chip
from rpa_tune.sweep.plan import SweepPlan
from rpa_tune.sweep.recheck import family_of, remake
from rpa_tune.tables.key import problem_of
from rpa_tune.tables.row import TableRow

DEADLINE_S = 600.0


@dataclass(frozen=True, kw_only=True, slots=True)
class RowKernel:
    """What is compiled for one or more rows.

    Attributes:
      candidate: None if the rows' problem cannot be made again.
      places: Each row that has it, and the number of the config in the row.
      refusal: Why there is no candidate; empty if there is one.
    """

    candidate: Candidate | None
    places: tuple[tuple[TableRow, int], ...]
    refusal: str = ""

    def __str__(self) -> str:
        """The first place, and how many more there are."""
        row, number = self.places[0]
        more = f" and {len(self.places) - 1} more" if len(self.places) > 1 else ""
        return f"{row.where} configs[{number}]{more}"


def kernels_of(rows: Sequence[TableRow], plans: Sequence[SweepPlan] = ()) -> list[RowKernel]:
    """The kernels of rows, each once: many rows differ only in what decides no program.

    Args:
      rows: Their `where` must be their own.
      plans: Their workloads are tried for old rows, which do not say what was timed.
    """
    found: dict[str, RowKernel] = {}
    for row in rows:
        try:
            candidates = _candidates(row, plans)
        except (UsageError, ValueError) as error:
            refused = RowKernel(candidate=None, places=((row, 0),), refusal=str(error.args[0]))
            found[row.where] = refused
            continue
        for number, candidate in enumerate(candidates):
            key = compile_key(candidate)
            known = found[key].places if key in found else ()
            found[key] = RowKernel(candidate=candidate, places=(*known, (row, number)))
    return list(found.values())


def lint_kernels(
    kernels: Sequence[RowKernel],
    *,
    cache: Path,
    workers: int = 1,
    targets: tuple[str, ...] = TARGETS,
) -> Iterator[tuple[RowKernel, Lint]]:
    """Compiles kernels under the linter, with the flags of their rows.

    Args:
      kernels: Of `kernels_of`.
      cache: Where compiles are kept: what has no finding is not compiled again, and so a run that
        was stopped goes on.
      workers: Worker processes.
      targets: Of the linter.

    Yields:
      Answers as they come; status COMPILE_FAILED where the problem cannot be made again. The caller
      has made sure that there is a linter (`verify.wants_lint`).

    Raises:
      RpaTuneError: Workers cannot be started at all.
    """
    by_flags: dict[str, list[tuple[RowKernel, Candidate]]] = {}
    for kernel in kernels:
        if kernel.candidate is None:
            yield kernel, Lint.failed(kernel.refusal)
            continue
        flags = kernel.candidate.libtpu_args
        by_flags.setdefault(flags, []).append((kernel, kernel.candidate))
    for asked in by_flags.values():
        tasks = [lint_task(candidate, cache, targets) for _, candidate in asked]
        flags = tasks[0].candidate.libtpu_args
        with WorkerPool(
            num_workers=min(workers, len(tasks)),
            deadline_s=DEADLINE_S,
            environment=functools.partial(worker_environment, libtpu_args=flags),
        ) as pool:
            for reply in pool.map_unordered(TASK, tasks):
                failure = reply.failure
                lint = reply.value if failure is None else Lint.failed(failure.detail)
                yield asked[reply.index][0], lint


def _candidates(row: TableRow, plans: Sequence[SweepPlan]) -> list[Candidate]:
    """The configs of a row on the problem that was timed.

    Raises:
      UsageError: The problem cannot be made again.
      ValueError: The kernel no longer has a config.
    """
    family, beyond = family_of(row), row.evidence.problem
    # A workload, which may take minutes to make, decides nothing that the row says itself.
    problem = remake(row, plans).problem if beyond is None else problem_of(row.key, beyond)
    return [
        Candidate(
            family=family, problem=problem, config=family.config_from_dict(fields),
            chip=load_chip(row.key.chip), workload=row.evidence.workload_digest,
            libtpu_args=row.evidence.libtpu_args,
        )
        for fields in row.configs
    ]  # fmt: skip
