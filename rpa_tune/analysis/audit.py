"""`audit`: every table look-up of a server, and where its config comes from."""

import dataclasses
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rpa_kernels.names import did_you_mean
from rpa_tune.dispatch.audit import Entry, look_up_families
from rpa_tune.dispatch.audit import audit as look_up
from rpa_tune.dispatch.dispatcher import Dispatcher, load_dispatcher
from rpa_tune.dispatch.select import Source
from rpa_tune.errors import UsageError
from rpa_tune.families.registry import load_family
from rpa_tune.libtpu_args import difference, parse_args
from rpa_tune.models.catalog import Share
from rpa_tune.models.server import Server, as_server
from rpa_tune.sweep.plan_for import AnySpec, never_launched, plan_text
from rpa_tune.sweep.shapes import Group, ServedBy
from rpa_tune.tables.reader import Tables

# Which coverages count as misses.
FAIL_ON = {
    "nearest": {Source.NEAREST, Source.HEURISTIC, Source.INFEASIBLE},
    "heuristic": {Source.HEURISTIC, Source.INFEASIBLE},
    "infeasible": {Source.INFEASIBLE},
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Audit:
    """Every look-up of a server.

    Attributes:
      server: Whose.
      found: Every look-up with the layers that it is for.
      misses: Those that are not covered.
      tables: Where they were looked up.
      libtpu_args: Flags that the server gives libtpu.
    """

    server: Server
    found: tuple[tuple[Share, Entry], ...]
    misses: tuple[Entry, ...]
    tables: Tables
    libtpu_args: str = ""

    @property
    def other_flags(self) -> Counter[str]:
        """Look-ups whose row was made with other flags of libtpu, by what differs."""
        differ = (
            difference(e.made_with, self.libtpu_args)
            for e in self.entries
            if e.made_with is not None
        )
        return Counter(text for text in differ if text)

    @property
    def entries(self) -> list[Entry]:
        """Every look-up."""
        return [entry for _, entry in self.found]

    @property
    def counts(self) -> Counter[Source]:
        """Look-ups by how well they are covered."""
        return Counter(entry.coverage for entry in self.entries)

    @property
    def tunable(self) -> list[Entry]:
        """Misses that a sweep can do something about."""
        return [entry for entry in self.misses if entry.coverage is not Source.INFEASIBLE]

    @property
    def ok(self) -> bool:
        """Whether every look-up is covered, and a kernel family serves all layers."""
        return not self.misses and not self.server.loaded.unserved

    @property
    def missing(self) -> Server:
        """The server with those of its shapes that have misses a sweep can do something about."""
        tokens = {entry.problem.max_num_tokens for entry in self.tunable}
        if tokens == {shape.num_tokens for shape in self.server.shapes()}:
            return self.server
        return dataclasses.replace(self.server, only_tokens=tuple(sorted(tokens)))

    def plan_text(self, workload: AnySpec) -> str:
        """A sweep plan, as YAML, that tunes the misses.

        Args:
          workload: A preset, a file or a mapping.

        Raises:
          UsageError: Nothing to tune, or a workload that launches none of the families.
        """
        if not self.tunable:
            raise UsageError("nothing to tune: no plan is written")
        about = f"What rpa-tune audit finds untuned for {self.server.model} on {self.server.chip}."
        families = tuple({entry.family for entry in self.tunable})
        text, _ = plan_text((self.missing,), workload=workload, families=families, about=about)
        return text

    def left_out_of_plan(self, workload: AnySpec) -> dict[str, str]:
        """Families with misses that the workload never launches, and why."""
        families = sorted({entry.family for entry in self.tunable})
        return never_launched((self.server,), workload, families)


def audit(
    server: Server | Mapping[str, Any],
    *,
    tables: str | Path | None = None,
    fail_on: str = "heuristic",
    libtpu_args: str = "",
) -> Audit:
    """Lists every table look-up of a server, and where its config comes from.

    A model with several kinds of layers has every look-up once per kind.

    Args:
      server: Its options, or a mapping of them.
      tables: Tables that take precedence over the shipped ones.
      fail_on: This coverage, and worse, counts as a miss: `nearest`, `heuristic` or `infeasible`.
      libtpu_args: The server's `LIBTPU_INIT_ARGS`: rows that were made with others are named.

    Raises:
      UsageError: Options that do not go together.
      TableError: A table does not parse.
    """
    (found,) = audit_all([server], tables=tables, fail_on=fail_on, libtpu_args=libtpu_args)
    return found


def audit_all(
    servers: Iterable[Server | Mapping[str, Any]],
    *,
    tables: str | Path | None = None,
    fail_on: str = "heuristic",
    libtpu_args: str = "",
) -> list[Audit]:
    """`audit` of several servers, in their order; the tables of a chip are loaded once.

    Args:
      servers: See `audit`, as all others.
      tables: Tables that take precedence.
      fail_on: What counts as a miss.
      libtpu_args: Flags of all servers.

    Raises:
      UsageError: As `audit`.
      TableError: As `audit`.
    """
    if fail_on not in FAIL_ON:
        raise UsageError(
            f"{fail_on!r} is not one of {', '.join(FAIL_ON)}",
            where="fail_on",
            hint=did_you_mean(fail_on, FAIL_ON),
        )
    flags = parse_args(libtpu_args)
    dispatchers: dict[str, Dispatcher] = {}
    audits = []
    for server in map(as_server, servers):
        if server.chip not in dispatchers:
            folder = None if tables is None else Path(tables)
            dispatchers[server.chip] = load_dispatcher(server.chip, folder)
        found = _look_ups(server, dispatchers[server.chip])
        audits.append(
            Audit(
                server=server,
                found=found,
                misses=tuple(entry for _, entry in found if entry.coverage in FAIL_ON[fail_on]),
                tables=dispatchers[server.chip].tables,
                libtpu_args=flags,
            )
        )
    return audits


def _look_ups(server: Server, dispatcher: Dispatcher) -> tuple[tuple[Share, Entry], ...]:
    return tuple(
        (share, entry)
        for share in server.layers()
        for bucket in server.buckets(share.problem)
        for entry in look_up(dispatcher, [bucket.problem], bucket.families)
    )


def traffic(found: Audit, workload: str | Mapping[str, Any]) -> dict[Source, float]:
    """The share of a server's kernel launches by how well their look-up is covered.

    A step launches a kernel of each family that it has sequences of, once for every layer. Steps
    are those of a workload that the server serves, in the shapes that they are padded to.

    Args:
      found: An audit.
      workload: A preset, a file, or a weighted set; see `load_workload`.

    Returns:
      Shares that sum to 1; of coverages without launches none.

    Raises:
      UsageError: A bad workload, or one that never launches a kernel here.
    """
    server = found.server
    served = ServedBy(workload)(server)
    launches: dict[Source, float] = {}
    entries = iter(found.found)
    for share in server.layers():
        buckets = server.buckets(share.problem)
        for shape, bucket in zip(server.shapes(), buckets, strict=True):
            group = Group(problems=(bucket.problem,), shapes=(shape,))
            for _ in look_up_families(bucket.problem, bucket.families):
                _, entry = next(entries)
                part = served.share_of(group, load_family(entry.family))
                launched = part * (share.kind.num_layers or 1)
                launches[entry.coverage] = launches.get(entry.coverage, 0.0) + launched
    total = sum(launches.values())
    if not total:
        raise UsageError(f"workload {workload!r} launches no kernel in the shapes of this server")
    return {coverage: number / total for coverage, number in launches.items() if number}
