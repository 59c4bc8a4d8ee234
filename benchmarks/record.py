"""Records the truth that `search.py` replays: a space, or a sample of it, simulated.

    python benchmarks/record.py PLAN.yaml --sample 80 --into truth

For every study of the plan a store, and beside it the truth alone as `NAME.truth.json.gz`, which
stays readable when configs change. The sample is drawn without looking at any answer; the heuristic
is always in it. What a store knows already is not asked again. Times are simulated.

    python benchmarks/record.py PLAN.yaml ... --sample 6 --known STORE.jsonl --cross --into truth

records what a sweep's store knows of each study in the place of a sample, and, with `--cross`, in
each space the best config of every other one whose row could stand in, for `expected_loss.py`.
Several plans have studies of their own even where one study would fill the rows of all.
"""

import gzip
import json
import random
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from rpa_kernels.infeasible import Infeasible
from rpa_tune.candidate import Evaluation, Fidelity
from rpa_tune.evaluate.analytical import AnalyticalEvaluator
from rpa_tune.evaluate.evaluator import AbstractEvaluator
from rpa_tune.evaluate.simulated import SimulatedEvaluator
from rpa_tune.provenance import provenance
from rpa_tune.store.codec import stamp_of
from rpa_tune.store.journal import Journal, read
from rpa_tune.sweep.plan import load_plan
from rpa_tune.sweep.study import Study, build_studies
from rpa_tune.tables.key import NEAREST_LIMIT, TuningKey, distance

SCHEMA = "rpa-truth/1"
RUNGS = (Fidelity.ANALYTICAL, Fidelity.SIMULATED)


def sample_of(study: Study, size: int) -> list[Any]:
    """The heuristic and at most `size - 1` other configs of the study's space."""
    configs = list(study.space().configs)
    random.Random(study.name).shuffle(configs)
    return list(dict.fromkeys([study.heuristic(), *configs]))[:size]


def known_of(study: Study, answers: Iterable[Evaluation]) -> list[Any]:
    """The configs of a study that a store has simulated."""
    return [
        answer.candidate.config
        for answer in answers
        if answer.candidate.study == study.digest and answer.fidelity is Fidelity.SIMULATED
    ]


def bests_of_others(study: Study, best: Mapping[str, tuple[TuningKey, Any]]) -> list[Any]:
    """The best configs of the spaces that a row of this study's key could be taken from.

    Args:
      study: Whose space.
      best: Study -> its key and best config.
    """
    near = [
        (away, name, config)
        for name, (key, config) in best.items()
        if (away := distance(study.key, key)) is not None and away <= NEAREST_LIMIT
    ]
    return [config for *_, config in sorted(near, key=lambda one: one[:2])]


def record(
    study: Study,
    configs: Sequence[Any],
    evaluators: Mapping[Fidelity, AbstractEvaluator],
    *,
    answers: Iterable[Evaluation] = (),
    folder: Path,
    half: str = "",
) -> tuple[Path, Any]:
    """Evaluates configs at both fidelities and writes the truth.

    Args:
      study: Whose space.
      configs: Of its space; those that cannot exist there are left out.
      evaluators: Of `RUNGS`.
      answers: What another store knows.
      folder: For the store and the truth.
      half: What `search.py` may use the space for: `design`, `held_out`, or empty.

    Returns:
      The file of the truth, and the config with the least time; None where none has one.
    """
    name = re.sub(r"[^\w.-]+", "-", "_".join([*study.name.split("/"), study.workload.name]))
    stamp = stamp_of(provenance(study.family.digest))
    can_exist = set(study.space().configs) | {study.heuristic()}
    kept = [config for config in dict.fromkeys(configs) if config in can_exist]
    candidates = [study.candidate(config) for config in kept]
    known: dict[Fidelity, list[Evaluation]] = {}
    with Journal(folder / f"{name}.jsonl", also_known=answers) as journal:
        for fidelity in RUNGS:
            todo = [c for c in candidates if not journal.find(c, fidelity, stamp)]
            click.echo(f"{name}: {len(todo)} {fidelity.name.lower()}")
            for evaluation in evaluators[fidelity].evaluate_all(todo, study.workload):
                journal.append(evaluation)
            found = [journal.find(c, fidelity, stamp) for c in candidates]
            known[fidelity] = [evaluation for evaluation in found if evaluation]
    path = folder / f"{name}.truth.json.gz"
    document = truth(study, known[Fidelity.ANALYTICAL], known[Fidelity.SIMULATED], half=half)
    text = json.dumps(document, separators=(",", ":")).replace("},{", "},\n{") + "\n"
    path.write_bytes(gzip.compress(text.encode(), mtime=0))
    timed = [e for e in known[Fidelity.SIMULATED] if e.time_us is not None]
    return path, min(timed, key=lambda e: e.time_us).candidate.config if timed else None


