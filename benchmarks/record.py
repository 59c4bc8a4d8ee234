"""Records the truth that `search.py` replays: every config of a sample, simulated.

    python benchmarks/record.py sweeps/quickstart.yaml --chips v6e,v5e --sample 80 --into truth

One store per study of the plan, and beside it the truth alone as `NAME.truth.json`, which stays
readable when configs change. The sample is drawn without looking at any answer; the heuristic is
always in it. What a store knows already is not asked again. Times are simulated.
"""

import json
import random
from collections.abc import Iterable, Iterator
from dataclasses import asdict, replace
from pathlib import Path

import click

from rpa_tune.candidate import Candidate, Evaluation, Fidelity
from rpa_tune.evaluate.analytical import AnalyticalEvaluator
from rpa_tune.evaluate.simulated import SimulatedEvaluator
from rpa_tune.provenance import provenance
from rpa_tune.store.codec import stamp_of
from rpa_tune.store.journal import Journal
from rpa_tune.sweep.plan import load_plan
from rpa_tune.sweep.study import Study, build_studies


def sample_of(study: Study, size: int) -> Iterator[Candidate]:
    """The heuristic and `size - 1` others of the study's space."""
    configs = list(study.space().configs)
    random.Random(study.name).shuffle(configs)
    for config in list(dict.fromkeys([study.heuristic(), *configs]))[:size]:
        yield study.candidate(config)


def write_truth(path: Path, study: Study, evaluations: Iterable[Evaluation]) -> None:
    """The sample as plain numbers: config, bound and simulated time (null when it has none)."""
    bounds, times, statuses = {}, {}, {}
    for evaluation in evaluations:
        config = evaluation.candidate.config
        if evaluation.fidelity is Fidelity.ANALYTICAL:
            bounds[config] = evaluation.time_us
        else:
            times[config], statuses[config] = evaluation.time_us, evaluation.status.value
    document = {
        "schema": "rpa-truth/1",
        "study": study.name,
        "workload": study.workload.name,
        "provenance": provenance(study.family),
        "axes": {axis.name: axis.values for axis in study.space().axes},
        "heuristic": asdict(study.heuristic()),
        "configs": [
            {
                "config": asdict(config),
                "bound_us": bounds.get(config),
                "time_us": times[config],
                "status": statuses[config],
            }
            for config in times
        ],
    }
    path.write_text(json.dumps(document, separators=(",", ":")).replace("},{", "},\n{") + "\n")


@click.command()
@click.argument("plan_file", type=click.Path(path_type=Path))
@click.option("--chips", help="Comma-separated, instead of the plan's.")
@click.option("--models", help="Comma-separated, instead of the plan's.")
@click.option("--workload", help="A preset, instead of the plan's.")
@click.option("--families", help="Comma-separated, instead of the plan's.")
@click.option("--sample", default=80, show_default=True, help="Configs of each study.")
@click.option("--workers", default=1, show_default=True)
@click.option("--into", "folder", type=click.Path(path_type=Path), required=True)
def main(
    plan_file: Path,
    chips: str | None,
    models: str | None,
    workload: str | None,
    families: str | None,
    sample: int,
    workers: int,
    folder: Path,
) -> None:
    """Evaluates a sample of each study's space at both fidelities."""
    plan = load_plan(plan_file)
    plan = replace(
        plan,
        chips=tuple(chips.split(",")) if chips else plan.chips,
        models=tuple(models.split(",")) if models else plan.models,
        families=tuple(families.split(",")) if families else plan.families,
        workload=workload or plan.workload,
    )
    simulated = SimulatedEvaluator(num_workers=workers, cache_dir=folder / "cache")
    for study in build_studies(plan):
        name = "_".join([*study.name.split("/"), study.workload.name])
        stamp = stamp_of(provenance(study.family))
        candidates = list(sample_of(study, sample))
        with Journal(folder / f"{name}.jsonl") as journal:
            for evaluator in (AnalyticalEvaluator(), simulated):
                todo = [c for c in candidates if not journal.find(c, evaluator.fidelity, stamp)]
                click.echo(f"{name}: {len(todo)} {evaluator.fidelity.name.lower()}")
                for evaluation in evaluator.evaluate_all(todo, study.workload):
                    journal.append(evaluation)
            wanted = {candidate.digest for candidate in candidates}
            known = [e for e in journal.evaluations() if e.candidate.digest in wanted]
            write_truth(folder / f"{name}.truth.json", study, known)
    simulated.close()


if __name__ == "__main__":
    main()
