"""Records the truth that `search.py` replays: a space, or a sample of it, simulated.

    python benchmarks/record.py PLAN.yaml --sample 80 --into truth

For every study of the plan a store, and beside it the truth alone as `NAME.truth.json.gz`, which
stays readable when configs change. The sample is drawn without looking at any answer; the heuristic
is always in it. What a store knows already is not asked again. Times are simulated.
"""

import gzip
import json
import random
import re
from collections.abc import Iterable, Mapping
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
from rpa_tune.store.journal import Journal
from rpa_tune.sweep.plan import load_plan
from rpa_tune.sweep.study import Study, build_studies

SCHEMA = "rpa-truth/1"
RUNGS = (Fidelity.ANALYTICAL, Fidelity.SIMULATED)


def sample_of(study: Study, size: int) -> list[Any]:
    """The heuristic and at most `size - 1` other configs of the study's space."""
    configs = list(study.space().configs)
    random.Random(study.name).shuffle(configs)
    return list(dict.fromkeys([study.heuristic(), *configs]))[:size]


def record(
    study: Study,
    evaluators: Mapping[Fidelity, AbstractEvaluator],
    *,
    sample: int,
    folder: Path,
    half: str = "",
) -> Path:
    """Evaluates a sample at both fidelities and writes the truth.

    Args:
      study: Whose space.
      evaluators: Of `RUNGS`.
      sample: Most configs.
      folder: For the store and the truth.
      half: What `search.py` may use the space for: `design`, `held_out`, or empty.

    Returns:
      The file of the truth.
    """
    name = re.sub(r"[^\w.-]+", "-", "_".join([*study.name.split("/"), study.workload.name]))
    stamp = stamp_of(provenance(study.family.digest))
    candidates = [study.candidate(config) for config in sample_of(study, sample)]
    known: dict[Fidelity, list[Evaluation]] = {}
    with Journal(folder / f"{name}.jsonl") as journal:
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
    return path


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
@click.argument("plan_file", metavar="PLAN", type=click.Path(path_type=Path))
@click.option("--sample", default=80, show_default=True, help="Most configs of each study.")
@click.option("--half", type=click.Choice(("", "design", "held_out")), default="")
@click.option("--workers", default=1, show_default=True)
@click.option("--into", "folder", type=click.Path(path_type=Path), required=True)
def main(plan_file: Path, sample: int, half: str, workers: int, folder: Path) -> None:
    """Evaluates a sample of each study's space at both fidelities."""
    plan = load_plan(plan_file)
    simulated = SimulatedEvaluator(
        num_workers=workers, cache_dir=folder / "cache", deadline_s=plan.search.deadline_s
    )
    evaluators = {Fidelity.ANALYTICAL: AnalyticalEvaluator(), Fidelity.SIMULATED: simulated}
    try:
        for study in build_studies(plan):
            if isinstance(reason := study.heuristic(), Infeasible):
                click.echo(f"{study.name}: left out, no config to beat: {reason}")
                continue
            click.echo(record(study, evaluators, sample=sample, folder=folder, half=half))
    finally:
        simulated.close()


if __name__ == "__main__":
    main()
