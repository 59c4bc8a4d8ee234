"""`verify`: is a config correct? The CPU interpreter against the float32 reference, no TPU."""

import functools
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from rpa_kernels.batch import Batch
from rpa_tune.analysis.question import (
    AnyWorkload,
    as_workload,
    find_family,
    make_config,
    one_batch,
)
from rpa_tune.candidate import Candidate, Status
from rpa_tune.compile.lint import TASK as LINT_TASK
from rpa_tune.compile.lint import Lint, has_linter, lint_task
from rpa_tune.compile.paths import default_cache_dir
from rpa_tune.compile.pool import WorkerPool
from rpa_tune.compile.target import worker_environment
from rpa_tune.errors import UsageError
from rpa_tune.evaluate.correctness import CheckTask, Verdict, check_all, hostile_batches
from rpa_tune.families.family import Family
from rpa_tune.hw.chip import load_chip
from rpa_tune.models.catalog import load_model, problem_for
from rpa_tune.provenance import versions
from rpa_tune.ranges import RANGES
from rpa_tune.workload.workload import WeightedBatch, Workload

DEFAULT_DEADLINE_S = 600.0
# The context for which a family makes its own choice when no batch is given.
_NOMINAL_CONTEXT_TOKENS = 4096
_DMA_MODES = ("on_wait", "eager")


@dataclass(frozen=True, kw_only=True, slots=True)
class Verification:
    """What the checks of one config found.

    Attributes:
      verdicts: One for each launch, in the order in which they ended.
      lint: What the compiler's own linter says; None where it was not asked.
    """

    verdicts: tuple[Verdict, ...]
    lint: Lint | None = None

    @property
    def ok(self) -> bool:
        """Whether every launch was checked and is right, and the linter found nothing."""
        right = bool(self.verdicts) and all(v.status is Status.OK for v in self.verdicts)
        return right and (self.lint is None or self.lint.status is Status.OK)

    @property
    def can_exist(self) -> bool:
        """Whether the config can exist for some launch."""
        return any(verdict.status is not Status.INFEASIBLE for verdict in self.verdicts)


def verify(
    *,
    chip: str,
    family: str,
    model: str,
    config: Mapping[str, int] | None = None,
    batches: AnyWorkload | None = None,
    seed: int = 0,
    workers: int | None = None,
    deadline_s: float = DEFAULT_DEADLINE_S,
    lint: bool | None = None,
    **shape: Any,
) -> Verification:
    """Runs a config under the interpreter and compares it with the float32 reference.

    Compares output and KV cache, and looks for data races, with DMA copies that complete as late as
    possible, and as early as possible. Errors are those of the kernel's roundings, not those of the
    chip's exponential. Large models are slow: `tp` divides the heads.

    Args:
      chip: Whose code paths are taken.
      family: `decode`, `prefill` or `mixed`.
      model: Model name, or path of a config.json.
      config: Fields that override the family's default config.
      batches: What to launch; lengths of 1, page and block boundaries and their neighbours if
        None.
      seed: Random seed of queries, keys, values and cache.
      workers: Worker processes; one per core if None.
      deadline_s: Time limit per check, seconds.
      lint: Whether to have the compiler's own linter look at the kernel, too; None: where the
        installed libtpu has it.
      **shape: As for `explain`.

    Raises:
      UsageError: Whatever is wrong with them.
      TraceError: The batches are a bad file.
    """
    tasks = make_tasks(
        chip=chip, family=family, model=model, config=config, batches=batches, seed=seed, **shape
    )
    # Verdicts come as checks end; the answer has them in the order of its tasks, run after run.
    found = sorted(
        check_tasks(tasks, workers=workers, deadline_s=deadline_s),
        key=lambda verdict: tasks.index(verdict.task),
    )
    verification = Verification(verdicts=tuple(found))
    return with_lint(verification, wants_lint(lint), deadline_s=deadline_s)


def wants_lint(lint: bool | None, option: str = "--lint") -> bool:
    """Whether the linter is asked.

    Args:
      lint: What the caller wants; None: wherever there is one.
      option: What the caller said it with, for the error.

    Raises:
      UsageError: It is wanted, and this libtpu has none.
    """
    there = has_linter(versions()["libtpu"])
    if lint and not there:
        raise UsageError(
            f"libtpu {versions()['libtpu']} has no linter for kernels",
            where=option,
            hint="0.0.52 has it; `make lint-kernels` makes an environment with it",
        )
    return there if lint is None else lint


