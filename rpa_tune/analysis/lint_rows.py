"""The compiler's own linter on the kernels of table rows. No TPU needed; libtpu 0.0.52."""

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rpa_tune.candidate import Candidate
from rpa_tune.compile.lint import TARGETS, TASK, Lint, linter_flags
from rpa_tune.compile.pool import WorkerPool
from rpa_tune.compile.target import worker_environment
from rpa_tune.errors import UsageError
from rpa_tune.sweep.plan import SweepPlan
from rpa_tune.sweep.recheck import family_of, remake
from rpa_tune.tables.row import TableRow

DEADLINE_S = 600.0


@dataclass(frozen=True, kw_only=True, slots=True)
class RowLint:
    """What the linter says of one config of a row.

    Attributes:
      row: As it stands in the table.
      config: Number of the config in the row.
      lint: Status COMPILE_FAILED where the row's problem cannot be made again.
    """

    row: TableRow
    config: int
    lint: Lint


def lint_rows(
    rows: Sequence[TableRow],
    plans: Sequence[SweepPlan] = (),
    *,
    workers: int = 1,
    targets: tuple[str, ...] = TARGETS,
) -> Iterator[RowLint]:
    """Compiles every config of every row under the linter, with the flags of the row.

    Args:
      rows: Their `where` must be their own.
      plans: Their workloads are tried for rows that do not name theirs; see `recheck.remake`.
      workers: Worker processes.
      targets: Of the linter.

    Yields:
      Answers as they come. The caller has made sure that there is a linter (`verify.wants_lint`).

    Raises:
      RpaTuneError: Workers cannot be started at all.
    """
    by_flags: dict[str, list[tuple[TableRow, int, Candidate]]] = {}
    for row in rows:
        try:
            candidates = _candidates(row, plans)
        except (UsageError, ValueError) as error:
            yield RowLint(row=row, config=0, lint=Lint.failed(str(error.args[0])))
            continue
        asked = by_flags.setdefault(row.evidence.libtpu_args, [])
        asked += [(row, number, candidate) for number, candidate in enumerate(candidates)]
    for libtpu_args, asked in by_flags.items():
        flags = f"{libtpu_args} {linter_flags(targets)}".strip()
        environment = functools.partial(worker_environment, libtpu_args=flags)
        with WorkerPool(
            num_workers=min(workers, len(asked)), deadline_s=DEADLINE_S, environment=environment
        ) as pool:
            for reply in pool.map_unordered(TASK, [candidate for *_, candidate in asked]):
                row, number, _ = asked[reply.index]
                failure = reply.failure
                lint = reply.value if failure is None else Lint.failed(failure.detail)
                yield RowLint(row=row, config=number, lint=lint)


def _candidates(row: TableRow, plans: Sequence[SweepPlan]) -> list[Candidate]:
    """The configs of a row on its problem.

    Raises:
      UsageError: The problem cannot be made again.
      ValueError: The kernel no longer has a config.
    """
    family, study = family_of(row), remake(row, plans)
    return [study.candidate(family.config_from_dict(fields)) for fields in row.configs]
