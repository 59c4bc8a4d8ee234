"""How well the simulator agrees with public measured times.

Every row that was handed over is timed: what its launch does is in `data/recordings.zip` (see
`measured.py`), and is replayed under machines that are fitted here, from rows of other groups than
the row's own. Ends with 1, and names the row, when one has no recording and no reason for that.

    python benchmarks/fidelity.py [--json FILE] [--chip v6e] [--forms] [--refit]

`--forms` also fits every form of the copy engine without one whole source at a time. `--refit`
writes what a fit to all rows gives into the machine table and into the sets of parameters.
"""

import argparse
import json
import statistics
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import fidelity_fits as fits
import fidelity_report as report
import fidelity_table as table
import measured
import numpy as np

from rpa_tune.llo.calibrate import Observation, predict
from rpa_tune.llo.machine import load_machine
from rpa_tune.provenance import provenance


def find_contradiction(row: measured.Row, observation: Observation) -> str:
    """Why a row can be of no use to a fit, or an empty string."""
    if not row.is_device_time:
        return "a whole call was timed: kernel, transposes and paddings"
    bundles_us = observation.num_bundles / load_machine(row.chip).value("clock_hz") * 1e6
    if bundles_us > 1.1 * row.measured_us:
        # No machine runs more bundles than it has cycles.
        return f"its bundles alone take {bundles_us:.1f} us: the measured kernel did less work"
    return ""


def is_usable(row: measured.Row, seen: dict[str, Observation]) -> bool:
    """Whether a row may take part in fits."""
    return row.is_fitted and not find_contradiction(row, seen[row.name])


def judge_chip(
    job: tuple[str, Sequence[measured.Row], dict[str, Observation]],
) -> dict[str, Any]:
    """Every row of a chip, and the fit to those that can be fitted; see also `beside_winners`."""
    chip, rows, observations = job
    reasons = {row.name: find_contradiction(row, observations[row.name]) for row in rows}
    usable = [observations[row.name] for row in rows if is_usable(row, observations)]
    fitted, deviation, predictions = fits.hold_out(chip, fits.CHOSEN[chip], usable)
    tests = [observations[row.name] for row in rows if not row.is_fitted and not reasons[row.name]]
    predictions |= fits.predict_unseen(fitted, deviation, tests)
    found = []
    for row in rows:
        seen = predictions.get(row.name)
        us = (
            seen.held_out_us
            if seen
            else float(predict(fitted.machine, [observations[row.name]])[0])
        )
        found.append(
            {
                "row": row.name,
                "chip": chip,
                "part": row.part,
                "source": row.source,
                "label": row.label,
                "held_out_with": row.group if row.is_fitted else "its source: in no fit",
                "measured_us": row.measured_us,
                "predicted_us": us,
                "error": us / row.measured_us - 1,
                "fitted_error": seen and seen.fitted_us and seen.fitted_us / row.measured_us - 1,
                "interval_us": seen and list(seen.interval_us),
                "contradiction": reasons[row.name],
                "origin": row.origin,
                "assumed": row.assumed,
            }
        )
    errors = dict(zip(fitted.values, np.sqrt(np.diag(fitted.covariance)).tolist(), strict=True))
    return {
        "chip": chip,
        "form": fits.CHOSEN[chip].name,
        # Of all rows that no fit of theirs had seen: what the sets of parameters are spread by.
        "deviation": fits.deviation_of([r["error"] for r in found if not r["contradiction"]]),
        "fit": {
            name: {"value": value, "log_standard_error": errors[name]}
            for name, value in fitted.values.items()
        },
        "rows": found,
        "winners": beside_winners(rows, observations, predictions),
        "fitted": fitted,
    }