def with_lint(
    found: Verification, wanted: bool, *, deadline_s: float = DEFAULT_DEADLINE_S
) -> Verification:
    """The verification with what the compiler's linter says of its kernel, once for all launches.

    Args:
      found: Without it.
      wanted: See `wants_lint`; a config that cannot exist is not linted either.
      deadline_s: Time limit, seconds.

    Raises:
      RpaTuneError: Workers cannot be started at all.
    """
    if not wanted or not found.can_exist:
        return found
    task = found.verdicts[0].task
    candidate = Candidate(
        family=task.family, problem=task.problem, config=task.config, chip=task.chip,
        workload="lint",
    )  # fmt: skip
    asked = lint_task(candidate, default_cache_dir())
    flags = asked.candidate.libtpu_args
    environment = functools.partial(worker_environment, libtpu_args=flags)
    with WorkerPool(num_workers=1, deadline_s=deadline_s, environment=environment) as pool:
        (reply,) = pool.map_unordered(LINT_TASK, [asked])
    lint = reply.value if reply.failure is None else Lint.failed(reply.failure.detail)
    return replace(found, lint=lint)


def check_tasks(
    tasks: list[CheckTask], *, workers: int | None = None, deadline_s: float = DEFAULT_DEADLINE_S
) -> Iterator[Verdict]:
    """Verdicts as they come; one alone for a config that cannot exist.

    Args:
      tasks: Of one config.
      workers: Worker processes; one per core if None.
      deadline_s: Time limit per check, seconds.

    Raises:
      UsageError: Not a number of processes or seconds.
    """
    deadline_s = RANGES["deadline"].check(deadline_s, "deadline_s")
    workers = len(os.sched_getaffinity(0)) if workers is None else workers
    workers = int(RANGES["workers"].check(workers, "workers"))
    first = tasks[0]
    if first.family.check(first.problem, first.config, first.chip.target):
        tasks = tasks[:1]  # what cannot exist for one batch cannot for any
    yield from check_all(tasks, num_workers=min(workers, len(tasks)), deadline_s=deadline_s)


def make_tasks(
    *,
    chip: str,
    family: str,
    model: str,
    config: Mapping[str, int] | None = None,
    batches: AnyWorkload | None = None,
    seed: int = 0,
    page_size: int = 128,
    **shape: Any,
) -> list[CheckTask]:
    """The launches to check: each batch with copies late and early.

    Args:
      chip: Chip name.
      family: Family name.
      model: Model name or path.
      config: Fields that override the family's default config.
      batches: What to launch; hostile lengths if None.
      seed: Of the operands.
      page_size: Tokens in a KV cache page.
      **shape: `tp`, `q_dtype`, `kv_dtype`, `kv_layout`, `layers` and `windowed` of `problem_for`.

    Raises:
      UsageError: Whatever is wrong with them.
    """
    RANGES["seed"].check(seed, "seed")
    tpu, kernel = load_chip(chip), find_family(family)
    record, shape = load_model(model), {**shape, "page_size": page_size}
    if batches is None:
        tokens = _NOMINAL_CONTEXT_TOKENS
        batch = Batch(q_lens=(tokens,), kv_lens=(tokens,), num_decode=0)
        nominal = one_batch(batch, name="one", source="")
    else:
        nominal = as_workload(batches, page_size=page_size)
    made = make_config(kernel, problem_for(record, workload=nominal, **shape), tpu, config or {})
    workload = nominal if batches is not None else _hostile(kernel, page_size, made)
    problem = problem_for(record, workload=workload, **shape)
    return [
        CheckTask(
            family=kernel, problem=problem, config=made, chip=tpu, batch=weighted.batch,
            seed=seed, dma_mode=mode,
        )
        for weighted in workload.batches
        for mode in _DMA_MODES
    ]  # fmt: skip


def _hostile(family: Family, page_size: int, config: Any) -> Workload:
    """Lengths of 1, at page and block boundaries, and their neighbours."""
    batches = hostile_batches(family.name, page_size=page_size, block_tokens=config.bkv_sz)
    weighted = tuple(WeightedBatch(batch=batch, weight=1 / len(batches)) for batch in batches)
    return Workload(name="hostile", source="lengths at boundaries", batches=weighted)
