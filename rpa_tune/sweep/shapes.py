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
from rpa_tune.workload.batches import WeightedBatch, combine
from rpa_tune.workload.build import Served, condense, serve
from rpa_tune.workload.spec import overlay, read_spec
from rpa_tune.workload.step import EngineStep
from rpa_tune.workload.workload import (
    Workload,
    is_weighted_set,
    load_workload,
    requests_of,
)

# A shape of few tokens takes ten thousands of steps to serve a trace; so many of them, evenly
# spaced, say as much.
_MOST_STEPS = 10_000
# Of each part of a set, which together have about as many as one workload.
_LEAST_BATCHES = 2

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


class ServedBy:
    """A workload as several servers serve it; what two of them serve alike is made once."""

    def __init__(self, workload: str | Mapping[str, Any]) -> None:
        """Serves nothing yet; `workload` is what `load_workload` takes."""
        self._workload = workload
        self._is_set = isinstance(workload, Mapping) and is_weighted_set(workload)
        self._known: dict[tuple[Any, ...], ServedSet] = {}

    def __call__(self, server: Server) -> "ServedWorkload | ServedSet":
        """The workload of one server.

        Raises:
          UsageError: A bad workload.
          TraceError: A bad file.
        """
        if not isinstance(self._workload, Mapping) or not self._is_set:
            return ServedWorkload(self._workload, server)
        # What is tuned of a server plays no part, nor its heads: only what it serves.
        whole = replace(server, only_tokens=(), only_families=())
        alike = (
            tuple(whole.shapes()), whole.engine, whole.page_size, whole.max_model_len,
            whole.max_num_seqs, whole.max_num_batched_tokens, whole.num_speculative_tokens,
            whole.decode_query_size, whole.ranks,
        )  # fmt: skip
        if alike not in self._known:
            self._known[alike] = ServedSet(self._workload, whole)
        return self._known[alike]


class ServedSet:
    """A weighted set of workloads as one server serves it."""

    def __init__(self, weights: Mapping[str, float], server: Server) -> None:
        """Serves nothing yet.

        Args:
          weights: Name or path of each part -> its weight.
          server: Its limits replace those of the parts' own engines.

        Raises:
          UsageError: A bad workload.
          TraceError: A bad file.
        """
        total = sum(weights.values())
        self._parts = [
            (part, weight / total, ServedWorkload(part, server, num_parts=len(weights)))
            for part, weight in weights.items()
        ]
        self._made: dict[tuple[tuple[Shape, ...], tuple[str, ...]], Workload] = {}

    def share_of(self, group: Group, family: Family) -> float:
        """The share of all launches that launch a family in the shapes of a group."""
        return sum(weight * part.share_of(group, family) for _, weight, part in self._parts)

    def of(self, group: Group, family: Family) -> Workload:
        """The batches that launch a family in the shapes of a group, as `ServedWorkload.of`."""
        key = (group.shapes, family.slots)
        if key not in self._made:
            self._made[key] = self._combined(group, family)
        return self._made[key]

    def _combined(self, group: Group, family: Family) -> Workload:
        shares = [weight * part.share_of(group, family) for _, weight, part in self._parts]
        is_padded = any(shares)
        used: list[tuple[str, float, Workload]] = []
        why: Exception | None = None
        for (name, weight, part), share in zip(self._parts, shares, strict=True):
            if is_padded and not share:
                continue
            try:
                used.append((name, share if is_padded else weight, part.of(group, family)))
            except (ValueError, UsageError) as error:
                why = error
        if not used:
            raise why or ValueError(f"no part of the set launches family {family.name!r}")
        made = combine([part for *_, part in used], [share for _, share, _ in used])
        total = sum(share for _, share, _ in used)
        said = ", ".join(f"{100 * share / total:.3g} % {name}" for name, share, _ in used)
        return replace(
            made,
            name=f"a set of {len(self._parts)} workloads, {_tokens_text(group)}",
            source=f"of its launches {said}, within the limits of the server",
        )


