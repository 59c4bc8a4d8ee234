"""`explain`: compiles and simulates one config, and shows where its time goes."""

import contextlib
import functools
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rpa_tune.analysis.neighbours import (
    Neighbour,
    advice,
    find_stored,
    other_problems,
    read_stores,
    try_neighbours,
)
from rpa_tune.analysis.question import AnyWorkload, Question, make_question
from rpa_tune.analysis.schedules import PhaseProfile, profile_batch
from rpa_tune.candidate import Evaluation
from rpa_tune.compile.paths import default_cache_dir
from rpa_tune.compile.pool import WorkerPool
from rpa_tune.compile.target import sources_environment
from rpa_tune.evaluate.analytical import AnalyticalEvaluator
from rpa_tune.evaluate.simulated import SimulatedEvaluator, Simulation
from rpa_tune.ranges import Range

DEFAULT_DEADLINE_S = 600.0
DEFAULT_STORES = Path(".rpa-tune")  # where sweeps keep their answers
_TRIES = Range(least=0, most=10**6, unit="neighbours")


@dataclass(frozen=True, kw_only=True, slots=True)
class Explanation:
    """What is known of one candidate.

    Attributes:
      question: The candidate and its batches.
      simulation: Its evaluation, and a timeline for each batch.
      lower_bound_us: No kernel with its account is faster; None where it cannot exist.
      neighbours: What is known of candidates beside it; empty when it has no time.
      profile: Cycles of the batch that takes most of the time, by phase and by source line; None
        without a time.
    """

    question: Question
    simulation: Simulation
    lower_bound_us: float | None
    profile: PhaseProfile | None = None
    neighbours: tuple[Neighbour, ...] = ()

    @property
    def evaluation(self) -> Evaluation:
        """Status, simulated time and metrics."""
        return self.simulation.evaluation

    @property
    def ok(self) -> bool:
        """Whether there is a time."""
        return self.evaluation.ok

    @property
    def time_us(self) -> float | None:
        """Simulated time of one launch, the mean over the workload; None without one."""
        return self.evaluation.time_us

    @property
    def phases(self) -> dict[str, int]:
        """Cycles of that batch by what the kernel does, most first; see `analysis.phases`."""
        return self.profile.phases if self.profile else {}

    @property
    def advice(self) -> str:
        """What follows from the neighbours that have times; empty without any."""
        return advice(self.neighbours, self.time_us or 0.0)


def explain(
    *,
    chip: str,
    family: str,
    model: str,
    workload: AnyWorkload,
    config: dict[str, int] | None = None,
    tries: int = 0,
    cache: str | Path | None = None,
    **shape: Any,
) -> Explanation:
    """Compiles and simulates one config, and shows where its time goes. No TPU needed.

    A config that is infeasible, does not compile or has no time for another reason is an answer
    with a status, no exception.

    Args:
      chip: Chip name.
      family: A family of ours or a public one, such as `decode` or `public-v3-decode`.
      model: Model name, or path of a config.json.
      workload: A preset, a file, a mapping, a `Batch` or a `Workload`.
      config: Fields that override the family's default config, which it is if None.
      tries: Neighbouring configs to compile and simulate, at most; advice comes from them.
      cache: Folder for cached compiles; the user's cache folder if None.
      **shape: `page_size` (128 tokens), `tp` (1), `q_dtype`, `kv_dtype` (bfloat16), `layers` (name
        of the kind, of a model that has several) and `windowed`.

    Raises:
      UsageError: Whatever is wrong with them.
      TraceError: The workload is a bad file.
    """
    question = make_question(
        chip=chip, family=family, model=model, workload=workload, config=config,
        cache=None if cache is None else Path(cache), **shape,
    )  # fmt: skip
    return explain_question(question, tries=tries, cache=cache)


def explain_question(
    question: Question,
    *,
    tries: int = 0,
    stores: Sequence[Path] = (),
    cache: str | Path | None = None,
    deadline_s: float = DEFAULT_DEADLINE_S,
    said: Callable[[str], None] = lambda text: None,
    advises: bool = True,
    on_phase: Callable[[str], None] = lambda phase: None,
) -> Explanation:
    """The same of a candidate that is resolved.

    Args:
      question: What to evaluate.
      tries: Neighbouring configs to compile and simulate, at most.
      stores: Answers of sweeps to advise from, too; those in `.rpa-tune` if there are none.
      cache: Folder for cached compiles; the user's cache folder if None.
      deadline_s: Time limit, seconds, for compiling and for simulating.
      said: Takes a line for each neighbour that was tried, and each store that is left out.
      advises: Whether neighbours are looked for at all.
      on_phase: Told the name of each phase when it begins: `lower`, `compile`, `parse`, `simulate`,
        `profile` and `neighbours`.

    Raises:
      StoreError: A file of `stores` is no store.
    """
    most = int(_TRIES.check(tries, "tries"))
    cache = default_cache_dir() if cache is None else Path(cache)
    simulation, profiled = _simulate(question, cache, deadline_s, on_phase)
    neighbours: list[Neighbour] = []
    if advises and (base_us := simulation.evaluation.time_us) is not None:
        others = functools.cache(functools.partial(other_problems, question))
        answers = read_stores(stores, DEFAULT_STORES, said)
        neighbours += find_stored(question, others, answers)
        if most:
            on_phase("neighbours")
            num_workers = min(most, len(os.sched_getaffinity(0)))
            with contextlib.closing(
                SimulatedEvaluator(num_workers=num_workers, cache_dir=cache, deadline_s=deadline_s)
            ) as evaluator:
                neighbours += try_neighbours(
                    question, others, evaluator,
                    most=most, base_us=base_us, known=neighbours, said=said,
                )  # fmt: skip
    (bound,) = AnalyticalEvaluator().evaluate_all([question.candidate], question.workload)
    return Explanation(
        question=question,
        simulation=simulation,
        profile=profiled,
        lower_bound_us=bound.time_us,
        neighbours=tuple(neighbours),
    )


def _simulate(
    question: Question, cache: Path, deadline_s: float, on_phase: Callable[[str], None]
) -> tuple[Simulation, PhaseProfile | None]:
    """Its evaluation, and the cycles of its heaviest batch by source line."""
    pool = WorkerPool(
        num_workers=1, deadline_s=deadline_s, environment=sources_environment, on_phase=on_phase
    )
    with contextlib.closing(
        SimulatedEvaluator(cache_dir=cache, deadline_s=deadline_s, pool=pool)
    ) as evaluator:
        (simulation,) = evaluator.simulate_all([question.candidate], question.workload)
    if not simulation.evaluation.ok:
        return simulation, None
    on_phase("profile")
    weighted, _ = simulation.heaviest(question.workload)
    return simulation, profile_batch(question.candidate, weighted.batch, cache)
