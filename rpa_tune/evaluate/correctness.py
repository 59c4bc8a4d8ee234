"""Is a config right? Interpreted on the CPU against the float32 reference, on hostile batches.

The comparison is `rpa_kernels.verify`'s; this file chooses batches, runs the check in a worker
process, and gives it a status. Neighbours: `measured.py` times nothing that is not right here.
"""

import itertools
import random
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from rpa_kernels.batch import Batch
from rpa_kernels.ints import cdiv
from rpa_kernels.problem import Problem
from rpa_kernels.slots import slot_of
from rpa_tune.candidate import Status
from rpa_tune.compile.pool import FailureKind, Reply, TaskPool, WorkerPool
from rpa_tune.families.family import Family
from rpa_tune.hw.chip import Chip

TASK = "rpa_tune.evaluate.correctness:check_batch"
# The interpreter is slow, so large pages do not make everything long.
_MAX_PAGES = 4  # pages of the longest hostile context beyond its blocks
_MOST_BEYOND_TOKENS = 1024  # and the most tokens of those
_LONGEST_CHUNK_TOKENS = 256  # query tokens of a chunk, else a page


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckTask:
    """One launch to check.

    Attributes:
      family: Kernel family.
      problem: Static shapes that the batch fits.
      config: A config that passes `check`.
      chip: Whose code paths are taken.
      batch: Lengths.
      seed: Of the operands.
      dma_mode: `on_wait` or `eager`: how late copies happen.
    """

    family: Family
    problem: Problem
    config: Any
    chip: Chip
    batch: Batch
    seed: int = 0
    dma_mode: str = "on_wait"


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """What one check found.

    Attributes:
      task: What was checked.
      status: OK, WRONG_ANSWER, or why there is no answer.
      detail: One line; empty when OK.
      figures: Errors, tolerance and counts, when there is an answer.
    """

    task: CheckTask
    status: Status
    detail: str = ""
    figures: dict[str, Any] | None = None


def hostile_batches(
    family: str,
    *,
    page_size: int,
    block_tokens: int,
    num_blocks: int = 2,
    decode_query_size: int = 1,
) -> tuple[Batch, ...]:
    """Batches with lengths that break kernels: 1, page and block boundaries ±1, several blocks.

    Pages lie alone and in runs (`with_runs`). Sequences of another family stand before or behind,
    and must be left alone.

    Args:
      family: Whose sequences to have.
      page_size: Tokens in a page.
      block_tokens: Tokens of the config's KV block.
      num_blocks: Whole blocks whose boundaries to have; the longest context has one more, begun.
      decode_query_size: New tokens of the decode sequences: 1 to so many, the most first.
    """
    longest = num_blocks * block_tokens + min(_MAX_PAGES * page_size, _MOST_BEYOND_TOKENS)
    chunk = min(page_size, _LONGEST_CHUNK_TOKENS)
    edges = sorted(
        {
            max(1, edge + step)
            for edge in (1, page_size, *(n * block_tokens for n in range(1, num_blocks + 1)))
            for step in (-1, 0, 1)
        }
        | {longest}
    )
    batches: tuple[Batch, ...]
    slot = slot_of(family)
    if slot == "decode":
        most = decode_query_size
        q_lens = [min(most - i % most, edge) for i, edge in enumerate(edges)]
        batches = (
            _batch(q_lens, edges, num_decode=len(edges), page_seed=1),
            _batch([most, 5], [longest, 5], num_decode=1, page_seed=2),
        )
    elif slot == "prefill":
        contexts = [edge for edge in edges if edge >= chunk]
        batches = (
            Batch(
                q_lens=(1, *([chunk] * len(contexts)), 3),
                kv_lens=(page_size + 1, *contexts, 3),
                num_decode=1,
                num_prefill=len(contexts),
                page_seed=1,
            ),
        )
    else:
        whole = [n for n in edges if n <= 2 * chunk + 1]
        chunks = [min(n, chunk + 1) for n in edges]
        batches = (
            _batch([1, *whole], [page_size + 1, *whole], num_decode=1, page_seed=1),
            _batch(chunks, edges, num_decode=0, page_seed=2),
        )
    return tuple(with_runs(batch, page_size) for batch in batches)


def with_runs(batch: Batch, page_size: int) -> Batch:
    """The batch with pages alone and in runs of up to 6, ascending and descending.

    Args:
      batch: Its `page_seed` decides; its pages will be as many as it needs, from 0 on.
      page_size: Tokens in a page.
    """
    draw = random.Random(batch.page_seed)
    counts = [cdiv(kv_len, page_size) for kv_len in batch.kv_lens]
    left, pieces = list(range(sum(counts))), []
    while left:
        size = draw.randint(1, 6)
        piece, left = left[:size], left[size:]
        pieces.append(piece[:: draw.choice((1, -1))])
    draw.shuffle(pieces)
    pages = itertools.chain.from_iterable(pieces)
    table = tuple(tuple(itertools.islice(pages, count)) for count in counts)
    return replace(batch, page_table=table)


def _batch(
    q_lens: Sequence[int], kv_lens: Sequence[int], *, num_decode: int, page_seed: int
) -> Batch:
    return Batch(
        q_lens=tuple(q_lens), kv_lens=tuple(kv_lens), num_decode=num_decode, page_seed=page_seed
    )


def check_all(
    tasks: Sequence[CheckTask], *, num_workers: int, deadline_s: float
) -> Iterator[Verdict]:
    """Checks launches in worker processes, and yields verdicts as they come.

    Args:
      tasks: Any families and configs.
      num_workers: Processes at once.
      deadline_s: Seconds that one check may take.
    """
    with WorkerPool(num_workers=num_workers, deadline_s=deadline_s) as pool:
        yield from check_in(pool, tasks)


def check_in(
    pool: TaskPool, tasks: Sequence[CheckTask], *, deadline_s: float | None = None
) -> Iterator[Verdict]:
    """The same in a pool that outlives the call."""
    ready = []
    for task in tasks:
        if bad := task.family.check(task.problem, task.config, task.chip.target):
            yield Verdict(task=task, status=Status.INFEASIBLE, detail=str(bad))
        elif misfit := task.batch.misfit(task.problem):
            yield Verdict(task=task, status=Status.INFEASIBLE, detail=misfit)
        else:
            ready.append(task)
    for reply in pool.map_unordered(TASK, ready, deadline_s=deadline_s):
        yield _verdict(ready[reply.index], reply)


def _verdict(task: CheckTask, reply: Reply) -> Verdict:
    if reply.failure is None:
        problems = reply.value.pop("problems")
        return Verdict(
            task=task,
            status=Status.WRONG_ANSWER if problems else Status.OK,
            detail="; ".join(problems),
            figures=reply.value,
        )
    status = {
        FailureKind.DEADLINE: Status.RUN_TIMEOUT,
        FailureKind.EXCEPTION: Status.RUN_FAILED,
    }.get(reply.failure.kind, Status.CRASHED)
    return Verdict(task=task, status=status, detail=reply.failure.detail)


def check_batch(task: CheckTask) -> dict[str, Any]:
    """Runs one check, in a worker: the report's figures and `problems`."""
    from rpa_kernels.verify import verify

    report = verify(
        task.family,
        task.problem,
        task.config,
        task.batch,
        target=task.chip.target,
        seed=task.seed,
        dma_mode=task.dma_mode,
    )
    return {**asdict(report), "problems": list(report.problems)}
