"""How a shared sweep looks in Optuna's tools: names, parameters, values and attributes.

An Optuna study is one study of the sweep at one fidelity and under one set of versions. Its name
says so in words, because a dashboard lists names; the digests behind them keep apart what has the
same words. A trial is one config of it. Its value is a time in microseconds, or for a check under
the interpreter the largest error in parts of what is tolerated. A config that gave neither has
failed; pruned is a question that a run took and left to another one.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from optuna.distributions import BaseDistribution, IntDistribution
from optuna.trial import TrialState

from rpa_kernels.family import config_to_dict
from rpa_kernels.infeasible import Infeasible
from rpa_tune.candidate import Candidate, Correctness, Evaluation, Method
from rpa_tune.sweep.study import Study

SEARCH = "search"  # attribute of a study: what runs that share it must have alike
# Where Optuna's `Study.set_metric_names` keeps them (4.0 to 5.0).
_METRIC_NAMES = "study:metric_names"
# Metrics worth a column: of a time, and of a check.
_METRICS = ("bound_by", "how")


class Shown:
    """What Optuna's tools show of a study, the same for every run."""

    def __init__(self, study: Study, fidelity: Method) -> None:
        """Looks at the axes of the study.

        Args:
          study: Which.
          fidelity: How its candidates are answered.
        """
        self.name = study.name
        self._axes = {axis.name: axis.values for axis in study.axes()}
        heuristic = study.heuristic()
        # What no digest of a kernel says, and yet decides which questions are asked.
        tried = {
            "axes": {name: list(values) for name, values in self._axes.items()},
            "heuristic": None if isinstance(heuristic, Infeasible) else config_to_dict(heuristic),
        }
        self.attributes: dict[str, Any] = {
            # A key of its own for each: several studies may ask the same questions.
            f"study {study.name}": f"workload {study.workload.name}: {study.workload.source}",
            "problem": study.problem.to_dict(),
            SEARCH: {**asdict(study.search), "sampler": study.sampler(), **tried},
        }
        is_check = fidelity is Correctness.INTERPRETED
        metric = "error, in parts of the tolerance" if is_check else "time us"
        self.system_attributes = {_METRIC_NAMES: [metric]}

    def params(self, config: Any) -> tuple[dict[str, int], dict[str, BaseDistribution]]:
        """A config's fields, and the range of each field's axis."""
        params = {name: value for name, value in asdict(config).items() if type(value) is int}
        ranges: dict[str, BaseDistribution] = {}
        for name, value in params.items():
            values = (*self._axes.get(name, ()), value)  # a seed may lie outside of its axis
            ranges[name] = IntDistribution(min(values), max(values))
        return params, ranges


def study_name(candidate: Candidate, fidelity: Method, stamp: Sequence[str]) -> str:
    """The name of the Optuna study that a candidate's question belongs to, alike in all runs."""
    versions = hashlib.sha256("\0".join(stamp).encode()).hexdigest()[:8]
    return f"{candidate.title}, {fidelity.name.lower()} ({candidate.study} {versions})"


def state_and_values(answer: Evaluation) -> tuple[TrialState, list[float] | None]:
    """How a trial ends: complete with a value, or failed without a time or a right result."""
    if not answer.ok:
        return TrialState.FAIL, None
    if answer.fidelity is Correctness.INTERPRETED:
        return TrialState.COMPLETE, [float(answer.metrics.get("error_of_tolerance", 0.0))]
    assert answer.time_us is not None
    return TrialState.COMPLETE, [answer.time_us]


def answer_attributes(answer: Evaluation) -> dict[str, str]:
    """What is worth a column beside a trial's value; each costs a question to the storage."""
    if not answer.ok:
        return {"failure": f"{answer.status.value}: {answer.detail}"}
    return {name: str(answer.metrics[name]) for name in _METRICS if name in answer.metrics}


def differences(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> str:
    """What two searches do not have alike: `seed 1 here, 0 there`; empty if nothing."""
    names = sorted({*ours, *theirs})
    return "; ".join(
        f"{name} {_text(ours.get(name))} here, {_text(theirs.get(name))} there"
        for name in names
        if ours.get(name) != theirs.get(name)
    )


def _text(value: Any) -> str:
    if isinstance(value, Mapping):
        return " ".join(str(part) for pair in value.items() for part in pair if part != "kind")
    return "none" if value is None else str(value)
