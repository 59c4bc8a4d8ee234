"""Copy engines that the simulator does not have, timed on the recorded launches of v7x.

    python benchmarks/engine_trials.py [--json FILE] [--form NAME] [--without ROW]

Linear page copies of sglang-jax's and of the v3 kernel stream at 1.95 TB/s, those of tokamax's at
2.8 (`fidelity.md`). Each form here is one way in which that could be the same engine: reads and
writes in one queue, in order, and a rate that depends on something else than the kind of copy.
Fitted without each source in turn, and to all; tokamax's ragged paged attention is left out, or in.
With `--without` some rows are in no fit, tokamax's decodes are in those of the other sources, and
the rows are predicted by the fit to all others.
Times are simulated with schedules of other versions than the measured ones.
"""

import argparse
import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import fidelity
import measured
import numpy as np
import numpy.typing as npt
from trial_engine import CHIP, times_us

from rpa_tune.llo.calibrate import NOISE, Observation
from rpa_tune.provenance import provenance

_PRIOR = 1.0  # of logarithms
_FAR = 3.0  # deviations from which on an error counts linearly
_STEP = 0.03  # of the logarithm, for slopes


@dataclass(frozen=True, kw_only=True, slots=True)
class Trial:
    """A form of the engine.

    Attributes:
      name: For tables.
      begin: Where its own parameters begin; those that no form has beside `COMMON` are off.
      held: Parameters that are not fitted.
    """

    name: str
    begin: Mapping[str, float] = field(default_factory=dict)
    held: Mapping[str, float] = field(default_factory=dict)


# Where every fit begins: 50 ns a copy, half a microsecond, 80 % of HBM. No time decided it.
HBM_BYTES_PER_CYCLE = 3.69e12 / 1.9e9  # nominal
COMMON = {
    "fixed": 100.0, "latency": 1000.0, "linear": 1500.0, "launch_us": 0.5, "bf16": 150.0,
    "f32": 250.0,
}  # fmt: skip
TRIALS = (
    Trial(name="one rate"),
    Trial(name="linear and strided apart", begin={"strided": 1500.0}),
    Trial(name="writes cost more", begin={"write_fixed": 300.0}),
    Trial(name="writes take longer", begin={"write_latency": 1000.0}),
    Trial(
        name="writes cost more and take longer",
        begin={"write_fixed": 300.0, "write_latency": 1000.0},
    ),
    Trial(name="an empty queue restarts slowly", begin={"restart": 300.0}),
    Trial(name="slower while the core works", begin={"busy_share": 0.7}),
    Trial(name="by bytes in flight", begin={"half_bytes": 5e5}),
    Trial(name="by copies in flight", begin={"half_copies": 3.0}),
    Trial(name="by semaphores in flight", begin={"half_flags": 1.0}),
    Trial(name="by length of the copy", begin={"half_copy": 5e4}),
    Trial(
        name="by semaphores, and writes cost more", begin={"half_flags": 1.0, "write_fixed": 300.0}
    ),
    Trial(
        name="slower while the core works, else what HBM has",
        begin={"busy_share": 0.7},
        held={"linear": HBM_BYTES_PER_CYCLE},
    ),
    Trial(
        name="slower while it works, and the clock",
        begin={"busy_share": 0.7, "clock_hz": 1.9e9},
    ),
    Trial(
        name="slower while it works, linear and strided apart",
        begin={"busy_share": 0.7, "strided": 1500.0},
    ),
    Trial(
        name="slower while it works, and by copies in flight",
        begin={"busy_share": 0.7, "half_copies": 1.0},
    ),
    Trial(name="a copy takes cycles of the core", begin={"stolen": 1e-4}),
    Trial(
        name="a copy takes cycles of the core, linear and strided apart",
        begin={"stolen": 1e-4, "strided": 1500.0},
    ),
    Trial(
        name="a copy takes cycles of the core, else what HBM has",
        begin={"stolen": 1e-4},
        held={"linear": HBM_BYTES_PER_CYCLE},
    ),
    Trial(
        name="a copy takes cycles of the core, and writes take longer",
        begin={"stolen": 1e-4, "write_latency": 1000.0, "write_fixed": 100.0},
    ),
    Trial(
        name="slower while it works, and writes cost more",
        begin={"busy_share": 0.7, "write_fixed": 300.0},
    ),
    Trial(
        name="slower while it works, and writes take longer",
        begin={"busy_share": 0.7, "write_latency": 1000.0},
    ),
)