class ServedWorkload:
    """A workload as one server serves it."""

    def __init__(
        self, workload: str | Mapping[str, Any], server: Server, *, num_parts: int = 1
    ) -> None:
        """Serves nothing yet.

        Args:
          workload: What `load_workload` takes, a weighted set apart.
          server: Its limits replace those of the workload's own engine, and so does its pace unless
            this is one of several parts of a set.
          num_parts: Workloads of the set, which share the batches of one.

        Raises:
          UsageError: A bad workload.
          TraceError: A bad file.
        """
        self._server = server
        self._num_parts = num_parts
        self._mapping = requests_of(workload, server.page_size)
        self._whole = (
            load_workload(workload, page_size=server.page_size) if self._mapping is None else None
        )
        self._served: dict[int, Served] = {}
        self._landed: dict[tuple[str, ...], dict[Shape, list[int]]] = {}

    def share_of(self, group: Group, family: Family) -> float:
        """The share of all launches that launch a family in the shapes of a group."""
        if self._whole is not None:
            return sum(
                wb.weight
                for wb in self._whole.batches
                if any(map(wb.batch.family_seqs, family.slots))
                and any(s.holds(wb.batch.num_tokens, wb.batch.num_seqs) for s in group.shapes)
            )
        all_steps = self._serve(self._server.max_num_batched_tokens).steps
        return len(self._padded(group, family)) / len(all_steps)

    def of(self, group: Group, family: Family) -> Workload:
        """The batches that launch a family in the shapes of a group.

        Raises:
          UsageError: The workload has no step that fits.
          ValueError: It never launches the family.
        """
        if self._whole is not None:
            return _of_batches(self._whole, group, family)
        if padded := self._padded(group, family):
            served = self._serve(self._server.max_num_batched_tokens)
            return _made_of(served, padded, group, family)
        small = self._launching(group.largest.num_tokens, family)
        steps, what = _choose(small, group, lambda s: (int(s.q_lens.sum()), s.num_seqs))
        served = self._serve(group.largest.num_tokens)
        if not steps:
            raise ValueError(f"workload {served.spec.name!r} never launches family {family.name!r}")
        return _made_of(served, steps, group, family, what)

    def _launching(self, budget: int, family: Family) -> list[EngineStep]:
        return [step for step in self._serve(budget).steps if _launches(step, family)]

    def _padded(self, group: Group, family: Family) -> list[EngineStep]:
        """The steps that launch a family in the shapes of a group, in their order."""
        steps = self._serve(self._server.max_num_batched_tokens).steps
        if family.slots not in self._landed:
            landed: dict[Shape, list[int]] = {}
            shapes = list(self._server.shapes())
            for number, step in enumerate(steps):
                if _launches(step, family) and (shape := _lands(step, shapes)):
                    landed.setdefault(shape, []).append(number)
            self._landed[family.slots] = landed
        landed = self._landed[family.slots]
        numbers = sorted(n for shape in group.shapes for n in landed.get(shape, ()))
        return [steps[number] for number in numbers]

    def _serve(self, budget: int) -> Served:
        """The requests, served by an engine with a budget of so many tokens."""
        if budget not in self._served:
            server = self._server
            most_seqs = min(server.max_num_seqs, budget // (1 + server.num_speculative_tokens) or 1)
            knobs = server.knobs | {"max_num_batched_tokens": budget, "max_num_seqs": most_seqs}
            if self._num_parts > 1:
                knobs.pop("step_time", None)
            changes: dict[str, Any] = {
                "engine": knobs,
                "decode_query_size": server.decode_query_size,
            }
            spec = read_spec(overlay(self._mapping or {}, changes), page_size=server.page_size)
            if self._num_parts > 1 and spec.compress.batches:
                batches = max(_LEAST_BATCHES, spec.compress.batches // self._num_parts)
                spec = replace(spec, compress=replace(spec.compress, batches=batches))
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


def _lands(step: EngineStep, shapes: Sequence[Shape]) -> Shape | None:
    """The shape that a step is padded to: the first of all that takes it."""
    size = int(step.q_lens.sum()), step.num_seqs
    slots = {slot for slot, count in _counts(step).items() if count}
    return next((s for s in shapes if slots <= set(s.families) and s.holds(*size)), None)


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
