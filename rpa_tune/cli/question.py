"""What `explain` is asked about: one candidate and the batches that launch it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rpa_tune.candidate import Candidate
from rpa_tune.cli.options import make_config, parse_config, read_batch
from rpa_tune.cli.workload_words import hints_name_import, say_sources
from rpa_tune.errors import UsageError
from rpa_tune.models import Model, load_model, problem_for
from rpa_tune.workload.workload import Workload, load_workload


@dataclass(frozen=True, kw_only=True, slots=True)
class Question:
    """What `explain` was asked, resolved.

    Attributes:
      candidate: What to evaluate.
      workload: The batches that launch its family.
      model: As the person said it.
      loaded: The whole model.
      is_default: Whether the config is the family's own choice.
    """

    candidate: Candidate
    workload: Workload
    model: str
    loaded: Model
    is_default: bool


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
      **shape: `tp`, `page_size`, `q_dtype`, `kv_dtype`, `layers` and `windowed` of `problem_for`.

    Raises:
      UsageError: Whatever is wrong with them.
    """
    if (workload is None) == (batch_file is None):
        raise UsageError("give either --workload or --batch")
    if batch_file is not None:
        batches = read_batch(batch_file)
    else:
        with hints_name_import(str(workload)):
            batches = load_workload(str(workload), page_size=shape["page_size"])
        say_sources([batches])
    loaded = load_model(model)
    problem = problem_for(loaded, workload=batches, **shape)
    try:
        own = batches.for_family(family)
    except ValueError as error:
        raise UsageError(str(error), hint="another --family, or another --workload") from error
    config = make_config(family, problem, chip, parse_config(config_text))
    candidate = Candidate(
        family=family, problem=problem, config=config, chip=chip, workload=own.digest
    )
    return Question(
        candidate=candidate, workload=own, model=model, loaded=loaded, is_default=not config_text
    )
