"""`audit`: every table look-up of a server, and where its config comes from."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from rpa_kernels.names import did_you_mean
from rpa_tune.analysis.audit_plan import left_out_of_plan, plan_text
from rpa_tune.dispatch.audit import Entry
from rpa_tune.dispatch.audit import audit as look_up
from rpa_tune.dispatch.dispatcher import load_dispatcher
from rpa_tune.dispatch.select import Source
from rpa_tune.errors import UsageError
from rpa_tune.models.catalog import Share
from rpa_tune.models.server import Server

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
    """

    server: Server
    found: tuple[tuple[Share, Entry], ...]
    misses: tuple[Entry, ...]

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

    def plan_text(self, workload: str) -> str:
        """A sweep plan, as YAML, that tunes the misses.

        Args:
          workload: A preset, or a file.

        Raises:
          UsageError: Nothing to tune, or a workload that launches none of the families.
        """
        if not self.tunable:
            raise UsageError("nothing to tune: no plan is written")
        return plan_text(self.server, self.tunable, workload)

    def left_out_of_plan(self, workload: str) -> dict[str, str]:
        """Families with misses that the workload never launches, and why."""
        return left_out_of_plan(self.server, self.tunable, workload)


def audit(server: Server, *, tables: str | Path | None = None, fail_on: str = "heuristic") -> Audit:
    """Lists every table look-up of a server, and where its config comes from.

    A model with several kinds of layers has every look-up once per kind.

    Args:
      server: Its options.
      tables: Tables that take precedence over the shipped ones.
      fail_on: This coverage, and worse, counts as a miss: `nearest`, `heuristic` or `infeasible`.

    Raises:
      UsageError: Options that do not go together.
      TableError: A table does not parse.
    """
    if fail_on not in FAIL_ON:
        raise UsageError(
            f"{fail_on!r} is not one of {', '.join(FAIL_ON)}",
            where="fail_on",
            hint=did_you_mean(fail_on, FAIL_ON),
        )
    dispatcher = load_dispatcher(server.chip, None if tables is None else Path(tables))
    found: list[tuple[Share, Entry]] = []
    for share in server.layers():
        buckets = (bucket.problem for bucket in server.buckets(share.problem))
        entries = look_up(dispatcher, buckets, server.families)
        found += [(share, entry) for entry in entries]
    misses = tuple(entry for _, entry in found if entry.coverage in FAIL_ON[fail_on])
    return Audit(server=server, found=tuple(found), misses=misses)
