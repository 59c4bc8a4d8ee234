"""What the shapes of a server are judged on: the steps of a workload that are padded to each.

The requests of the workload are served once, under the server's limits and at the pace of its model
on its chip, and each step is assigned to the shape in which it would run. A step of few tokens is
rare on a busy server, and still compiled for: a shape that no step is padded to is judged on steps
of an engine whose budget is the shape's, or on those that fit it. Workloads that are no requests
(recordings, stored batches, weighted sets) give the batches they have.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from rpa_kernels.problem import Problem
from rpa_tune.errors import UsageError
from rpa_tune.families.family import Family
from rpa_tune.models.buckets import Shape
from rpa_tune.models.server import Server
from rpa_tune.tables.key import TuningKey, studied_key, tuning_key
from rpa_tune.workload.batches import WeightedBatch
from rpa_tune.workload.build import Served, condense, serve
from rpa_tune.workload.spec import overlay, read_spec
from rpa_tune.workload.step import EngineStep
from rpa_tune.workload.workload import (
    Workload,
    load_workload,
    requests_of,
)

# A shape of few tokens takes ten thousands of steps to serve a trace; so many of them, evenly
# spaced, say as much.
_MOST_STEPS = 10_000

_Launch = TypeVar("_Launch", EngineStep, WeightedBatch)


@dataclass(frozen=True, kw_only=True, slots=True)
class Group:
    """Shapes whose rows are of one study.

    Attributes:
      problems: One for each row, the largest last: that is the one to time.
      shapes: All that share the rows, smallest first.
    """

    problems: tuple[Problem, ...]
    shapes: tuple[Shape, ...]

    @property
    def largest(self) -> Shape:
        """What is timed."""
        return self.shapes[-1]


def groups_of(server: Server, problem: Problem, family: Family) -> list[Group]:
    """The shapes in which sequences of a family can run, by study; smallest first.

    Args:
      server: Whose shapes.
      problem: Of one kind of its layers.
      family: Kernel family.
    """
    found: dict[TuningKey, list[tuple[Shape, Problem]]] = {}
    for shape, bucket in zip(server.shapes(), server.buckets(problem), strict=True):
        if set(family.slots) & set(shape.families):
            key = tuning_key(bucket.problem, server.chip, family.name)
            found.setdefault(studied_key(key), []).append((shape, bucket.problem))
    groups = []
    for pairs in found.values():
        rows = {tuning_key(each, server.chip, family.name): each for _, each in pairs}
        groups.append(Group(problems=tuple(rows.values()), shapes=tuple(s for s, _ in pairs)))
    return groups


class ServedWorkload:
    """A workload as one server serves it."""

    def __init__(self, workload: str | Mapping[str, Any], server: Server) -> None:
        """Serves nothing yet.

        Args:
          workload: What `load_workload` takes.
          server: Its limits and pace replace those of the workload's own engine.

        Raises:
          UsageError: A bad workload.
          TraceError: A bad file.
        """
        self._server = server
        self._mapping = requests_of(workload, server.page_size)
        self._whole = (
            load_workload(workload, page_size=server.page_size) if self._mapping is None else None
        )
        self._served: dict[int, Served] = {}

    def of(self, group: Group, family: Family) -> Workload:
        """The batches that launch a family in the shapes of a group.

        Raises:
          UsageError: The workload has no step that fits.
          ValueError: It never launches the family.
        """
        if self._whole is not None:
            return _of_batches(self._whole, group, family)
        server = self._server
        launching = self._launching(server.max_num_batched_tokens, family)
        padded = [step for step in launching if self._lands(step, group)]
        if padded:
            return _made_of(self._serve(server.max_num_batched_tokens), padded, group, family)
        small = self._launching(group.largest.num_tokens, family)
        steps, what = _choose(small, group, lambda s: (int(s.q_lens.sum()), s.num_seqs))
        served = self._serve(group.largest.num_tokens)
        if not steps:
            raise ValueError(f"workload {served.spec.name!r} never launches family {family.name!r}")
        return _made_of(served, steps, group, family, what)

    def _launching(self, budget: int, family: Family) -> list[EngineStep]:
        return [step for step in self._serve(budget).steps if _launches(step, family)]

    def _lands(self, step: EngineStep, group: Group) -> bool:
        """Whether a step is padded to one of the group: the first shape of all that takes it."""
        size = int(step.q_lens.sum()), step.num_seqs
        slots = {slot for slot, count in _counts(step).items() if count}
        for shape in self._server.shapes():
            if slots <= set(shape.families) and shape.holds(*size):
                return shape in group.shapes
        return False

    def _serve(self, budget: int) -> Served:
        """The requests, served by an engine with a budget of so many tokens."""
        if budget not in self._served:
            server = self._server
            most_seqs = min(server.max_num_seqs, budget // (1 + server.num_speculative_tokens) or 1)
            knobs = server.knobs | {"max_num_batched_tokens": budget, "max_num_seqs": most_seqs}
            changes: dict[str, Any] = {
                "engine": knobs,
                "decode_query_size": server.decode_query_size,
            }
            spec = read_spec(overlay(self._mapping or {}, changes), page_size=server.page_size)
            self._served[budget] = serve(spec, ranks=server.ranks)
        return self._served[budget]


def _made_of(
    served: Served, steps: Sequence[EngineStep], group: Group, family: Family, what: str = ""
) -> Workload:
    """A few weighted batches of an engine's steps."""
    name = f"{served.spec.name}, {what or _tokens_text(group)}"
    thinned = steps[:: -(-len(steps) // _MOST_STEPS) or 1]
    spec = replace(served.spec, name=name)
    kept = condense(replace(served, spec=spec, steps=tuple(thinned)))
    return kept.workload.for_family(*family.slots)


def _of_batches(whole: Workload, group: Group, family: Family) -> Workload:
    """The batches of a workload that launch a family in the shapes of a group."""
    shape = group.largest
    launching = [
        wb
        for wb in whole.for_family(*family.slots).batches
        if wb.batch.num_tokens <= shape.num_tokens and wb.batch.num_seqs <= shape.num_seqs
    ]
    kept, what = _choose(launching, group, lambda wb: (wb.batch.num_tokens, wb.batch.num_seqs))
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


def _counts(step: EngineStep) -> dict[str, int]:
    return {"decode": step.num_decode, "prefill": step.num_prefill, "mixed": step.num_mixed}


def _launches(step: EngineStep, family: Family) -> bool:
    return any(_counts(step)[slot] for slot in family.slots)


def _choose(
    launching: list[_Launch], group: Group, size: Callable[[_Launch], tuple[int, int]]
) -> tuple[list[_Launch], str]:
    """The launches that are padded to a group, or all if none is; and what they are, in words."""
    padded = [
        launch for launch in launching if any(shape.holds(*size(launch)) for shape in group.shapes)
    ]
    return padded or launching, _tokens_text(group, least=None if padded else 1)


def _tokens_text(group: Group, least: int | None = None) -> str:
    least = least or group.shapes[0].above_tokens + 1
    return f"{least} to {group.largest.num_tokens} tokens a step"