def fit(
    trial: Trial, observations: Sequence[Observation], begin: Mapping[str, float] | None = None
) -> dict[str, float]:
    """Least squares on logarithms, with the pull of `calibrate.fit`: towards where it begins."""
    beginning = {n: v for n, v in (COMMON | dict(trial.begin)).items() if n not in trial.held}
    start, names = np.log(list(beginning.values())), tuple(beginning)
    here = np.log([begin[name] for name in names]) if begin else start.copy()
    measured_us = np.log([o.measured_us for o in observations])

    def values(logs: npt.NDArray[np.float64]) -> dict[str, float]:
        return dict(zip(names, np.exp(logs).tolist(), strict=True)) | dict(trial.held)

    def misses(logs: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        return (np.log(times_us(observations, values(logs))) - measured_us) / NOISE

    def cost(errors: npt.NDArray[np.float64], logs: npt.NDArray[np.float64]) -> float:
        far = np.abs(errors)
        bent = np.where(far > _FAR, _FAR * (2 * far - _FAR), far**2)
        return float(bent.sum() + (((logs - start) / _PRIOR) ** 2).sum())

    errors, damping = misses(here), 1e-2
    for _ in range(12):
        slopes = np.array(
            [(misses(here + _STEP * one) - errors) / _STEP for one in np.eye(len(here))]
        ).T
        weights = np.minimum(1, _FAR / np.maximum(np.abs(errors), 1e-9))
        matrix = (slopes.T * weights) @ slopes + np.eye(len(here)) / _PRIOR**2
        toward = -(slopes.T @ (weights * errors)) - (here - start) / _PRIOR**2
        gained = 0.0
        for _ in range(5):
            step = np.linalg.solve(matrix + damping * np.diag(np.diag(matrix)), toward)
            there = here + np.clip(step, -1, 1)
            new = misses(there)
            gained = cost(errors, here) - cost(new, there)
            if gained > 0:
                here, errors, damping = there, new, damping / 3
                break
            damping *= 5
        if gained < 0.05:
            break
    return values(here)


def errors(values: Mapping[str, float], rows: Sequence[Observation]) -> dict[str, Any]:
    """Errors of the times of rows, as shares of what was measured."""
    found = times_us(rows, values) / np.array([o.measured_us for o in rows]) - 1
    return fidelity.summary(found.tolist())


def by_source(
    rows: Sequence[Observation], parts: Mapping[str, str]
) -> dict[str, list[Observation]]:
    """Part -> its rows."""
    found: dict[str, list[Observation]] = {}
    for row in rows:
        found.setdefault(parts[row.label], []).append(row)
    return found


def without_each(
    trial: Trial, rows: Sequence[Observation], parts: Mapping[str, str],
    begin: Mapping[str, float],
) -> dict[str, Any]:  # fmt: skip
    """Part -> errors on it of a fit to all others."""
    return {
        part: errors(fit(trial, [o for o in rows if parts[o.label] != part], begin), some)
        for part, some in by_source(rows, parts).items()
    }


def judge(
    trial: Trial, fitted: Sequence[Observation], tokamax: Sequence[Observation],
    parts: Mapping[str, str],
) -> dict[str, Any]:  # fmt: skip
    """Errors of a form: without each source, and with all and tokamax's rows."""
    whole = fit(trial, fitted)
    without = without_each(trial, fitted, parts, whole)
    unseen: dict[str, list[float]] = {}
    for group in dict.fromkeys(o.group for o in fitted):
        inside = [o for o in fitted if o.group == group]
        trained = fit(trial, [o for o in fitted if o.group != group], whole)
        for o, us in zip(inside, times_us(inside, trained).tolist(), strict=True):
            unseen.setdefault(parts[o.label], []).append(us / o.measured_us - 1)
    joint = fit(trial, [*fitted, *tokamax], whole)
    by_part = {part: errors(joint, some) for part, some in by_source(fitted, parts).items()}
    return {
        "form": trial.name,
        "without": without | {"tokamax rpa": errors(whole, tokamax)},
        "groups": {part: fidelity.summary(found) for part, found in unseen.items()}
        | {"tokamax rpa": errors(whole, tokamax)},
        "fitted": errors(whole, fitted),
        "joint": by_part | {"tokamax rpa": errors(joint, tokamax)},
        "values": whole,
        "joint_values": joint,
    }


def judge_without(
    trial: Trial, rows: Sequence[Observation], dropped: Sequence[Observation],
    parts: Mapping[str, str],
) -> dict[str, Any]:  # fmt: skip
    """The same for rows of all sources, with some rows in no fit."""
    joint = fit(trial, rows)
    without = without_each(trial, rows, parts, joint)
    by_part = {part: errors(joint, some) for part, some in by_source(rows, parts).items()}
    return {
        "form": trial.name,
        "without": without,
        "joint": by_part | {"the rows left out": errors(joint, dropped)},
        "joint_values": joint,
    }


def load() -> tuple[list[Observation], list[Observation], dict[str, str]]:
    """What is fitted, decodes of tokamax's ragged paged attention, and the part of each row."""
    rows = [row for row in measured.load_rows() if row.chip == CHIP]
    seen, _ = measured.load_observations(tuple(rows))
    kept = [
        row for row in rows
        if row.name in seen and not fidelity.find_contradiction(row, seen[row.name])
    ]  # fmt: skip
    parts = {row.name: f"{row.source} {row.part}" for row in kept}
    fitted = [seen[row.name] for row in kept if row.is_fitted]
    tokamax = [seen[r.name] for r in kept if r.source == "tokamax rpa" and r.part == "decode"]
    return fitted, tokamax, parts


def table(found: Sequence[Mapping[str, Any]], name: str) -> str:
    """Median, worst and bias of each part as a table of Markdown."""
    parts = list(found[0][name])

    def cell(one: Mapping[str, Any]) -> str:
        return f"{one['median_abs_error']:.1%} / {one['worst_abs_error']:.1%}, {one['bias']:+.1%}"

    lines = [f"| form | {' | '.join(parts)} |", "|---" * (len(parts) + 1) + "|"]
    lines += [
        f"| {one['form']} | " + " | ".join(cell(one[name][part]) for part in parts) + " |"
        for one in found
    ]
    return "\n".join(lines)


def main() -> None:
    """Prints two tables: without each source, and fitted to everything at once."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--json", type=Path, help="write the report here")
    parser.add_argument("--form", action="append", help="only forms whose names have this in them")
    parser.add_argument("--without", action="append", default=[], help="in no fit; repeat")
    args = parser.parse_args()
    fitted, tokamax, parts = load()
    found = []
    for trial in TRIALS:
        if args.form and not any(text in trial.name for text in args.form):
            continue
        if args.without:
            every = [*fitted, *tokamax]
            dropped = [o for o in every if o.label in args.without]
            kept = [o for o in every if o.label not in args.without]
            one = judge_without(trial, kept, dropped, parts)
        else:
            one = judge(trial, fitted, tokamax, parts)
        found.append(one)
        median = statistics.median(part["median_abs_error"] for part in one["joint"].values())
        print(f"{trial.name}: {median:.1%} {one['joint_values']}", flush=True)
        if args.json:
            report = {"chip": CHIP, "forms": found, "provenance": provenance()}
            args.json.write_text(json.dumps(report, indent=1, default=str) + "\n")
    print("\nWithout each source\n\n" + table(found, "without"))
    if not args.without:
        print("\nWithout the row's group\n\n" + table(found, "groups"))
    print("\nFitted to all, tokamax's decodes too\n\n" + table(found, "joint"))


if __name__ == "__main__":
    main()
