"""How much each axis matters, as Optuna computes it."""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import optuna

# Optuna judges the best tenth of the trials against all: fewer say nothing.
LEAST_ANSWERS = 4


def importances(
    axes: Mapping[str, Sequence[int]], answers: Sequence[tuple[Mapping[str, int], float]]
) -> dict[str, float]:
    """Share of each axis in what tells fast configs from slow ones; adds up to 1.

    By `PedAnovaImportanceEvaluator`, Optuna's default from version 5 on, which needs no other
    package. Empty for fewer than `LEAST_ANSWERS` answers.

    Args:
      axes: Config field -> its values, in rising order. Those with one value are left out.
      answers: Fields of a config, and its time in microseconds.
    """
    open_axes = {name: values for name, values in axes.items() if len(values) > 1}
    if len(answers) < LEAST_ANSWERS or not open_axes:
        return {}
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    ranges: dict[str, Any] = {
        name: optuna.distributions.IntDistribution(0, len(values) - 1)
        for name, values in open_axes.items()
    }
    study = optuna.create_study()
    for fields, time_us in answers:
        places = {name: list(values).index(fields[name]) for name, values in open_axes.items()}
        study.add_trial(
            optuna.trial.create_trial(params=places, distributions=ranges, value=time_us)
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        evaluator = optuna.importance.PedAnovaImportanceEvaluator()
        found = optuna.importance.get_param_importances(study, evaluator=evaluator)
    return {name: float(found[name]) for name in open_axes}
