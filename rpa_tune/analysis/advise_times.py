"""The times of `advise`: a bound for every kernel, and simulations of as many as are asked for."""

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from rpa_kernels.family import config_to_dict
from rpa_tune.analysis.advise_draft import Draft, Part
from rpa_tune.analysis.advise_record import BOUND, SIMULATED, Attention, Row, mean_phase
from rpa_tune.candidate import Candidate
from rpa_tune.compile.paths import default_cache_dir
from rpa_tune.evaluate.analytical import AnalyticalEvaluator
from rpa_tune.evaluate.simulated import SimulatedEvaluator, Simulation
from rpa_tune.models.roofline import Roofline
from rpa_tune.ranges import RANGES
from rpa_tune.workload.workload import Workload

DEFAULT_DEADLINE_S = 600.0


@dataclass(frozen=True, kw_only=True, slots=True)
class How:
    """How kernels are simulated.

    Attributes:
      compiles: Most kernels.
      cache: Folder for cached compiles; the user's cache folder if None.
      workers: Processes; one a core if None.
      deadline_s: Time limit, seconds, for compiling and for simulating one.
      said: Takes a line for each.
    """

    compiles: int
    cache: Path | None = None
    workers: int | None = None
    deadline_s: float = DEFAULT_DEADLINE_S
    said: Callable[[str], None] = lambda text: None


@dataclass(kw_only=True, slots=True)
class Times:
    """What is known of kernels, by the digest of their candidates.

    Attributes:
      bounds_us: Least time in each step that launches them.
      simulated: What came of simulating them.
    """

    bounds_us: dict[str, tuple[float, ...]] = field(default_factory=dict)
    simulated: dict[str, Simulation] = field(default_factory=dict)

    @property
    def compiles_s(self) -> list[float]:
        """Seconds that each kernel took to trace and compile, when it was."""
        metrics = [one.evaluation.metrics for one in self.simulated.values()]
        return [m["lower_s"] + m["compile_s"] for m in metrics if "compile_s" in m]

    @property
    def failures(self) -> list[str]:
        """Why a kernel that was simulated has no time, each once."""
        evaluations = [one.evaluation for one in self.simulated.values()]
        said = [f"{e.candidate.title}: {e.status} {e.detail}" for e in evaluations if not e.ok]
        return list(dict.fromkeys(said))


def find_times(drafts: Sequence[Draft], how: How) -> Times:
    """Bounds of all kernels, and times of the first ones.

    Args:
      drafts: Settings, those that matter most first.
      how: How many, and with what.

    Raises:
      DumpError: Schedules of this compiler are not understood, or none is made.
    """
    times = Times()
    _bound(drafts, times)
    chosen = _chosen(drafts, how.compiles)
    how.said(f"{len(drafts)} settings, {len(times.bounds_us)} kernels; {len(chosen)} are simulated")
    if not chosen:
        return times
    num_workers = how.workers or len(os.sched_getaffinity(0))
    evaluator = SimulatedEvaluator(
        num_workers=min(int(RANGES["workers"].check(num_workers, "workers")), len(chosen)),
        cache_dir=how.cache or default_cache_dir(),
        deadline_s=RANGES["deadline"].check(how.deadline_s, "deadline_s"),
    )
    started = time.monotonic()
    asked = _by_workload(drafts, chosen)
    try:
        chips = {one.chip.name: one.chip for _, candidates in asked for one in candidates}
        evaluator.prepare(chips.values())
        for workload, candidates in asked:
            for one in evaluator.simulate_all(candidates, workload):
                found = one.evaluation
                times.simulated[found.candidate.digest] = one
                text = f"{found.time_us:.1f} us" if found.ok else f"{found.status} {found.detail}"
                how.said(
                    f"[{time.monotonic() - started:6.1f} s] {len(times.simulated)}/{len(chosen)} "
                    f"{found.candidate.title}: {text}"
                )
    finally:
        evaluator.close()
    return times


def finish(draft: Draft, times: Times, roofline: Roofline | None) -> Row:
    """The row with its times.

    Args:
      draft: What it needs.
      times: Of its kernels.
      roofline: Of everything else; None where it is not known.
    """
    if draft.workload is None:
        return draft.row
    batches = [wb.batch for wb in draft.workload.batches]
    rest = None
    if roofline is not None:
        rest = [roofline.step_us(batch.num_tokens, batch.num_seqs) for batch in batches]
    parts = [(_attention(part, times, draft.workload), part.launched) for part in draft.parts]
    most = 1 + draft.server.num_speculative_tokens
    decodes = [i for i, batch in enumerate(batches) if max(batch.q_lens) <= most]
    others = [i for i in range(len(batches)) if i not in decodes]
    return replace(
        draft.row,
        decode=mean_phase(draft.workload, decodes, parts, rest),
        prefill=mean_phase(draft.workload, others, parts, rest),
        attention=tuple(attention for attention, _ in parts),
    )


def _bound(drafts: Sequence[Draft], times: Times) -> None:
    for one in drafts:
        if one.workload is None:
            continue
        candidates = [part.candidate for part in one.parts]
        for found in AnalyticalEvaluator().evaluate_all(candidates, one.workload):
            times.bounds_us[found.candidate.digest] = found.batch_us


def _chosen(drafts: Sequence[Draft], most: int) -> set[str]:
    """The kernels of as many settings as `most` is enough for, whole settings only."""
    chosen: set[str] = set()
    for one in filter(lambda one: one.can_be_had, drafts):
        wanted = chosen | {part.candidate.digest for part in one.parts}
        if len(wanted) > most:
            break
        chosen = wanted
    return chosen


def _by_workload(
    drafts: Sequence[Draft], chosen: set[str]
) -> list[tuple[Workload, list[Candidate]]]:
    """The chosen kernels, each once, with the steps that they are timed on."""
    found: dict[str, tuple[Workload, dict[str, Candidate]]] = {}
    for one in drafts:
        if one.workload is None:
            continue
        for part in one.parts:
            if part.candidate.digest in chosen:
                _, candidates = found.setdefault(one.workload.digest, (one.workload, {}))
                candidates[part.candidate.digest] = part.candidate
    return [(workload, list(candidates.values())) for workload, candidates in found.values()]


def _attention(part: Part, times: Times, workload: Workload) -> Attention:
    """A kernel with its time: simulated if there is one, else the bound."""
    digest, detail = part.candidate.digest, ""
    batch_us, set_us = times.bounds_us[digest], tuple[tuple[float, ...], ...]()
    time_us, between = _mean(batch_us, part, workload), None
    if (simulation := times.simulated.get(digest)) is not None:
        found = simulation.evaluation
        if found.ok and found.time_us is not None:
            time_us, batch_us = found.time_us, found.batch_us
            between = tuple(found.metrics["interval_us"])
            set_us = tuple(timeline.set_us for timeline in simulation.timelines)
        else:
            detail = f"{found.status} {found.detail}"
    return Attention(
        layers=part.share.name,
        num_layers=part.share.kind.num_layers or 0,
        family=part.family,
        source=part.source,
        config=config_to_dict(part.candidate.config),
        fidelity=SIMULATED if set_us else BOUND,
        time_us=time_us,
        interval_us=between,
        batch_us=batch_us,
        set_us=set_us,
        detail=detail,
    )


def _mean(batch_us: Sequence[float], part: Part, workload: Workload) -> float:
    weights = [workload.batches[i].weight for i in part.launched]
    return sum(us * w for us, w in zip(batch_us, weights, strict=True)) / sum(weights)
