"""Fits machine parameters to measured times.

Control flow never depends on time, so a schedule is simulated again under every trial. The fit is
least squares on the logarithm of predicted over measured, with a pull towards the values it
started from: what the records do not determine stays where it was.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from rpa_tune.errors import UsageError
from rpa_tune.llo.machine import Machine
from rpa_tune.llo.program import Program
from rpa_tune.llo.run import Operands
from rpa_tune.llo.simulate import simulate

_STEP = 0.05  # of the logarithm, for slopes
_ROUNDS = 8
_CONVERGED = 1e-3


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Observation:
    """One launch with its measured time.

    Attributes:
      label: For messages.
      program: Its schedule.
      operands: Its scalar operands.
      measured_us: Device time.
    """

    label: str
    program: Program
    operands: Operands
    measured_us: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Fit:
    """A fitted machine and how well it does.

    Attributes:
      machine: The machine, its fitted parameters marked so.
      values: Fitted values by name.
      predicted_us: By observation, with the fitted machine.
      held_out_us: By observation, with a machine fitted to all others.
    """

    machine: Machine
    values: dict[str, float]
    predicted_us: tuple[float, ...]
    held_out_us: tuple[float, ...]


def predict(machine: Machine, observations: Sequence[Observation]) -> npt.NDArray[np.float64]:
    """Simulated times in microseconds."""
    times = (simulate(o.program, machine, o.operands).time_us for o in observations)
    return np.fromiter(times, np.float64, len(observations))


def fit(
    machine: Machine,
    observations: Sequence[Observation],
    names: Sequence[str],
    *,
    prior: float = 0.5,
    noise: float = 0.03,
    hold_out: bool = True,
) -> Fit:
    """Fits parameters, and again without each observation in turn.

    Args:
      machine: Where to start.
      observations: Measured launches on this chip.
      names: Parameters to fit; all must be positive.
      prior: Standard deviation of a parameter's logarithm around its starting value.
      noise: Standard deviation of the logarithm of a measured time.
      hold_out: Whether to compute `held_out_us`; else it is empty.

    Raises:
      UsageError: No observations, or a name that is not a positive parameter.
    """
    if not observations:
        raise UsageError(f"no measured times for {machine.chip} to fit")
    for name in names:
        if name not in machine.numbers or not machine.numbers[name].value:
            raise UsageError(
                f"{name!r} is not a positive parameter of {machine.chip}",
                hint=f"parameters: {', '.join(sorted(machine.numbers))}",
            )
    fitted = _solve(machine, observations, names, prior=prior, noise=noise)
    held_out: list[float] = []
    for i, left_out in enumerate(observations if hold_out else ()):
        others = [o for j, o in enumerate(observations) if j != i]
        trial = _solve(machine, others, names, prior=prior, noise=noise) if others else machine
        held_out.append(float(predict(trial, [left_out])[0]))
    return Fit(
        machine=fitted,
        values={name: fitted.value(name) for name in names},
        predicted_us=tuple(predict(fitted, observations).tolist()),
        held_out_us=tuple(held_out),
    )


def _solve(
    machine: Machine,
    observations: Sequence[Observation],
    names: Sequence[str],
    *,
    prior: float,
    noise: float,
) -> Machine:
    """Damped Gauss-Newton on logarithms."""
    start = np.log([machine.value(name) for name in names])
    measured = np.log([o.measured_us for o in observations])
    source = f"fit to {len(observations)} measured times"

    def at(point: npt.NDArray[np.float64]) -> Machine:
        values = {name: math.exp(x) for name, x in zip(names, point, strict=True)}
        return machine.with_values(values, source=source, confidence="fitted")

    def residuals(point: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        errors = (np.log(predict(at(point), observations)) - measured) / noise
        # Beyond three deviations an error counts linearly: one bad record must not lead.
        far = np.maximum(np.abs(errors), 3)
        errors = np.where(far > 3, np.sign(errors) * np.sqrt(6 * far - 9), errors)
        return np.concatenate([errors, (point - start) / prior])

    point, here = start, residuals(start)
    damping = 1.0
    for _ in range(_ROUNDS):
        slopes = np.stack(
            [(residuals(point + _STEP * unit) - here) / _STEP for unit in np.eye(len(names))],
            axis=1,
        )
        normal = slopes.T @ slopes
        step = -np.linalg.solve(
            normal + damping * np.diag(np.diag(normal)) * 0.01, slopes.T @ here
        ).clip(-0.5, 0.5)
        there = residuals(point + step)
        if there @ there < here @ here:
            gain = 1 - (there @ there) / (here @ here)
            point, here, damping = point + step, there, damping / 4
            if gain < _CONVERGED:
                break
        else:
            damping *= 16
    return at(point)
