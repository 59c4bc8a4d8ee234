"""What one run of a sweep has to do, and what the files beside its store know of it."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rpa_tune.candidate import Evaluation
from rpa_tune.errors import StoreError
from rpa_tune.store import journal as store
from rpa_tune.store.notes import StudyPlan
from rpa_tune.store.shards import Shard, find_shards, parse_shard, read_others, require_idle
from rpa_tune.sweep.lineup import line_up
from rpa_tune.sweep.plan import SweepPlan, load_plan
from rpa_tune.sweep.study import Study, build_studies


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """What this run does of a sweep.

    Attributes:
      plan: What is swept.
      studies: All of the plan.
      mine: Those that this run does.
      shard: Which part that is; None for all.
      num_shards: Runs that the studies are dealt out to.
      store_file: What `--store` is, or would be.
      own: The file to write to.
      known: What the other files know.
      answers: What all files know.
      plans: What all files know of earlier runs' studies.
    """

    plan: SweepPlan
    studies: list[Study]
    mine: list[Study]
    shard: Shard | None
    num_shards: int
    store_file: Path
    own: Path
    known: list[Evaluation]
    answers: list[Evaluation]
    plans: list[StudyPlan]


def open_job(
    plan: str | Path | Mapping[str, Any] | SweepPlan,
    store_file: str | Path | None = None,
    shard_text: str | None = None,
) -> Job:
    """Looks at what lies beside the store.

    Args:
      plan: What is swept: a file, the name of a shipped plan, a mapping, or a plan.
      store_file: Where answers are kept; `.rpa-tune/PLAN.jsonl` if None.
      shard_text: `I/N`; None for all of it.

    Raises:
      UsageError: There is no such plan, or something in it is wrong.
      StoreError: The shards beside the store are no parts of this sweep, or not yet at their end.
    """
    plan = plan if isinstance(plan, SweepPlan) else load_plan(plan)
    studies = build_studies(plan)
    store_file = Path(store_file) if store_file else Path(".rpa-tune") / f"{plan.name}.jsonl"
    shard = parse_shard(shard_text) if shard_text else None
    found = find_shards(store_file)
    own = store_file if shard is None else shard.path(store_file)
    counts = {other.count for other in found} | ({shard.count} if shard else set())
    if shard and len(counts) > 1:
        raise StoreError(
            f"shard {shard} does not match the shards beside the store, which are parts of "
            f"{min(counts - {shard.count})}",
            where=str(store_file),
            hint="remove those, or use another --store",
        )
    if shard is None:
        require_idle(found, store_file)
    num_shards = max(counts, default=1)
    places = line_up(studies, num_shards)
    mine = [studies[p.index] for p in places if shard is None or p.shard == shard.index]
    others = read_others(store_file, own)
    known = [evaluation for contents in others for evaluation in contents.evaluations]
    mine_before = store.read(own)
    return Job(
        plan=plan,
        studies=studies,
        mine=mine,
        shard=shard,
        num_shards=num_shards,
        store_file=store_file,
        own=own,
        known=known,
        answers=[*known, *mine_before.evaluations],
        plans=[plan for contents in (*others, mine_before) for plan in contents.plans],
    )
