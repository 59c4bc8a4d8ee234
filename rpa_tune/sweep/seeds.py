"""Where a search starts beside the heuristic: configs that won for neighbouring problems.

A winner may come from an earlier study of the same run, from the store, from tables, or from what
others tuned and shipped with a public kernel. A sweep that is resumed must ask the same questions
as one that never stopped, so of store and tables only what the run itself does not write counts:
the store's answers for other problems, or of older kernels, simulators and compilers; the tables'
rows under other keys.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rpa_tune.candidate import Candidate, Evaluation, Fidelity
from rpa_tune.decide.objective import EXPECTED_TIME, yardstick
from rpa_tune.decide.promote import Decision
from rpa_tune.families.registry import known_family
from rpa_tune.provenance import provenance
from rpa_tune.store.codec import stamp_of
from rpa_tune.sweep.study import Study
from rpa_tune.tables.key import TuningKey, distance, tuning_key
from rpa_tune.tables.reader import load_tables
from rpa_tune.tables.row import TableRow

MAX_SEEDS = 2


@dataclass(frozen=True, kw_only=True, slots=True)
class Winner:
    """A config that won somewhere.

    Attributes:
      key: The problem, chip and family that it won for.
      config: The family's config record.
    """

    key: TuningKey
    config: Any


def neighbour_seeds(study: Study, winners: Sequence[Winner]) -> list[Any]:
    """The winners' configs that a study starts from, nearest problem first.

    Args:
      study: About to be searched.
      winners: Of any family; of equally near ones the first counts.

    Returns:
      At most `MAX_SEEDS` configs that fit.
    """
    check, target = study.family.check, study.chip.target
    configs = nearest_first(study.key, winners)
    return [c for c in configs if check(study.problem, c, target) is None][:MAX_SEEDS]


def nearest_first(key: TuningKey, winners: Iterable[Winner]) -> list[Any]:
    """Configs of winners that could stand in for a key, without repeats.

    What fits one chip may be a good start on another, so that the chip only decides between
    winners for the same problem.
    """
    ranked = []
    for winner in winners:
        if winner.key.family == key.family:
            away = distance(key, replace(winner.key, chip=key.chip))
            if away is not None:
                ranked.append((away, winner.key.chip != key.chip, winner.config))
    ranked.sort(key=lambda entry: entry[:2])
    return list(dict.fromkeys(config for _, _, config in ranked))


def decided(decisions: Iterable[Decision]) -> list[Winner]:
    """The winners of studies of this run, in the order of the decisions."""
    return [_winner(decision.chosen.candidate) for decision in decisions]


def winners_before(
    studies: Sequence[Study],
    answers: Iterable[Evaluation],
    table_folders: Iterable[Path],
    *,
    asks_packages: bool = True,
) -> list[Winner]:
    """What won before a run: by its store, by tables, as shipped; see `Sweep.winners`.

    Args:
      studies: All of the run.
      answers: All of its store.
      table_folders: Those that exist are read, later ones win.
      asks_packages: Whether what others shipped counts; it depends on what is installed.

    Raises:
      TableError: A table does not parse.
      UsageError: A table that came with a public kernel is damaged.
    """
    rows = load_tables([folder for folder in table_folders if folder.is_dir()])
    shipped = winners_shipped(studies) if asks_packages else []
    return [*winners_of_store(answers, studies), *winners_of_tables(rows, studies), *shipped]


def winners_of_store(answers: Iterable[Evaluation], studies: Sequence[Study]) -> list[Winner]:
    """The fastest config of each problem that a store knows, by the versions it saw last.

    Args:
      answers: All of a store, in any order.
      studies: Of the run; today's answers to them are left out.
    """
    today = {study.family: stamp_of(provenance(study.family.digest)) for study in studies}
    own = {(study.family, study.problem, study.chip, study.workload.digest) for study in studies}
    rounds: dict[Any, dict[Any, list[Evaluation]]] = {}
    for answer in answers:
        if answer.fidelity not in (Fidelity.SIMULATED, Fidelity.MEASURED) or not answer.ok:
            continue
        asked, stamp = answer.candidate, stamp_of(answer.provenance)
        question = (asked.family, asked.problem, asked.chip, asked.workload)
        if question not in own or stamp != today[asked.family]:
            rounds.setdefault(question, {}).setdefault(stamp, []).append(answer)
    best = [_best(max(by_stamp.values(), key=_last_time)) for by_stamp in rounds.values()]
    # Not in the order of the store: the files of shards are read in another order by each shard.
    return [_winner(e.candidate) for e in sorted(best, key=lambda e: e.candidate.digest)]


def winners_of_tables(rows: Iterable[TableRow], studies: Sequence[Study]) -> list[Winner]:
    """The configs of table rows, but for those of kernels that are unknown or have other fields.

    Args:
      rows: Of all families and chips.
      studies: Of the run; rows under their keys are left out.
    """
    own = {study.key for study in studies}
    winners = []
    for row in rows:
        family = known_family(row.key.family)
        if family is None or row.key in own:
            continue
        for fields in row.configs:
            try:
                winners.append(Winner(key=row.key, config=family.config_from_dict(fields)))
            except ValueError:
                continue
    return winners


def winners_shipped(studies: Sequence[Study]) -> list[Winner]:
    """What others tuned and shipped with a run's kernels, for these very problems or others."""
    return [
        Winner(key=tuning_key(problem, chip, family.name), config=config)
        for family in dict.fromkeys(study.family for study in studies)
        for chip, problem, config in family.shipped_configs()
    ]


def _winner(candidate: Candidate) -> Winner:
    key = tuning_key(candidate.problem, candidate.chip.name, candidate.family.name)
    return Winner(key=key, config=candidate.config)


def _last_time(answers: Sequence[Evaluation]) -> str:
    """When the last of them was given; ISO 8601 sorts as text."""
    return max(str(answer.provenance.get("time") or "") for answer in answers)


def _best(answers: Sequence[Evaluation]) -> Evaluation:
    """The fastest at the highest fidelity among them."""
    top = max(answer.rung for answer in answers)
    measure = yardstick(answers, EXPECTED_TIME)
    return min(
        (answer for answer in answers if answer.fidelity is top),
        key=lambda answer: (measure.loss(answer), answer.candidate.digest),
    )