def beside_winners(
    rows: Sequence[measured.Row],
    observations: Mapping[str, Observation],
    predictions: Mapping[str, fits.Prediction],
) -> list[dict[str, Any]]:
    """How far behind the best blocks a public winner is simulated, by a fit that had not seen it.

    The winner was found by measuring, the other blocks have no public times. So what choosing them
    would cost is not known; that a winner is behind at all is the simulator's error.
    """
    found = []
    by_call: dict[str, list[measured.Row]] = {}
    for other in measured.load_choices(rows):
        if other.name in observations:
            by_call.setdefault(other.name.partition("/")[0], []).append(other)
    for row in rows:
        if others := by_call.get(row.name):
            seen = predictions[row.name]
            times = predict(seen.machine, [observations[one.name] for one in others])
            found.append(
                {
                    "row": row.name,
                    "chip": row.chip,
                    "call": row.label,
                    "winner_pages": row.contents["block_sizes"]["bkv_p"],
                    "others_us": {
                        str(one.contents["block_sizes"]["bkv_p"]): us
                        for one, us in zip(others, times.tolist(), strict=True)
                    },
                    "winner_us": seen.held_out_us,
                    "behind": max(0.0, seen.held_out_us / min(times) - 1),
                }
            )
    return found


def judge_form(
    job: tuple[str, fits.Form, Sequence[measured.Row], dict[str, Observation]],
) -> list[dict[str, Any]]:
    """One form on one chip, fitted without each source in turn; and what no fit ever sees."""
    chip, form, all_rows, observations = job
    rows = [row for row in all_rows if row.is_fitted]
    parts: dict[str, set[str]] = {}
    for row in rows:
        parts.setdefault(f"{row.source} {row.part}", set()).add(row.name)
    found = []
    seen = [observations[row.name] for row in rows]
    for source, names in parts.items():
        if len(names) == len(rows):
            continue
        errors = fits.without_source(chip, form, seen, names)
        found.append({"chip": chip, "form": form.name, "without": source, **summary(errors)})
    whole = fits.fit_chip(chip, form, seen)
    errors = [us / o.measured_us - 1 for us, o in zip(whole.predicted_us, seen, strict=True)]
    found.append({"chip": chip, "form": form.name, "without": "none", **summary(errors)})
    for source in dict.fromkeys(row.source for row in all_rows if not row.is_fitted):
        unseen = [row for row in all_rows if row.source == source]
        times = predict(whole.machine, [observations[row.name] for row in unseen]).tolist()
        errors = [us / row.measured_us - 1 for us, row in zip(times, unseen, strict=True)]
        found.append({"chip": chip, "form": form.name, "without": source, **summary(errors)})
    return found


def summary(errors: Sequence[float]) -> dict[str, Any]:
    """Figures of errors, as fractions."""
    return {
        "n": len(errors),
        "median_abs_error": statistics.median(map(abs, errors)),
        "worst_abs_error": max(map(abs, errors)),
        "bias": statistics.fmean(errors),
    }


