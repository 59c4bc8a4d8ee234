"""How well the simulator agrees with public measured times.

Downloads the tpu-inference 0.32.0 wheel beside the project, compiles its v3 kernel with every
record's shapes and block sizes for a chip that is not there, simulates the record's batch, and
compares. Compiling takes about an hour of one core the first time, a quarter of it for record 26;
schedules are kept.

    python benchmarks/fidelity.py [--json FILE] [--records FILE] [--chip v6e] [--workers 2]

Times that parameters were fitted to count with the error of a machine fitted without them. Records
whose kernel cannot be the one we compile are listed with the reason and stay out of the summary.
"""

import argparse
import itertools
import json
import math
import statistics
import sys
from pathlib import Path
from typing import Any

from rpa_tune.cli.paths import default_cache_dir
from rpa_tune.interop.records import Record, load_records, schedules
from rpa_tune.llo.calibrate import Observation, fit
from rpa_tune.llo.machine import load_machine
from rpa_tune.llo.simulate import simulate
from rpa_tune.provenance import provenance

DATA = Path(__file__).parent / "data" / "measured_rpa.json"
# Device times that parameters of the machine table were fitted to: file positions, and the values
# of those parameters before. For `held_out_error` they are fitted again without the record.
FITTED = {
    "v5e": (
        (9, 10, 11, 12),
        {
            "matmul_latency_bf16_cycles": 130.0,
            "matmul_latency_f32_cycles": 150.0,
            "read_latency_cycles": 900.0,
            "write_latency_cycles": 900.0,
            "launch_us": 0.9,
        },
    ),
    "v7x": (
        (1, 2, 3, 4, 5, 6),
        {
            "clock_hz": 2.2e9,
            "read_copy_bytes_per_s": 2.95e12,
            "read_latency_cycles": 1540.0,
            "write_latency_cycles": 1540.0,
        },
    ),
}


def row_of(record: Record, program: Any) -> dict[str, Any]:
    """Predicted against measured for one record."""
    row: dict[str, Any] = {
        "record": record.index,
        "chip": record.chip,
        "case": record.case,
        "heads": f"{record.problem.num_q_heads}/{record.problem.num_kv_heads}",
        "head_dim": record.problem.head_dim,
        "page_size": record.problem.page_size,
        "num_seqs": len(record.batch.q_lens),
        "kv_tokens": sum(record.batch.kv_lens),
        "sliding_window": record.problem.sliding_window,
        "blocks": list(record.blocks),
        "measured_us": record.measured_us,
        "timed": record.timed,
        "is_device_time": record.is_device_time,
        "was_fitted_to": any(record.index in used for used, _ in FITTED.values()),
        "held_out_error": None,
        "assumed": record.assumed,
        "source": record.source,
        "excluded": "",
    }
    if isinstance(program, str):
        return row | {"predicted_us": None, "error": None, "excluded": program}
    machine = load_machine(record.chip)
    timeline = simulate(program, machine, record.operands())
    bundles_us = timeline.num_bundles / machine.value("clock_hz") * 1e6
    row |= {
        "predicted_us": timeline.time_us,
        "error": timeline.time_us / record.measured_us - 1,
        "bundles_us": bundles_us,
        "cycles_by_owner": timeline.cycles_by_owner,
        "bound_by": timeline.bound_by,
        "unknown": timeline.unknown,
        "guesses": list(timeline.guesses),
    }
    if bundles_us > 1.1 * record.measured_us:
        # No machine runs more bundles than it has cycles: another kernel was measured.
        row["excluded"] = (
            f"its bundles alone take {bundles_us:.1f} us: the measured kernel did less work"
        )
    return row


def pair_ratio_errors(rows: list[dict[str, Any]]) -> list[float]:
    """Error of the predicted ratio inside each pair that differs in block sizes only."""
    same = (
        "chip", "case", "heads", "head_dim", "page_size", "num_seqs", "kv_tokens",
        "sliding_window", "timed", "source",
    )  # fmt: skip
    errors = []
    for a, b in itertools.combinations(rows, 2):
        if a["blocks"] == b["blocks"] or any(a[key] != b[key] for key in same):
            continue
        predicted = a["predicted_us"] / b["predicted_us"]
        errors.append(abs(predicted / (a["measured_us"] / b["measured_us"]) - 1))
    return errors


def rank_correlation(rows: list[dict[str, Any]]) -> float:
    """Spearman's rank correlation of predicted and measured times."""

    def ranks(name: str) -> list[float]:
        values = [row[name] for row in rows]
        return [sum(v < x for v in values) + (sum(v == x for v in values) + 1) / 2 for x in values]

    return statistics.correlation(ranks("predicted_us"), ranks("measured_us"))


