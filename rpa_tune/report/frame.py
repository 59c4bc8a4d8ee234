"""Answers as pandas data frames: one row an answer, ready to group, pivot and plot.

```
from rpa_tune.report.frame import store_frame

answers = store_frame(Path(".rpa-tune/chat.jsonl"))
simulated = answers[(answers.fidelity == "simulated") & (answers.status == "ok")]
simulated.groupby(["chip", "family"]).time_us.min()
```

`StudyResult.to_frame()` has the same columns for the candidates of one study. A frame is read-only
by intent: nothing that is done to it comes back to the store.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd

from rpa_tune.candidate import Candidate, Evaluation
from rpa_tune.errors import StoreError
from rpa_tune.store import codec, journal
from rpa_tune.store.shards import find_shards

# Fields of a config and of a problem have names of their own; these tell them apart.
CONFIG, PROBLEM = "config.", "problem."
METRICS = (
    "bound_by", "mbu", "mfu", "total_cycles", "hbm_bytes", "vmem_bytes", "compile_s", "evaluate_s",
)  # fmt: skip
_VERSIONS = ("jax", "libtpu", "kernel", "simulator", "host")


def answers_frame(
    evaluations: Iterable[Evaluation], names: Mapping[str, str] | None = None
) -> pd.DataFrame:
    """One row an answer, in the given order.

    Args:
      evaluations: Of any studies and fidelities.
      names: `Candidate.study` -> the study's name in its plan, as far as known.

    Returns:
      Columns: `name`, `study`, `chip`, `family`, `workload` (digests), `problem.*`, `config.*`,
      `fidelity`, `status`, `detail`, `time_us`, `batch_us` (a tuple), the metrics in `METRICS`,
      versions, `host` and `time` (UTC). What an answer does not have is missing (NaN, NaT, None).
      Config fields are nullable integers: families have different ones.
    """
    rows = [_answer_row(evaluation, names or {}) for evaluation in evaluations]
    return _frame(rows)


def store_frame(path: Path) -> pd.DataFrame:
    """What a store and its shards hold; see `answers_frame`. Never blocks a running sweep.

    The last answer of each candidate, fidelity and versions counts, as in `rpa-tune status`.

    Args:
      path: What `--store` was.

    Raises:
      StoreError: There is no such store, or it is none.
    """
    files = [file for file in (path, *find_shards(path).values()) if file.is_file()]
    if not files:
        raise StoreError("no such store", where=str(path))
    contents = [journal.read(file) for file in files]
    names = {plan.study: plan.name for each in contents for plan in each.plans}
    last: dict[Any, Evaluation] = {}
    for evaluation in (e for each in contents for e in each.evaluations):
        stamp = codec.stamp_of(evaluation.provenance, evaluation.fidelity)
        last[evaluation.candidate.digest, evaluation.fidelity, stamp] = evaluation
    return answers_frame(last.values(), names)


def study_frame(
    answers: Iterable[Evaluation],
    stopped: Iterable[tuple[Candidate, str, str]],
    *,
    name: str,
    heuristic: Mapping[str, int] | None,
    chosen: Sequence[Mapping[str, int]],
) -> pd.DataFrame:
    """The candidates of one study: those with an answer, then those that were left behind.

    Args:
      answers: Of the highest fidelity.
      stopped: Candidate, why it stopped, and a line of detail; those with an answer are left out.
      name: Of the study.
      heuristic: Fields of the heuristic's config; None when there is none.
      chosen: Fields of the configs of the table row.

    Returns:
      The columns of `answers_frame`, where the `status` of a candidate that was not asked is why;
      `is_heuristic`, `is_chosen`, and `speedup`, the heuristic's time over the candidate's.
    """
    rows: list[dict[str, Any]] = []
    configs: dict[str, dict[str, int]] = {}  # by digest, in the order of the rows
    for answer in answers:
        configs[answer.candidate.digest] = _fields(answer.candidate)
        rows.append(_answer_row(answer, {answer.candidate.study: name}))
    for candidate, reason, detail in stopped:
        if candidate.digest not in configs:
            configs[candidate.digest] = _fields(candidate)
            row = _candidate_row(candidate, {candidate.study: name})
            rows.append({**row, "status": reason, "detail": detail})
    frame = _frame(rows)
    frame["is_heuristic"] = [config == heuristic for config in configs.values()]
    frame["is_chosen"] = [config in chosen for config in configs.values()]
    known = frame.loc[frame["is_heuristic"], "time_us"]
    frame["speedup"] = (known.iloc[0] if len(known) else float("nan")) / frame["time_us"]
    return frame


def _fields(candidate: Candidate) -> dict[str, int]:
    """Those of its config, as rows and notes have them."""
    return candidate.family.config_to_dict(candidate.config)


def _candidate_row(candidate: Candidate, names: Mapping[str, str]) -> dict[str, Any]:
    study = candidate.study
    return {
        "name": names.get(study),
        "study": study,
        "chip": candidate.chip.name,
        "family": candidate.family.name,
        "workload": candidate.workload,
        **{PROBLEM + field: value for field, value in asdict(candidate.problem).items()},
        **{CONFIG + field: value for field, value in asdict(candidate.config).items()},
    }


def _answer_row(evaluation: Evaluation, names: Mapping[str, str]) -> dict[str, Any]:
    stamp = evaluation.provenance
    return {
        **_candidate_row(evaluation.candidate, names),
        "fidelity": evaluation.fidelity.name.lower(),
        "status": evaluation.status.value,
        "detail": evaluation.detail,
        "time_us": evaluation.time_us,
        "batch_us": evaluation.batch_us,
        **{name: evaluation.metrics.get(name) for name in METRICS},
        **{name: stamp.get(name) for name in _VERSIONS},
        "time": stamp.get("time"),
    }


_FIRST = ("name", "study", "chip", "family", "workload")
_ANSWER = ("fidelity", "status", "detail", "time_us", "batch_us", *METRICS, *_VERSIONS, "time")
_NUMBERS = ("time_us", *(name for name in METRICS if name != "bound_by"))


def _frame(rows: list[dict[str, Any]]) -> pd.DataFrame:
    """A frame with all columns, in one order and of one dtype, however few rows there are."""
    found = dict.fromkeys(name for row in rows for name in row)
    of_problem = [name for name in found if name.startswith(PROBLEM)]
    of_config = [name for name in found if name.startswith(CONFIG)]
    frame = pd.DataFrame(rows, columns=[*_FIRST, *of_problem, *of_config, *_ANSWER])
    frame = frame.astype(
        {**dict.fromkeys(_NUMBERS, "float64"), **dict.fromkeys(of_config, "Int64")}
    )
    frame["time"] = pd.to_datetime(frame["time"], utc=True, format="ISO8601")
    return frame
