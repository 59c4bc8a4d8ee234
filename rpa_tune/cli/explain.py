"""`rpa-tune explain`: one candidate under the glass."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from rpa_tune.cli.explain_text import print_simulation
from rpa_tune.cli.main import print_json
from rpa_tune.cli.options import batch_option, cache_option, candidate_options
from rpa_tune.cli.question import Question, resolve_question
from rpa_tune.cli.trace import write_heaviest
from rpa_tune.evaluate.analytical import AnalyticalEvaluator
from rpa_tune.evaluate.simulated import SimulatedEvaluator, Simulation

DEFAULT_DEADLINE_S = 600.0
# Keys that the JSON form always has; null without a time.
ALWAYS = (
    "total_cycles", "cycles_by_owner", "mbu", "mfu", "bound_by", "hbm_bytes", "vmem_bytes",
    "interval_us",
)  # fmt: skip


@click.command()
@candidate_options
@click.option("--workload", help="Preset, trace or workload file; see `rpa-tune workloads`.")
@batch_option
@cache_option
@click.option(
    "--deadline",
    default=DEFAULT_DEADLINE_S,
    show_default=True,
    help="Seconds that compiling, and simulating, may take.",
)
@click.option(
    "--trace",
    type=click.Path(path_type=Path),
    help="Write a Perfetto trace of the heaviest batch here.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON on stdout.")
def explain(
    cache: Path, deadline: float, trace: Path | None, as_json: bool, **options: Any
) -> None:
    """Compiles and simulates one config, and says where its time goes.

    Without --config it is the family's own choice, which the dispatcher falls back on. Exit code
    1 when the config cannot exist, does not compile, or has no time for another reason.

    Example: rpa-tune explain --chip v6e --family decode --model llama3-8b
    --workload azure-conv --config bkv_sz=1024,num_buffers=2
    """
    question = resolve_question(**options)
    evaluator = SimulatedEvaluator(num_workers=1, cache_dir=cache, deadline_s=deadline)
    try:
        (simulation,) = evaluator.simulate_all([question.candidate], question.workload)
    finally:
        evaluator.close()
    if as_json:
        print_json(to_dict(question, simulation))
    else:
        print_simulation(question, simulation)
    if not simulation.evaluation.ok:
        raise click.exceptions.Exit(1)
    if trace is not None:
        write_heaviest(
            question.candidate,
            [wb.batch for wb in question.workload.batches],
            simulation.evaluation.batch_us,
            cache_dir=cache,
            path=trace,
        )


def to_dict(question: Question, simulation: Simulation) -> dict[str, Any]:
    """The JSON form: the evaluation, its metrics on the top level, and a closer look per batch."""
    evaluation = simulation.evaluation
    (bound,) = AnalyticalEvaluator().evaluate_all([question.candidate], question.workload)
    weights = [wb.weight for wb in question.workload.batches]
    return {
        **dict.fromkeys(ALWAYS),
        **evaluation.metrics,
        "status": evaluation.status.value,
        "detail": evaluation.detail,
        "fidelity": evaluation.fidelity.name.lower(),
        "time_us": evaluation.time_us,
        "lower_bound_us": bound.time_us,
        **{k: v for k, v in question.candidate.to_dict().items() if k != "workload"},
        "model": question.model,
        "workload": {"name": question.workload.name, "digest": question.workload.digest},
        "is_default_config": question.is_default,
        "batches": [
            {"weight": weight, **asdict(timeline)}
            for weight, timeline in zip(weights, simulation.timelines, strict=False)
        ],
        "provenance": evaluation.provenance,
    }
