"""`rpa-tune explain`: one candidate under the glass."""

import dataclasses
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click

from rpa_kernels import FAMILIES, load_family
from rpa_kernels.batch import Batch
from rpa_kernels.infeasible import Infeasible
from rpa_kernels.layout import KV_DTYPES, Q_DTYPES
from rpa_kernels.problem import Problem
from rpa_tune.candidate import Candidate
from rpa_tune.cli.explain_text import print_simulation
from rpa_tune.cli.main import print_json
from rpa_tune.cli.paths import default_cache_dir
from rpa_tune.errors import UsageError
from rpa_tune.evaluate.analytical import AnalyticalEvaluator
from rpa_tune.evaluate.simulated import SimulatedEvaluator, Simulation
from rpa_tune.hw.chip import load_chip
from rpa_tune.models import load_model, problem_for
from rpa_tune.workload.workload import WeightedBatch, Workload, load_workload

DEFAULT_DEADLINE_S = 600.0
# Keys that the JSON form always has; null without a time.
ALWAYS = ("total_cycles", "cycles_by_owner", "mbu", "mfu", "bound_by", "hbm_bytes", "vmem_bytes")


@dataclass(frozen=True, kw_only=True, slots=True)
class Question:
    """What `explain` was asked, resolved.

    Attributes:
      candidate: What to evaluate.
      workload: The batches that launch its family.
      model: As the person said it.
      is_default: Whether the config is the family's own choice.
    """

    candidate: Candidate
    workload: Workload
    model: str
    is_default: bool


@click.command()
@click.option("--chip", required=True, help="Chip to compile for: v4, v5e, v5p, v6e or v7x.")
@click.option("--family", required=True, type=click.Choice(FAMILIES), help="Kernel family.")
@click.option("--model", required=True, help="Model name, or the path of a config.json.")
@click.option("--workload", help="Preset, trace or workload file; see `rpa-tune workloads`.")
@click.option(
    "--batch",
    "batch_file",
    type=click.Path(path_type=Path),
    help='One batch instead: JSON {"q_lens": [..], "kv_lens": [..], "num_decode": n}.',
)
@click.option(
    "--config",
    "config_text",
    default="",
    metavar="K=V,...",
    help="Fields that differ from the family's own choice.",
)
@click.option("--tp", default=1, show_default=True, help="Devices that share the heads.")
@click.option("--page-size", default=128, show_default=True, help="Tokens in a KV cache page.")
@click.option("--q-dtype", default="bfloat16", show_default=True, type=click.Choice(Q_DTYPES))
@click.option("--kv-dtype", default="bfloat16", show_default=True, type=click.Choice(KV_DTYPES))
@click.option(
    "--windowed/--not-windowed",
    default=None,
    help="A layer with the model's sliding window, or one without.",
)
@click.option(
    "--cache",
    type=click.Path(path_type=Path),
    default=default_cache_dir,
    help="Folder of compiles; default: the user's cache folder.",
)
@click.option(
    "--deadline",
    default=DEFAULT_DEADLINE_S,
    show_default=True,
    help="Seconds that compiling, and simulating, may take.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON on stdout.")
def explain(cache: Path, deadline: float, as_json: bool, **options: Any) -> None:
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


def resolve_question(
    *,
    chip: str,
    family: str,
    model: str,
    workload: str | None,
    batch_file: Path | None,
    config_text: str,
    **shape: Any,
) -> Question:
    """Turns options into a candidate and its workload.

    Args:
      chip: Chip name.
      family: Family name.
      model: Model name or path.
      workload: Preset or file, unless `batch_file` is given.
      batch_file: JSON file with one batch.
      config_text: `k=v,...`.
      **shape: `tp`, `page_size`, `q_dtype`, `kv_dtype` and `windowed` of `problem_for`.

    Raises:
      UsageError: Whatever is wrong with them.
    """
    if (workload is None) == (batch_file is None):
        raise UsageError("one of --workload and --batch is needed, and only one")
    if batch_file is not None:
        batches = read_batch(batch_file)
    else:
        batches = load_workload(str(workload), page_size=shape["page_size"])
    problem = problem_for(load_model(model), workload=batches, **shape)
    try:
        own = batches.for_family(family)
    except ValueError as error:
        raise UsageError(str(error), hint="another --family, or another --workload") from error
    config = make_config(family, problem, chip, parse_config(config_text))
    candidate = Candidate(
        family=family, problem=problem, config=config, chip=chip, workload=own.digest
    )
    return Question(candidate=candidate, workload=own, model=model, is_default=not config_text)


def parse_config(text: str) -> dict[str, int]:
    """Reads `k=v,...`.

    Raises:
      UsageError: A part that is not `name=integer`, or a name twice.
    """
    fields: dict[str, int] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, _, value = part.partition("=")
        if not value.strip().isdigit() or name.strip() in fields:
            raise UsageError(
                f"{part!r} is not a new name=integer", where="--config", hint="bkv_sz=512,bq_sz=8"
            )
        fields[name.strip()] = int(value)
    return fields


def make_config(family: str, problem: Problem, chip: str, fields: dict[str, int]) -> Any:
    """The family's own choice with some fields changed; all of them, if it has no choice.

    Raises:
      UsageError: An unknown field, or a missing one where the family has no choice of its own.
    """
    record = load_family(family)
    known = list(record.config_type.__dataclass_fields__)
    if unknown := [name for name in fields if name not in known]:
        raise UsageError(
            f"{unknown[0]!r} is not a field of a {family} config",
            where="--config",
            hint=f"fields: {', '.join(known)}",
        )
    default = record.default_config(problem, load_chip(chip).target)
    if not isinstance(default, Infeasible):
        return dataclasses.replace(default, **fields)
    if missing := [name for name in known if name not in fields]:
        raise UsageError(
            f"{family} has no config of its own here ({default}); {', '.join(missing)} missing",
            where="--config",
        )
    return record.config_from_dict(fields)


def read_batch(path: Path) -> Workload:
    """A workload of one batch with given lengths.

    Raises:
      UsageError: The file does not describe a batch.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        batch = Batch(
            q_lens=tuple(map(int, data["q_lens"])),
            kv_lens=tuple(map(int, data["kv_lens"])),
            num_decode=int(data["num_decode"]),
            num_prefill=int(data.get("num_prefill", 0)),
        )
        return Workload(
            name=path.name, source=str(path), batches=(WeightedBatch(batch=batch, weight=1.0),)
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(
            f"not a batch: {type(error).__name__}: {error}",
            where=str(path),
            hint='{"q_lens": [1, 1, 64], "kv_lens": [700, 90, 64], "num_decode": 2}',
        ) from error


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
