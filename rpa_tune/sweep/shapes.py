"""What the shapes of a server are judged on: the steps of a workload that are padded to each.

The requests of the workload are served once for each shape, by an engine whose budget is the
shape's tokens: a step of few tokens is rare on a large server, and still compiled for. Workloads
that are no requests (recordings, stored batches, weighted sets) give the batches they have.
A shape that no step is padded to, or none of a family, is judged on the steps that fit it.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from rpa_kernels.problem import Problem
from rpa_tune.errors import UsageError
from rpa_tune.families.family import Family
from rpa_tune.models.buckets import Engine, Shape
from rpa_tune.workload.batches import WeightedBatch
from rpa_tune.workload.build import Served, condense, serve
from rpa_tune.workload.spec import CaptureSource, overlay, read_spec
from rpa_tune.workload.step import EngineStep
from rpa_tune.workload.workload import (
    Workload,
    is_weighted_set,
    load_stored,
    load_workload,
    mapping_of,
)

# A shape of few tokens takes ten thousands of steps to serve a trace; so many of them, evenly
# spaced, say as much.
_MOST_STEPS = 10_000

_Launch = TypeVar("_Launch", EngineStep, WeightedBatch)


@dataclass(frozen=True, kw_only=True, slots=True)
class ShapeWorkload:
    """What one shape is judged on.

    Attributes:
      shape: Tokens and sequences of the arrays.
      batches: Name of a family -> the batches that launch it.
    """

    shape: Shape
    batches: Mapping[str, Workload]


def shape_workloads(
    workload: str | Mapping[str, Any],
    limits: Engine,
    *,
    page_size: int,
    families: Sequence[Family],
) -> list[ShapeWorkload]:
    """The batches of each shape of a server.

    Args:
      workload: What `load_workload` takes.
      limits: Whose shapes; they replace those of the workload's own engine.
      page_size: Tokens in a KV cache page.
      families: Which families to find batches for.

    Raises:
      UsageError: A bad workload, or one without a step that fits some shape.
      TraceError: A bad file.
      ValueError: The workload never launches one of the families.
    """
    mapping = _requests_of(workload, page_size)
    whole = load_workload(workload, page_size=page_size) if mapping is None else None
    found = []
    for shape in limits.shapes():
        if mapping is not None:
            make = _made_of_steps(_serve(mapping, limits, shape, page_size), shape)
        else:
            make = _made_of_batches(whole, shape)  # type: ignore[arg-type]
        found.append(ShapeWorkload(shape=shape, batches={f.name: make(f) for f in families}))
    return found


def problem_of_shape(problem: Problem, limits: Engine, shape: Shape) -> Problem:
    """A problem with the arrays of a server's shape."""
    pages_per_seq = limits.pages_per_seq(problem.page_size)
    return replace(
        problem,
        max_num_tokens=shape.num_tokens,
        max_num_seqs=shape.num_seqs,
        pages_per_seq=pages_per_seq,
        num_pages=pages_per_seq * limits.max_num_seqs,
    )


def _requests_of(workload: str | Mapping[str, Any], page_size: int) -> Mapping[str, Any] | None:
    """The mapping of a workload that an engine serves; None for one that has its batches."""
    if isinstance(workload, str):
        if load_stored(workload) is not None:
            return None
        workload = mapping_of(workload)
    if is_weighted_set(workload):
        return None
    spec = read_spec(workload, page_size=page_size)
    return None if isinstance(spec.requests, CaptureSource) else workload


def _serve(mapping: Mapping[str, Any], limits: Engine, shape: Shape, page_size: int) -> Served:
    """The requests, served by an engine with the shape's budget."""
    engine = {
        "max_num_seqs": min(limits.max_num_seqs, shape.num_seqs, shape.num_tokens),
        "max_num_batched_tokens": shape.num_tokens,
        "max_model_len": limits.max_model_len,
    }
    return serve(read_spec(overlay(mapping, {"engine": engine}), page_size=page_size))


def _made_of_steps(served: Served, shape: Shape) -> Callable[[Family], Workload]:
    """Family -> its batches, made of an engine's steps."""

    def make(family: Family) -> Workload:
        launching = [step for step in served.steps if _launches(step, family)]
        steps, what = _choose(launching, shape, lambda s: (int(s.q_lens.sum()), s.num_seqs))
        thinned = steps[:: -(-len(steps) // _MOST_STEPS) or 1]
        if not thinned:
            raise ValueError(f"workload {served.spec.name!r} never launches family {family.name!r}")
        spec = replace(served.spec, name=f"{served.spec.name}, {what}")
        kept = condense(replace(served, spec=spec, steps=tuple(thinned)))
        return kept.workload.for_family(*family.slots)

    return make


def _made_of_batches(whole: Workload, shape: Shape) -> Callable[[Family], Workload]:
    """Family -> its batches, picked from those of a workload."""

    def make(family: Family) -> Workload:
        launching = [
            wb
            for wb in whole.for_family(*family.slots).batches
            if wb.batch.num_tokens <= shape.num_tokens and wb.batch.num_seqs <= shape.num_seqs
        ]
        kept, what = _choose(launching, shape, lambda wb: (wb.batch.num_tokens, wb.batch.num_seqs))
        if not kept:
            raise UsageError(
                f"workload {whole.name!r} has no batch with {family.name} sequences that fits "
                f"{shape.num_tokens} tokens and {shape.num_seqs} sequences",
                hint="name the shapes it has batches for (server: {tokens: [...]}), "
                "or give a workload of requests",
            )
        total = sum(wb.weight for wb in kept)
        return replace(
            whole,
            name=f"{whole.name}, {what}",
            batches=tuple(replace(wb, weight=wb.weight / total) for wb in kept),
        )

    return make


def _launches(step: EngineStep, family: Family) -> bool:
    count = {"decode": step.num_decode, "prefill": step.num_prefill, "mixed": step.num_mixed}
    return any(count[slot] for slot in family.slots)


def _choose(
    launching: list[_Launch], shape: Shape, size: Callable[[_Launch], tuple[int, int]]
) -> tuple[list[_Launch], str]:
    """The launches that are padded to a shape, or all if none is; and what they are, in words."""
    padded = [launch for launch in launching if shape.holds(*size(launch))]
    least = shape.above_tokens + 1 if padded else 1
    return padded or launching, f"{least} to {shape.num_tokens} tokens a step"