def figures(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Figures of held-out rows."""
    found = summary([row["error"] for row in rows])
    spans = [row["interval_us"] for row in rows]
    halves = [
        (span[1] - span[0]) / 2 / row["predicted_us"] for row, span in zip(rows, spans, strict=True)
    ]
    inside = [
        span[0] <= row["measured_us"] <= span[1] for row, span in zip(rows, spans, strict=True)
    ]
    return found | {
        "rank_correlation": rank_correlation(rows) if len(rows) > 2 else None,
        "interval_coverage": statistics.fmean(inside),
        "interval_half_width": statistics.median(halves),
    }


def rank_correlation(rows: Sequence[dict[str, Any]]) -> float:
    """Spearman's rank correlation of predicted and measured times."""

    def ranks(name: str) -> list[float]:
        values = [row[name] for row in rows]
        return [sum(v < x for v in values) + (sum(v == x for v in values) + 1) / 2 for x in values]

    return statistics.correlation(ranks("predicted_us"), ranks("measured_us"))


def choices(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Regret of choosing block sizes by prediction, wherever alternatives were measured."""
    by_call: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for row in rows:
        if row["source"] == "tpu-inference v3":
            call, _, blocks = row["label"].rpartition(" ")
            by_call.setdefault((row["chip"], call, row["origin"]), []).append(row | {"b": blocks})
    found = []
    for (chip, call, _), tried in by_call.items():
        if len({row["b"] for row in tried}) > 1 and len({row["b"] for row in tried}) == len(tried):
            chosen = min(tried, key=lambda row: row["predicted_us"])
            best = min(row["measured_us"] for row in tried)
            found.append(
                {
                    "chip": chip,
                    "call": call,
                    "tried": len(tried),
                    "regret": chosen["measured_us"] / best - 1,
                }
            )
    return found


def make_report(chips: list[dict[str, Any]], forms: list[dict[str, Any]]) -> dict[str, Any]:
    """The whole report; every share is a fraction."""
    rows = [row for chip in chips for row in chip["rows"]]
    kept = [row for row in rows if not row["contradiction"]]

    def split(*names: str) -> dict[str, Any]:
        groups: dict[str, list[dict[str, Any]]] = {}
        for row in kept:
            groups.setdefault(" ".join(row[name] for name in names), []).append(row)
        return {name: figures(group) for name, group in groups.items()}

    return {
        "by_chip": split("chip"),
        "by_chip_and_part": split("chip", "part"),
        "by_chip_and_source": split("chip", "source", "part"),
        "choices": choices(kept),
        "winners": [one for chip in chips for one in chip["winners"]],
        "forms": forms,
        "fits": {
            chip["chip"]: {"form": chip["form"], "deviation": chip["deviation"], **chip["fit"]}
            for chip in chips
        },
        "rows": rows,
        "provenance": provenance(),
    }


def main() -> None:
    """Runs the comparison."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--json", type=Path, help="write the report here")
    parser.add_argument(
        "--markdown", type=Path, help="put the tables into this page, else print them"
    )
    parser.add_argument("--chip", help="only rows of this chip")
    parser.add_argument("--forms", action="store_true", help="try every form of the copy engine")
    parser.add_argument("--refit", action="store_true", help="rewrite the machine table and sets")
    args = parser.parse_args()
    rows = [row for row in measured.load_rows() if args.chip in (None, row.chip)]
    observations, manifest = measured.load_observations((*rows, *measured.load_choices(rows)))
    left_out = [row for row in rows if row.name not in observations and not row.left_out]
    present = [row for row in rows if row.name in observations]
    chips = [chip for chip in fits.CHOSEN if any(row.chip == chip for row in present)]
    # Spawned: a fork of a process with threads, which jax's are, may hang.
    with ProcessPoolExecutor(max_workers=2, mp_context=get_context("spawn")) as pool:
        jobs = [(chip, [r for r in present if r.chip == chip], observations) for chip in chips]
        judged = list(pool.map(judge_chip, jobs))
        forms = []
        if args.forms:
            tried = [
                (chip, form, [r for r in mine if not find_contradiction(r, seen[r.name])], seen)
                for chip, mine, seen in jobs
                if chip not in ("v5e", "v5p")  # too few rows, or none that depend on copies
                for form in fits.forms_of(chip)
            ]
            forms = [line for lines in pool.map(judge_form, tried) for line in lines]
    found = make_report(judged, forms) | {
        "recorded_with": manifest["versions"],
        "left_out": {row.name: row.left_out for row in rows if row.left_out},
    }
    text = report.markdown(found)
    if args.markdown:
        report.write_into(args.markdown, text)
    else:
        print(text)
    if args.json:
        args.json.write_text(json.dumps(found, indent=1, default=str) + "\n")
    if args.refit:
        table.write(judged)
    if left_out:
        lines = [f"{row.name} ({row.chip} {row.label})" for row in left_out]
        sys.exit("rows left out, because nothing is recorded of them:\n" + "\n".join(lines))


if __name__ == "__main__":
    main()
