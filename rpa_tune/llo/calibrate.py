"""Fits machine parameters to measured times.

Control flow never depends on time, so a launch is recorded once and replayed under every trial.
The fit is least squares on the logarithm of predicted over measured, with a pull towards the values
it started from: what the records do not determine stays where it was.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from rpa_tune.errors import UsageError
from rpa_tune.llo.machine import Machine
from rpa_tune.llo.recording import Launch
from rpa_tune.llo.simulate import replay_us

PRIOR = 0.5  # standard deviation of a parameter's logarithm before anything was measured
NOISE = 0.03  # the same of a measured time
# What has the value of another parameter wherever it is not fitted itself: no public time tells
# writes or scalar operands from reads, and only on v7x strided copies from linear ones.
FOLLOWERS = {
    "read_fixed_cycles": ("write_fixed_cycles", "local_fixed_cycles"),
    "read_latency_cycles": ("write_latency_cycles", "local_latency_cycles"),
    "read_linear_bytes_per_s": (
        "write_linear_bytes_per_s",
        "local_bytes_per_s",
        "read_strided_bytes_per_s",
        "write_strided_bytes_per_s",
    ),
    "read_strided_bytes_per_s": ("write_strided_bytes_per_s",),
    "read_copy_bytes_per_s": ("write_copy_bytes_per_s", "local_copy_bytes_per_s"),
}
_STEP = 0.03  # of the logarithm, for slopes
_ROUNDS = 12
_CONVERGED = 1e-3
_FAR = 3.0  # deviations from which on an error counts linearly: one bad record must not lead


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Observation:
    """What ran, with its measured time.

    Attributes:
      label: For messages.
      launches: One after the other; nearly always one.
      measured_us: Device time.
      group: Held out together: launches that are too alike to predict each other.
    """

    label: str
    launches: tuple[Launch, ...]
    measured_us: float
    group: str = ""

    @property
    def num_bundles(self) -> int:
        """Bundles that the busier core executes: no machine takes fewer cycles."""
        return sum(launch.num_bundles for launch in self.launches)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Fit:
    """A fitted machine and how well it does.

    Attributes:
      machine: The machine, its fitted parameters marked so.
      values: Fitted values by name.
      predicted_us: By observation, with the fitted machine.
      held_out_us: By observation, with a machine fitted without its group.
      covariance: Of the logarithms of `values`, [parameters, parameters].
    """

    machine: Machine
    values: dict[str, float]
    predicted_us: tuple[float, ...]
    held_out_us: tuple[float, ...]
    covariance: npt.NDArray[np.float64]


def predict(machine: Machine, observations: Sequence[Observation]) -> npt.NDArray[np.float64]:
    """Simulated times in microseconds."""
    times = (replay_us(o.launches, [machine])[0] for o in observations)
    return np.fromiter(times, np.float64, len(observations))


def fit(
    machine: Machine,
    observations: Sequence[Observation],
    names: Sequence[str],
    *,
    prior: float = PRIOR,
    noise: float = NOISE,
    hold_out: bool = True,
    begin: Machine | None = None,
) -> Fit:
    """Fits parameters, and again without each group of observations in turn.

    Args:
      machine: Where to start.
      observations: Measured launches on this chip.
      names: Parameters to fit; all must be positive. `FOLLOWERS` go with them.
      prior: Standard deviation of a parameter's logarithm around its starting value.
      noise: Standard deviation of the logarithm of a measured time.
      hold_out: Whether to compute `held_out_us`; else it is empty.
      begin: Where the search begins, if not at `machine`; the pull is towards `machine` all the
        same.

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
    fitted, covariance = _solve(machine, observations, names, (prior, noise), begin or machine)
    held_out: dict[int, float] = {}
    groups = dict.fromkeys(_group(i, o) for i, o in enumerate(observations))
    for group in groups if hold_out else ():
        inside = [i for i, o in enumerate(observations) if _group(i, o) == group]
        others = [o for i, o in enumerate(observations) if i not in inside]
        trial = machine
        if others:
            # Where the search begins saves rounds; what it is pulled towards stays the same.
            trial, _ = _solve(machine, others, names, (prior, noise), fitted)
        times = predict(trial, [observations[i] for i in inside])
        held_out |= dict(zip(inside, times.tolist(), strict=True))
    return Fit(
        machine=fitted,
        values={name: fitted.value(name) for name in names},
        predicted_us=tuple(predict(fitted, observations).tolist()),
        held_out_us=tuple(held_out[i] for i in sorted(held_out)),
        covariance=covariance,
    )


