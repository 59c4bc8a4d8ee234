"""What the shapes of a server are judged on: the steps of a workload that are padded to each.

The requests of the workload are served once, under the server's limits and at the pace of its model
on its chip, and each step is assigned to the shape in which it would run. A step of few tokens is
rare on a busy server, and still compiled for: a shape that no step is padded to is judged on steps
of an engine whose budget is the shape's, or on those that fit it. Workloads that are no requests
(recordings, stored batches, weighted sets) give the batches they have.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from rpa_kernels.problem import Problem
from rpa_tune.errors import UsageError
from rpa_tune.families.family import Family
from rpa_tune.models.buckets import Shape
from rpa_tune.models.server import Server
from rpa_tune.sweep.launches import BoolArray, Launches
from rpa_tune.tables.key import TuningKey, studied_key, tuning_key
from rpa_tune.workload.batches import combine, plain_sum
from rpa_tune.workload.build import condense, serve
from rpa_tune.workload.spec import overlay, read_spec
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

# Name of a workload and the tokens of its engine's budget -> what was launched.
_Known = dict[tuple[str, int], Launches]


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
    found: dict[TuningKey, list[tuple[Shape, TuningKey, Problem]]] = {}
    for shape, bucket in zip(server.shapes(), server.buckets(problem), strict=True):
        if set(family.slots) & set(shape.families):
            key = tuning_key(bucket.problem, server.chip, family.name)
            found.setdefault(studied_key(key), []).append((shape, key, bucket.problem))
    groups = []
    for alike in found.values():
        rows = {key: each for _, key, each in alike}
        groups.append(Group(problems=tuple(rows.values()), shapes=tuple(s for s, *_ in alike)))
    return groups


class ServedBy:
    """A workload as several servers serve it; what two of them serve alike is made once."""

    def __init__(self, workload: str | Mapping[str, Any]) -> None:
        """Serves nothing yet; `workload` is what `load_workload` takes."""
        self._workload = workload
        self._is_set = isinstance(workload, Mapping) and is_weighted_set(workload)
        self._known: dict[tuple[Any, ...], ServedSet] = {}
        # Part and budget -> its launches, by all that they depend on; the shapes play no part.
        self._launches: dict[tuple[Any, ...], _Known] = {}

    def __call__(self, server: Server) -> "ServedWorkload | ServedSet":
        """The workload of one server.

        Raises:
          UsageError: A bad workload.
          TraceError: A bad file.
        """
        if not isinstance(self._workload, Mapping) or not self._is_set:
            return ServedWorkload(self._workload, server)
        # What is tuned of a server plays no part, nor its heads: only what it serves.
        alike = (
            server.engine, server.page_size, server.max_model_len, server.max_num_seqs,
            server.max_num_batched_tokens, server.num_speculative_tokens, server.decode_query_size,
            server.ranks,
        )  # fmt: skip
        padded = (*server.all_shapes(), *alike)
        if padded not in self._known:
            whole = replace(server, only_tokens=(), only_families=())
            launches = self._launches.setdefault(alike, {})
            self._known[padded] = ServedSet(self._workload, whole, launches)
        return self._known[padded]


class ServedSet:
    """A weighted set of workloads as one server serves it."""

    def __init__(self, weights: Mapping[str, float], server: Server, launches: _Known) -> None:
        """Serves nothing yet.

        Args:
          weights: Name or path of each part -> its weight.
          server: Its limits replace those of the parts' own engines.
          launches: What such servers have served already, and will.

        Raises:
          UsageError: A bad workload.
          TraceError: A bad file.
        """
        total = plain_sum(weights.values())
        self._parts = [
            (part, weight / total, ServedWorkload(part, server, len(weights), launches))
            for part, weight in weights.items()
        ]
        self._made: dict[tuple[tuple[Shape, ...], tuple[str, ...]], Workload] = {}

    def share_of(self, group: Group, family: Family) -> float:
        """The share of all launches that launch a family in the shapes of a group."""
        return plain_sum(weight * part.share_of(group, family) for _, weight, part in self._parts)

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
        total = plain_sum(share for _, share, _ in used)
        said = ", ".join(f"{100 * share / total:.3g} % {name}" for name, share, _ in used)
        return replace(
            made,
            name=f"a set of {len(self._parts)} workloads, {_tokens_text(group)}",
            source=f"of its launches {said}, within the limits of the server",
        )


class ServedWorkload:
    """A workload as one server serves it."""

    def __init__(
        self,
        workload: str | Mapping[str, Any],
        server: Server,
        num_parts: int = 1,
        launches: _Known | None = None,
    ) -> None:
        """Serves nothing yet.

        Args:
          workload: What `load_workload` takes, a weighted set apart.
          server: Its limits replace those of the workload's own engine, and so does its pace unless
            this is one of several parts of a set.
          num_parts: Workloads of the set, which share the batches of one.
          launches: What such servers have served already, and will.

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
        self._name = str(workload)
        self._launches: _Known = {} if launches is None else launches
        self._landed: dict[Shape, BoolArray] | None = None

    def share_of(self, group: Group, family: Family) -> float:
        """The share of all launches that launch a family in the shapes of a group."""
        if self._whole is not None:
            return plain_sum(
                wb.weight
                for wb in self._whole.batches
                if any(map(wb.batch.family_seqs, family.slots))
                and any(s.holds(wb.batch.num_tokens, wb.batch.num_seqs) for s in group.shapes)
            )
        is_padded = self._padded(group, family)
        return int(is_padded.sum()) / len(is_padded)

    def of(self, group: Group, family: Family) -> Workload:
        """The batches that launch a family in the shapes of a group.

        Raises:
          UsageError: The workload has no step that fits.
          ValueError: It never launches the family.
        """
        if self._whole is not None:
            return _of_batches(self._whole, group, family)
        if (is_padded := self._padded(group, family)).any():
            launches = self._serve(self._server.max_num_batched_tokens)
            return _made_of(launches, is_padded, group, family)
        small = self._serve(group.largest.num_tokens)
        launching = small.launching(family)
        if not launching.any():
            name = small.served.spec.name
            raise ValueError(f"workload {name!r} never launches family {family.name!r}")
        fitting = launching & small.held_by(group.shapes)
        if fitting.any():
            return _made_of(small, fitting, group, family)
        return _made_of(small, launching, group, family, least=1)

    def _padded(self, group: Group, family: Family) -> BoolArray:
        """bool[num_steps]: the steps that launch a family in the shapes of a group."""
        launches = self._serve(self._server.max_num_batched_tokens)
        if self._landed is None:
            shapes = list(self._server.shapes())
            landing = launches.landing(shapes)
            self._landed = {shape: landing == place for place, shape in enumerate(shapes)}
        nowhere = np.zeros(len(launches.served.steps), bool)
        landed = [self._landed.get(shape, nowhere) for shape in group.shapes]
        found: BoolArray = launches.launching(family) & np.any(landed, axis=0)
        return found

    def _serve(self, budget: int) -> Launches:
        """The requests, served by an engine with a budget of so many tokens."""
        if (self._name, budget) not in self._launches:
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
            self._launches[self._name, budget] = Launches(
                serve(spec, ranks=server.ranks, to_the_end=False)
            )
        return self._launches[self._name, budget]


