"""Is a config right? The answer of the CPU interpreter, as an evaluation without a time.

A sweep asks before it promotes. The interpreter is slow, so a stand-in is run: the same family,
config, chip and features, with fewer heads (of the same ratio) and batches made of lengths that
break kernels. Neighbours: `correctness.py` runs the checks and makes the batches.
"""

import time
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

from rpa_kernels import layout
from rpa_kernels.batch import Batch
from rpa_kernels.ints import cdiv
from rpa_kernels.problem import Problem
from rpa_tune.candidate import Candidate, Correctness, Evaluation, Status
from rpa_tune.compile.pool import DEFAULT_DEADLINE_S, TaskPool, WorkerPool
from rpa_tune.evaluate.correctness import CheckTask, Verdict, check_in, hostile_batches
from rpa_tune.evaluate.evaluator import AbstractEvaluator, find_obstacle, refuse
from rpa_tune.provenance import provenance
from rpa_tune.workload.workload import WeightedBatch, Workload

# Two, so that a kernel has to tell heads apart.
_FEWEST_KV_HEADS = 2
# With latents, whose heads are rows of one product: so many that 16 queries of all are two chains.
_FEWEST_LATENT_HEADS = 32
_DMA_MODES = ("on_wait", "eager")


def stand_in(candidate: Candidate, *, with_few_heads: bool = True) -> tuple[Candidate, Workload]:
    """What is run in a candidate's place, and on what; a function of the candidate alone.

    Two problems that differ in sizes only share a stand-in, so one verification serves both.

    Args:
      candidate: A config that is about to be promoted.
      with_few_heads: Whether heads are left out, too, for the sake of the interpreter.
    """
    problem, config = candidate.problem, candidate.config
    batches = hostile_batches(
        candidate.family.name,
        page_size=problem.page_size,
        block_tokens=config.bkv_sz,
        num_blocks=1,
        decode_query_size=problem.decode_query_size,
    )
    workload = Workload(
        name="hostile",
        source="lengths of 1, and at page and block boundaries",
        batches=tuple(WeightedBatch(batch=b, weight=1 / len(batches)) for b in batches),
    )
    whole = _with_edge_in_sight(resized(problem, workload), workload)
    small = _with_few_heads(whole) if with_few_heads else whole
    target = candidate.chip.target
    # A limit that only the small problem breaks says nothing about the candidate.
    used = small if candidate.family.check(small, config, target) is None else whole
    return replace(candidate, problem=used, workload=workload.digest), workload


def resized(problem: Problem, workload: Workload) -> Problem:
    """The problem with arrays just large enough for the batches."""
    pages_per_seq = cdiv(workload.max_context_tokens, problem.page_size)
    return replace(
        problem,
        max_num_tokens=layout.next_power_of_2(workload.max_num_tokens),
        max_num_seqs=layout.next_power_of_2(workload.max_num_seqs),
        pages_per_seq=pages_per_seq,
        num_pages=workload.num_pages(problem.page_size),
    )


def _with_edge_in_sight(problem: Problem, workload: Workload) -> Problem:
    """The problem, with a window or chunk that ends within the longest context.

    Else no query of the few short contexts would have anything behind its window.
    """
    longest = workload.max_context_tokens
    if problem.reach_tokens is None or problem.reach_tokens < longest:
        return problem
    name = "sliding_window" if problem.sliding_window else "attention_chunk_size"
    # An odd number, so that its edge is within a page and within a block.
    changes: dict[str, Any] = {name: longest // 2 | 1}
    return replace(problem, **changes)


def _with_few_heads(problem: Problem) -> Problem:
    """The same ratio of query to KV heads, with as few KV heads as keep what is tested.

    With latents fewer query heads: 128 take the interpreter four times as long, minutes a config.
    """
    if problem.is_latent:
        return replace(problem, num_q_heads=min(problem.num_q_heads, _FEWEST_LATENT_HEADS))
    heads = min(problem.num_kv_heads, _FEWEST_KV_HEADS)
    return replace(problem, num_kv_heads=heads, num_q_heads=heads * problem.q_heads_per_kv_head)


class InterpretedEvaluator(AbstractEvaluator):
    """OK for a config that is right; it never has a time."""

    def __init__(
        self,
        *,
        num_workers: int = 1,
        deadline_s: float = DEFAULT_DEADLINE_S,
        pool: TaskPool | None = None,
    ) -> None:
        """Starts nothing yet.

        Args:
          num_workers: Worker processes.
          deadline_s: Most seconds of one launch.
          pool: Where checks run, and closed at the end; worker processes of its own if None.
        """
        self._deadline_s = deadline_s
        self._pool: TaskPool = pool or WorkerPool(num_workers=num_workers)

    @property
    def fidelity(self) -> Correctness:
        """INTERPRETED."""
        return Correctness.INTERPRETED

    def evaluate_all(
        self, candidates: Iterable[Candidate], workload: Workload
    ) -> Iterator[Evaluation]:
        """One answer per candidate; see `AbstractEvaluator`. The first failure decides."""
        for candidate in candidates:
            if obstacle := find_obstacle(candidate, workload):
                yield refuse(candidate, self.fidelity, obstacle)
                continue
            tasks = _tasks(candidate, [weighted.batch for weighted in workload.batches])
            verdicts = []
            started = time.monotonic()
            for verdict in check_in(self._pool, tasks, deadline_s=self._deadline_s):
                verdicts.append(verdict)
                if verdict.status is not Status.OK:
                    break
            yield _conclude(candidate, verdicts, time.monotonic() - started)

    def close(self) -> None:
        """Ends the workers."""
        self._pool.close()


def _tasks(candidate: Candidate, batches: list[Batch]) -> list[CheckTask]:
    """Copies are as late as they may be in one batch, as early in the next."""
    modes = _DMA_MODES if len(batches) > 1 else _DMA_MODES[:1]
    return [
        CheckTask(
            family=candidate.family,
            problem=candidate.problem,
            config=candidate.config,
            chip=candidate.chip,
            batch=batch,
            dma_mode=modes[i % len(modes)],
        )
        for i, batch in enumerate(batches)
    ]


def _conclude(candidate: Candidate, verdicts: list[Verdict], seconds: float) -> Evaluation:
    last = verdicts[-1]
    return Evaluation(
        candidate=candidate,
        fidelity=Correctness.INTERPRETED,
        status=last.status,
        detail=last.detail,
        metrics={
            **(_figures(candidate, verdicts) if last.status is Status.OK else {}),
            "evaluate_s": seconds,
        },
        provenance=provenance(candidate.family.digest),
    )


def _figures(candidate: Candidate, verdicts: list[Verdict]) -> dict[str, Any]:
    """`how`, for people, and the error that came nearest to its tolerance."""
    problem = candidate.problem
    batches = [verdict.task.batch for verdict in verdicts]
    figures = [verdict.figures or {} for verdict in verdicts]
    return {
        "how": (
            f"interpreted, {problem.num_q_heads}/{problem.num_kv_heads} heads, "
            f"{sum(batch.num_seqs for batch in batches)} sequences, "
            f"contexts to {max(max(batch.kv_lens) for batch in batches)} tokens"
        ),
        "error_of_tolerance": max(f["max_error"] / f["tolerance"] for f in figures),
    }