def _group(place: int, observation: Observation) -> str:
    """The group of an observation; one that names none is alone."""
    return observation.group or f"observation {place}"


def draw(
    machine: Machine,
    names: Sequence[str],
    covariance: npt.NDArray[np.float64],
    *,
    count: int,
    seed: int = 0,
) -> npt.NDArray[np.float64]:
    """Values of parameters and of their followers that a fit does not tell apart.

    Args:
      machine: The fitted one, the middle of what is drawn.
      names: Parameters that vary.
      covariance: Of their logarithms.
      count: Even: sets come in pairs on both sides of the middle.
      seed: Of the draw.

    Returns:
      [count, names and followers in the order of `with_followers`].
    """
    half = np.random.default_rng(seed).standard_normal((count // 2, len(names)))
    steps = np.concatenate([half, -half]) @ np.linalg.cholesky(covariance).T
    rows = []
    for step in steps:
        values = {n: machine.value(n) * math.exp(s) for n, s in zip(names, step, strict=True)}
        rows.append(list(with_followers(values).values()))
    return np.array(rows)


def with_followers(values: Mapping[str, float]) -> dict[str, float]:
    """Fitted values with those that follow them."""
    # In the order of `FOLLOWERS`: what follows two follows the later one.
    followers = {
        follower: values[name]
        for name, named in FOLLOWERS.items()
        if name in values
        for follower in named
    }
    return followers | dict(values)


def _solve(
    machine: Machine,
    observations: Sequence[Observation],
    names: Sequence[str],
    deviations: tuple[float, float],
    begin: Machine,
) -> tuple[Machine, npt.NDArray[np.float64]]:
    """Damped Gauss-Newton on logarithms; the machine, and the covariance of the logarithms."""
    prior, noise = deviations
    start = np.log([machine.value(name) for name in names])
    measured = np.log([o.measured_us for o in observations])
    source = f"fit to {len(observations)} measured times"

    def at(point: npt.NDArray[np.float64]) -> Machine:
        values = {name: math.exp(x) for name, x in zip(names, point, strict=True)}
        return machine.with_values(with_followers(values), source=source, confidence="fitted")

    def residuals(point: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        errors = (np.log(predict(at(point), observations)) - measured) / noise
        far = np.maximum(np.abs(errors), _FAR)
        linear = np.sign(errors) * np.sqrt(2 * _FAR * far - _FAR**2)
        errors = np.where(far > _FAR, linear, errors)
        return np.concatenate([errors, (point - start) / prior])

    def slopes(
        point: npt.NDArray[np.float64], here: npt.NDArray[np.float64]
    ) -> npt.NDArray[np.float64]:
        columns = [(residuals(point + _STEP * u) - here) / _STEP for u in np.eye(len(names))]
        return np.stack(columns, axis=1)

    point = np.log([begin.value(name) for name in names])
    here = residuals(point)
    damping = 1.0
    for _ in range(_ROUNDS):
        jacobian = slopes(point, here)
        normal = jacobian.T @ jacobian
        step = -np.linalg.solve(
            normal + damping * np.diag(np.diag(normal)) * 0.01, jacobian.T @ here
        ).clip(-0.5, 0.5)
        there = residuals(point + step)
        if there @ there < here @ here:
            gain = 1 - (there @ there) / (here @ here)
            point, here, damping = point + step, there, damping / 4
            if gain < _CONVERGED:
                break
        else:
            damping *= 16
    covariance: npt.NDArray[np.float64] = np.linalg.inv(normal).astype(np.float64)
    return at(point), covariance
