"""What one run of `rpa-tune sweep` has to do, and what the files beside its store know of it."""

from dataclasses import dataclass
from pathlib import Path

from rpa_tune.candidate import Evaluation
from rpa_tune.cli.layers_text import print_layers
from rpa_tune.errors import StoreError
from rpa_tune.models import load_model
from rpa_tune.store import journal as store
from rpa_tune.store.notes import StudyPlan
from rpa_tune.store.shards import Shard, find_shards, parse_shard, read_others, require_idle
from rpa_tune.sweep.lineup import line_up
from rpa_tune.sweep.plan import SweepPlan
from rpa_tune.sweep.study import Study, build_studies


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """What this run does of a sweep.

    Attributes:
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

    studies: list[Study]
    mine: list[Study]
    shard: Shard | None
    num_shards: int
    store_file: Path
    own: Path
    known: list[Evaluation]
    answers: list[Evaluation]
    plans: list[StudyPlan]


def open_job(plan: SweepPlan, store_file: Path | None, shard_text: str | None) -> Job:
    """Looks at what lies beside the store.

    Args:
      plan: What is swept.
      store_file: Where answers are kept; the plan's own place if None.
      shard_text: `I/N`; None for all of it.

    Raises:
      StoreError: The shards beside the store are no parts of this sweep, or not yet at their end.
    """
    studies = build_studies(plan)
    _say_layers(plan, studies)
    store_file = store_file or Path(".rpa-tune") / f"{plan.name}.jsonl"
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


def _say_layers(plan: SweepPlan, studies: list[Study]) -> None:
    """Which layers the studies are for, where a model has several kinds or some are left out."""
    context = max(study.problem.max_context_tokens for study in studies)
    for name in plan.models:
        model = load_model(name).within(context)
        if len(model.kinds) > 1 or model.other_layers or model.notes:
            print_layers(model, err=True)
