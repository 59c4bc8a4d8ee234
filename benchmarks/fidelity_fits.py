"""How a chip's parameters follow from its measured rows: what is fitted, from where, by which form.

Nothing here starts from the machine table: every fitted parameter begins at a value that knows the
chip's data sheet and no time (`neutral`), and is pulled towards it weakly. What the table says of
copies, matmuls and the launch of a measured chip is what comes out.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from rpa_tune.hw.chip import load_chip
from rpa_tune.llo.calibrate import NOISE, Fit, Observation, draw, fit, predict, with_followers
from rpa_tune.llo.ensemble import MachineSet, interval
from rpa_tune.llo.machine import Machine, load_machine
from rpa_tune.llo.simulate import replay_us

# Deviations of logarithms beforehand: a factor of 2.7 either way, so that the rows decide; less
# where there are four, of one kernel with contexts that were assumed, and where none is of a copy.
PRIOR = {"v5e": 0.3, "v5p": 0.3, "v6e": 1.0, "v7x": 1.0}
NUM_SETS = 16
# How far off guesses may be, as standard deviations of logarithms: guesses too, but wide ones.
GUESSED = {
    "read_fixed_cycles": 0.4,
    "read_latency_cycles": 0.3,
    "read_linear_bytes_per_s": 0.2,
    "launch_us": 0.4,
    "matmul_latency_bf16_cycles": 0.3,
    "matmul_latency_f32_cycles": 0.3,
}
_LEAST_DEVIATION = 0.02  # of a time's logarithm, where few rows were held out
_COPIES = ("read_fixed_cycles", "read_latency_cycles", "read_linear_bytes_per_s")
_COMMON = (*_COPIES, "launch_us", "matmul_latency_bf16_cycles", "matmul_latency_f32_cycles")


@dataclass(frozen=True, kw_only=True, slots=True)
class Form:
    """One way in which copies, matmuls and launches may take time.

    Attributes:
      name: For tables.
      queues: Reads and writes in 2 queues, or in order in 1.
      names: Parameters that are fitted.
      fixed: Values of parameters that are not, where they differ from the usual beginning.
    """

    name: str
    queues: int
    names: tuple[str, ...]
    fixed: Mapping[str, float] = field(default_factory=dict)


_KINDS = (*_COMMON, "read_strided_bytes_per_s")
_LIMIT = (*_COMMON, "read_copy_bytes_per_s")
FORMS = (
    Form(name="two queues", queues=2, names=_COMMON),
    Form(name="two queues, a limit for one copy", queues=2, names=_LIMIT),
    Form(name="two queues, linear and strided apart", queues=2, names=_KINDS),
    Form(name="one queue", queues=1, names=_COMMON),
    Form(name="one queue, a limit for one copy", queues=1, names=_LIMIT),
    Form(name="one queue, linear and strided apart", queues=1, names=_KINDS),
)
# v5e's four rows tell nothing of bandwidth or of what a copy costs: those stay guesses, as on v6e.
_FEW = Form(
    name="two queues, as on v6e",
    queues=2,
    names=(
        "read_latency_cycles", "launch_us", "matmul_latency_bf16_cycles",
        "matmul_latency_f32_cycles",
    ),
)  # fmt: skip
# v5p's are dense attention: they tell nothing of page copies, nor of launches, which are long.
_DENSE = Form(
    name="two queues, as on v6e",
    queues=2,
    names=("matmul_latency_bf16_cycles", "matmul_latency_f32_cycles"),
)
# The form of each chip that has rows.
CHOSEN = {"v5e": _FEW, "v5p": _DENSE, "v6e": FORMS[0], "v7x": FORMS[5]}
# Parameters with which the chosen form of a chip is tried as well, each on its own.
_MORE = {
    "writes with a cost and latency of their own": ("write_fixed_cycles", "write_latency_cycles"),
    "scalar operands and spills with their own": ("local_fixed_cycles", "local_latency_cycles"),
    "the queue of matmuls": ("matmul_queue_cycles",),
    "the clock": ("clock_hz",),
}
# Which fitted parameter is the beginning of one that usually follows it.
FOLLOWS = {
    f"{direction}_{part}_cycles": f"read_{part}_cycles"
    for direction in ("write", "local")
    for part in ("fixed", "latency")
}


def forms_of(chip: str) -> tuple[Form, ...]:
    """Every form that is tried on a chip: of the copy engine, then of everything else."""
    chosen = CHOSEN[chip]
    more = (
        replace(chosen, name=f"the chosen, and {name}", names=(*chosen.names, *names))
        for name, names in _MORE.items()
    )
    no_launch = replace(
        chosen,
        name="the chosen, without a launch",
        names=tuple(name for name in chosen.names if name != "launch_us"),
        fixed={"launch_us": 0.0},
    )
    return (*FORMS, *more, no_launch)


def neutral(chip: str, form: Form) -> Machine:
    """Where a fit of a chip begins, whatever was measured on it."""
    machine, record = load_machine(chip), load_chip(chip)
    clock = machine.value("clock_hz")
    bandwidth = 0.8 * record.hbm_bytes_per_s * record.num_cores_per_device
    values = {
        "copy_queues": float(form.queues),
        "read_fixed_cycles": 50e-9 * clock,
        "read_latency_cycles": 0.5e-6 * clock,
        "read_linear_bytes_per_s": bandwidth,
        "read_strided_bytes_per_s": bandwidth,
        "launch_us": 0.5,
        "matmul_latency_bf16_cycles": 150.0,
        "matmul_latency_f32_cycles": 250.0,
    }
    if "read_copy_bytes_per_s" in form.names:
        values["read_copy_bytes_per_s"] = bandwidth
    if "read_linear_bytes_per_s" not in form.names:
        values = {name: values[name] for name in ("copy_queues", *form.names)}
    # What only some forms fit begins at the table's value, which no time decided.
    values |= {
        name: values.get(FOLLOWS.get(name, ""), machine.value(name))
        for name in form.names
        if name not in values
    } | dict(form.fixed)
    return machine.with_values(with_followers(values), source="no time", confidence="guess")


def fit_chip(
    chip: str, form: Form, observations: Sequence[Observation], *, begin: Machine | None = None
) -> Fit:
    """Fits a form to rows of a chip."""
    return fit(
        neutral(chip, form),
        observations,
        form.names,
        prior=PRIOR[chip],
        hold_out=False,
        begin=begin,
    )


def sets_of(
    fitted: Fit, deviation: float, *, count: int = NUM_SETS
) -> tuple[tuple[str, ...], npt.NDArray[np.float64], list[float]]:
    """Parameter sets around a fit: names, values, and the factors that stand for the form's error.

    Args:
      fitted: The middle.
      deviation: Standard deviation of the logarithm of times that the fit had not seen.
      count: How many.
    """
    guessed = [name for name in GUESSED if name not in fitted.values]
    names = (*fitted.values, *guessed)
    covariance = np.diag([0.0] * len(fitted.values) + [GUESSED[name] ** 2 for name in guessed])
    covariance[: len(fitted.values), : len(fitted.values)] = fitted.covariance
    values = draw(fitted.machine, names, covariance, count=count)
    followers = with_followers({name: fitted.machine.value(name) for name in names})
    return tuple(followers), values, scales(deviation, count)


def scales(deviation: float, count: int = NUM_SETS) -> list[float]:
    """Factors on times with a standard deviation of their logarithm, in no order."""
    normal = statistics.NormalDist()
    order = np.random.default_rng(1).permutation(count)
    return [math.exp(deviation * normal.inv_cdf((k + 0.5) / count)) for k in order]


def machine_sets(fitted: Fit, deviation: float) -> tuple[MachineSet, ...]:
    """The sets as machines."""
    names, values, factors = sets_of(fitted, deviation)
    return tuple(
        MachineSet(
            machine=fitted.machine.with_values(
                dict(zip(names, row, strict=True)), source="drawn", confidence="fitted"
            ),
            scale=scale,
        )
        for row, scale in zip(values.tolist(), factors, strict=True)
    )


@dataclass(kw_only=True, slots=True)
class Prediction:
    """A row's time by a fit that had not seen its group.

    Attributes:
      held_out_us: The time.
      interval_us: Where 90 % of the sets of that fit put it.
      fitted_us: The time by the fit to all rows.
      machine: Of the fit that had not seen the group.
    """

    held_out_us: float
    fitted_us: float | None
    machine: Machine
    interval_us: tuple[float, float] = field(default=(0.0, 0.0))


def deviation_of(errors: Sequence[float]) -> float:
    """Standard deviation of logarithms of errors around nothing, robust to one far row."""
    if len(errors) < 2:
        return 2 * NOISE
    ranked = sorted(abs(math.log1p(error)) for error in errors)
    kept = ranked[: max(2, math.ceil(0.95 * len(ranked)))]
    return max(_LEAST_DEVIATION, math.sqrt(sum(e * e for e in kept) / len(kept)))


def hold_out(
    chip: str, form: Form, observations: Sequence[Observation]
) -> tuple[Fit, float, dict[str, Prediction]]:
    """The fit to all rows, its deviation, and every row predicted without its group.

    Returns:
      The fit; the standard deviation of the logarithms of times that were held out; predictions by
      label, with their intervals.
    """
    whole = fit_chip(chip, form, observations)
    predictions = {
        o.label: Prediction(held_out_us=us, fitted_us=us, machine=whole.machine)
        for o, us in zip(observations, whole.predicted_us, strict=True)
    }
    groups = dict.fromkeys(o.group for o in observations)
    without: dict[str, Fit] = {}
    for group in groups:
        inside = [o for o in observations if o.group == group]
        others = [o for o in observations if o.group != group]
        without[group] = fit_chip(chip, form, others, begin=whole.machine)
        times = predict(without[group].machine, inside)
        for o, us in zip(inside, times.tolist(), strict=True):
            predictions[o.label].held_out_us = us
            predictions[o.label].machine = without[group].machine

    def deviation(left_out: str) -> float:
        """How far off rows are that were not seen, learnt from rows of other groups."""
        return deviation_of(
            [
                predictions[o.label].held_out_us / o.measured_us - 1
                for o in observations
                if o.group != left_out
            ]
        )

    for group, fitted in without.items():
        inside = [o for o in observations if o.group == group]
        _set_intervals(predictions, inside, machine_sets(fitted, deviation(group)))
    return whole, deviation(""), predictions


def predict_unseen(
    fitted: Fit, deviation: float, observations: Sequence[Observation]
) -> dict[str, Prediction]:
    """Rows that no fit of the chip ever saw, by label, with their intervals."""
    times = predict(fitted.machine, observations).tolist()
    found = {
        o.label: Prediction(held_out_us=us, fitted_us=None, machine=fitted.machine)
        for o, us in zip(observations, times, strict=True)
    }
    _set_intervals(found, observations, machine_sets(fitted, deviation))
    return found


def _set_intervals(
    predictions: Mapping[str, Prediction],
    observations: Sequence[Observation],
    sets: Sequence[MachineSet],
) -> None:
    for o in observations:
        times_us = replay_us(o.launches, [one.machine for one in sets])
        scaled = [us * one.scale for us, one in zip(times_us, sets, strict=True)]
        predictions[o.label].interval_us = interval(scaled)


def without_source(
    chip: str, form: Form, observations: Sequence[Observation], left_out: set[str]
) -> list[float]:
    """Errors on rows whose whole source a form was fitted without."""
    inside = [o for o in observations if o.label in left_out]
    others = [o for o in observations if o.label not in left_out]
    fitted = fit_chip(chip, form, others)
    times = predict(fitted.machine, inside)
    return [float(us) / o.measured_us - 1 for us, o in zip(times, inside, strict=True)]