def truth(
    study: Study, bounds: Iterable[Evaluation], times: Iterable[Evaluation], *, half: str
) -> dict[str, Any]:
    """A space as plain numbers: config, bound and simulated time (null when it has none)."""
    bound_us = {e.candidate.config: e.time_us for e in bounds}
    rows = [
        {
            "config": asdict(e.candidate.config),
            "bound_us": bound_us.get(e.candidate.config),
            "time_us": e.time_us,
            "status": e.status.value,
        }
        for e in times
    ]
    # A heuristic from outside the axes is recorded as well: the axes have to hold it.
    values = {axis.name: {row["config"][axis.name] for row in rows} for axis in study.space().axes}
    return {
        "schema": SCHEMA,
        "study": study.name,
        "half": half,
        "workload": study.workload.name,
        "workload_digest": study.workload.digest,
        "problem": study.problem.to_dict(),
        "chip": study.chip.name,
        "family": study.family.name,
        "provenance": provenance(study.family.digest),
        "axes": {name: sorted(found) for name, found in values.items()},
        "heuristic": asdict(study.heuristic()),
        "configs": rows,
    }


@click.command()
@click.argument("plan_files", metavar="PLAN...", type=click.Path(path_type=Path), nargs=-1,
                required=True)  # fmt: skip
@click.option("--sample", default=80, show_default=True, help="Most configs of each study.")
@click.option("--half", type=click.Choice(("", "design", "held_out")), default="")
@click.option("--known", type=click.Path(path_type=Path), help="A store: what it knows, too.")
@click.option(
    "--cross", is_flag=True, help="In each space the best configs of its neighbours, too."
)
@click.option("--workers", default=1, show_default=True)
@click.option("--into", "folder", type=click.Path(path_type=Path), required=True)
def main(
    plan_files: tuple[Path, ...],
    sample: int,
    half: str,
    known: Path | None,
    cross: bool,
    workers: int,
    folder: Path,
) -> None:
    """Evaluates a sample of each study's space at both fidelities."""
    plans = [load_plan(plan_file) for plan_file in plan_files]
    simulated = SimulatedEvaluator(
        num_workers=workers, cache_dir=folder / "cache",
        deadline_s=max(plan.search.deadline_s for plan in plans),
    )  # fmt: skip
    evaluators = {Fidelity.ANALYTICAL: AnalyticalEvaluator(), Fidelity.SIMULATED: simulated}
    answers = read(known).evaluations if known else ()
    configs: dict[str, list[Any]] = {}
    best: dict[str, tuple[TuningKey, Any]] = {}
    studies = []
    try:
        for study in (study for plan in plans for study in build_studies(plan)):
            if isinstance(reason := study.heuristic(), Infeasible):
                click.echo(f"{study.name}: left out, no config to beat: {reason}")
                continue
            studies.append(study)
            of_store = known_of(study, answers)
            # A sweep has looked for the best already.
            configs[study.name] = sample_of(study, 1 if of_store else sample) + of_store
            path, winner = record(
                study, configs[study.name], evaluators, answers=answers, folder=folder, half=half
            )
            click.echo(path)
            if winner is not None:
                best[study.name] = study.key, winner
        for study in studies if cross else ():
            tried = [*configs[study.name], *bests_of_others(study, best)]
            click.echo(
                record(study, tried, evaluators, answers=answers, folder=folder, half=half)[0]
            )
    finally:
        simulated.close()


if __name__ == "__main__":
    main()
