"""Of many servers, how many look-ups are answered from where: `audit --servers`."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from rpa_tune.analysis.audit import Audit
from rpa_tune.dispatch.audit import Entry
from rpa_tune.dispatch.select import Source

# A nearest row that is expected to lose as much is no better than a guess.
MOST_LOSS_PCT = 2.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Coverage:
    """The look-ups of all servers of one engine on one chip.

    Attributes:
      chip: Chip name.
      engine: Serving engine.
      num_servers: Servers.
      models: Their models.
      covered: Those of which every look-up of every server is exact, or nearest with an expected
        loss of less than `MOST_LOSS_PCT`.
      exact: Look-ups with a row of their own.
      near: Look-ups whose nearest row is expected to lose less than `MOST_LOSS_PCT`.
      far: Look-ups whose nearest row is expected to lose more, or nobody knows how much.
      heuristic: Look-ups without a row.
      infeasible: Look-ups that no config serves.
    """

    chip: str
    engine: str
    num_servers: int
    models: tuple[str, ...]
    covered: tuple[str, ...]
    exact: int
    near: int
    far: int
    heuristic: int
    infeasible: int

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        return {
            "chip": self.chip,
            "engine": self.engine,
            "servers": self.num_servers,
            "models": len(self.models),
            "models_covered": list(self.covered),
            "models_not_covered": [name for name in self.models if name not in self.covered],
            "look_ups": {
                "exact": self.exact,
                "nearest_below": self.near,
                "nearest_above": self.far,
                "heuristic": self.heuristic,
                "infeasible": self.infeasible,
            },
        }


def coverage(audits: Iterable[Audit]) -> list[Coverage]:
    """What the look-ups of servers come to by chip and engine, in their order."""
    groups: dict[tuple[str, str], list[Audit]] = {}
    for audit in audits:
        groups.setdefault((audit.server.chip, audit.server.engine), []).append(audit)
    return [_of_group(chip, engine, found) for (chip, engine), found in groups.items()]


def _of_group(chip: str, engine: str, found: list[Audit]) -> Coverage:
    entries = [entry for audit in found for entry in audit.entries]
    models = dict.fromkeys(audit.server.model for audit in found)
    missing = {audit.server.model for audit in found if not all(map(_is_covered, audit.entries))}
    nearest = [entry for entry in entries if entry.coverage is Source.NEAREST]
    near = sum(map(_is_covered, nearest))
    by_source = {source: sum(e.coverage is source for e in entries) for source in Source}
    return Coverage(
        chip=chip,
        engine=engine,
        num_servers=len(found),
        models=tuple(models),
        covered=tuple(name for name in models if name not in missing),
        exact=by_source[Source.EXACT],
        near=near,
        far=len(nearest) - near,
        heuristic=by_source[Source.HEURISTIC],
        infeasible=by_source[Source.INFEASIBLE],
    )


def _is_covered(entry: Entry) -> bool:
    if entry.coverage is not Source.NEAREST:
        return entry.coverage is Source.EXACT
    loss_pct = entry.expected_loss_pct
    return loss_pct is not None and loss_pct < MOST_LOSS_PCT