def add_held_out(rows: list[dict[str, Any]], programs: dict[int, Any], records: Any) -> None:
    """Sets the error of fitted records under a machine fitted without them."""
    for chip, (used, start) in FITTED.items():
        present = [record for record in records if record.index in used]
        if len(present) != len(used):
            continue
        machine = load_machine(chip).with_values(start, source="before", confidence="guess")
        observations = [
            Observation(
                label=str(record.index),
                program=programs[record.index],
                operands=record.operands(),
                measured_us=record.measured_us,
            )
            for record in present
        ]
        result = fit(machine, observations, tuple(start))
        by_record = {row["record"]: row for row in rows}
        for record, time_us in zip(present, result.held_out_us, strict=True):
            by_record[record.index]["held_out_error"] = time_us / record.measured_us - 1


def summary_of(rows: list[dict[str, Any]], error: str = "error") -> dict[str, Any]:
    """The figures of a set of rows."""
    errors = [abs(row[error]) for row in rows]
    pairs = pair_ratio_errors(rows)
    return {
        "records": len(rows),
        "median_abs_error": statistics.median(errors) if errors else None,
        "worst_abs_error": max(errors, default=None),
        "rank_correlation": rank_correlation(rows) if len(rows) > 2 else None,
        "median_pair_ratio_error": statistics.median(pairs) if pairs else None,
        "worst_pair_ratio_error": max(pairs, default=None),
        "num_pairs": len(pairs),
    }


def report_of(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The whole report.

    On top are device times, each predicted without having been fitted to. Wall-clock times hold
    the wrapper's own work besides the kernel's: they are a part of their own.
    """
    kept = [row for row in rows if not row["excluded"]]
    device = [row for row in kept if row["is_device_time"]]
    for row in device:
        if row["held_out_error"] is None:
            row["held_out_error"] = row["error"]
    report = summary_of(device, "held_out_error")
    report["parts"] = {
        "device times, as the table has them": summary_of(device),
        "wall clock of the whole call, kernel simulated": summary_of(
            [row for row in kept if not row["is_device_time"]]
        ),
    }
    report["num_excluded"] = len(rows) - len(kept)
    report["rows"] = rows
    return report


def print_report(report: dict[str, Any]) -> None:
    """Prints a Markdown table and the summaries."""
    names = "#", "chip", "case", "heads", "dim", "page", "seqs", "blocks", "measured", "simulated"
    print(f"| {' | '.join(names)} | error |\n|{'---|' * (len(names) + 1)}")
    for row in sorted(report["rows"], key=lambda row: (row["chip"], row["record"])):
        mark = "" if row["is_device_time"] else " (wall)"
        fitted = ""
        if row["was_fitted_to"]:
            fitted = " (fitted)"
            if row["held_out_error"] != row["error"]:
                fitted = f" (fitted; held out {row['held_out_error']:+.1%})"
        predicted = "-" if row["predicted_us"] is None else f"{row['predicted_us']:.1f}"
        error = "-" if row["error"] is None else f"{row['error']:+.1%}"
        print(
            f"| {row['record']} | {row['chip']} | {row['case']} | {row['heads']} |"
            f" {row['head_dim']} | {row['page_size']} | {row['num_seqs']} |"
            f" {'/'.join(map(str, row['blocks']))} | {row['measured_us']:g}{mark} |"
            f" {predicted} | {'excluded' if row['excluded'] else error}{fitted} |"
        )
    print()
    for name, part in {"device times, held out": report, **report["parts"]}.items():
        if not part["records"]:
            continue
        print(
            f"{name}: {part['records']} records, median error {part['median_abs_error']:.1%},"
            f" worst {part['worst_abs_error']:.1%}"
            + (
                f", rank correlation {part['rank_correlation']:.3f}"
                if part["rank_correlation"] is not None
                else ""
            )
            + (
                f", pair ratio error median {part['median_pair_ratio_error']:.1%}"
                f" worst {part['worst_pair_ratio_error']:.1%} ({part['num_pairs']} pairs)"
                if part["num_pairs"]
                else ""
            )
        )
    for row in report["rows"]:
        if row["excluded"]:
            print(f"excluded {row['record']} ({row['source']}): {row['excluded']}")


def main() -> None:
    """Runs the comparison."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--records", type=Path, default=DATA)
    parser.add_argument("--json", type=Path, help="write the report here")
    parser.add_argument("--chip", help="only records of this chip")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--cache-dir", type=Path, default=default_cache_dir() / "fidelity")
    args = parser.parse_args()
    records = [r for r in load_records(args.records) if args.chip in (None, r.chip)]
    rows, programs = [], {}
    for record, program in schedules(records, cache_dir=args.cache_dir, num_workers=args.workers):
        rows.append(row_of(record, program))
        programs[record.index] = program
        print(f"record {record.index} done", file=sys.stderr)
    add_held_out(rows, programs, records)
    report = report_of(rows)
    assert all(math.isfinite(row["error"]) for row in rows if row["error"] is not None)
    print_report(report)
    report["provenance"] = provenance()
    if args.json:
        args.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