def _made_of(
    launches: Launches, chosen: BoolArray, group: Group, family: Family, least: int | None = None
) -> Workload:
    """A few weighted batches of an engine's steps.

    Args:
      launches: All of them.
      chosen: bool[num_steps], at least one.
      group: Whose shapes they are judged for.
      family: Kernel family.
      least: Tokens of the smallest step, for its name; None for that of the shapes.
    """
    served = launches.served
    numbers = np.flatnonzero(chosen)
    thinned = numbers[:: -(-len(numbers) // _MOST_STEPS)]
    spec = replace(served.spec, name=f"{served.spec.name}, {_tokens_text(group, least)}")
    steps = tuple([served.steps[number] for number in thinned])
    return condense(replace(served, spec=spec, steps=steps)).workload.for_family(*family.slots)


def _of_batches(whole: Workload, group: Group, family: Family) -> Workload:
    """The batches of a workload that launch a family in the shapes of a group."""
    shape = group.largest
    launching = [
        wb
        for wb in whole.for_family(*family.slots).batches
        if wb.batch.num_tokens <= shape.num_tokens and wb.batch.num_seqs <= shape.num_seqs
    ]
    padded = [
        wb
        for wb in launching
        if any(s.holds(wb.batch.num_tokens, wb.batch.num_seqs) for s in group.shapes)
    ]
    kept = padded or launching
    if not kept:
        raise UsageError(
            f"workload {whole.name!r} has no batch with {family.name} sequences that fits "
            f"{shape.num_tokens} tokens and {shape.num_seqs} sequences",
            hint="name the shapes it has batches for (server: {tokens: [...]}), "
            "or give a workload of requests",
        )
    total = plain_sum(wb.weight for wb in kept)
    return replace(
        whole,
        name=f"{whole.name}, {_tokens_text(group, least=None if padded else 1)}",
        batches=tuple(replace(wb, weight=wb.weight / total) for wb in kept),
    )


def _tokens_text(group: Group, least: int | None = None) -> str:
    least = least or group.shapes[0].above_tokens + 1
    return f"{least} to {group.largest.num_tokens} tokens a step"
