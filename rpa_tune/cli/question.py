"""What `explain` is asked about, from its options."""

from pathlib import Path
from typing import Any

from rpa_tune.analysis.question import Question, as_workload, make_question
from rpa_tune.cli.options import parse_config, read_batch
from rpa_tune.cli.workload_words import hints_name_import, say_sources
from rpa_tune.errors import UsageError


def resolve_question(
    *, workload: str | None, batch_file: Path | None, config_text: str, **others: Any
) -> Question:
    """Turns options into a candidate and its workload.

    Args:
      workload: Preset or file, unless `batch_file` is given.
      batch_file: JSON file with one batch.
      config_text: `k=v,...`.
      **others: See `make_question`.

    Raises:
      UsageError: Whatever is wrong with them.
    """
    if (workload is None) == (batch_file is None):
        raise UsageError("give either --workload or --batch")
    config = parse_config(config_text)
    if batch_file is not None:
        return make_question(workload=read_batch(batch_file), config=config, **others)
    with hints_name_import(str(workload)):
        question = make_question(workload=str(workload), config=config, **others)
        say_sources([as_workload(str(workload), page_size=others["page_size"])])
    return question
