"""Rows as entries of tokamax's own table of `PallasTpuBatchedRpa`, its JSON. No jax.

An entry is a call with a config for both of its kernels: rows of `public-tokamax-decode` and
`-mixed` make one together. Where their winners do not agree on what the kernels share, the entry is
of other configs that both studies timed and that do. The form is in `public/tokamax/table.py`.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import product
from typing import Any

from rpa_tune.errors import UsageError
from rpa_tune.interop.export_rows import Export, asked, sort_out
from rpa_tune.interop.public.tokamax.table import CASES, DTYPES, call_spec
from rpa_tune.tables.row import TableRow

_Config = dict[str, Any]
_SHARED = ("bkv_sz", "n_buffer")


def export_tables(rows: Iterable[TableRow], num_pages: int | None = None) -> Export:
    """The JSON of one chip's file.

    Args:
      rows: Those of other kernels are left out.
      num_pages: Pages in the cache of the calls that are to find the entries, which the table's key
        has; None for the sweep's. No block size depends on it.

    Raises:
      UsageError: Rows of several chips: each has a file of its own.
    """
    export = sort_out(rows, ("tokamax",), "tokamax has no kernel of this kind")
    calls: dict[str, dict[str, TableRow]] = {}
    for row, problem in asked(export, export.exported):
        if problem.kv_dtype not in DTYPES or problem.q_dtype not in DTYPES:
            export.leave_out(row, f"tokamax's tables have no {problem.kv_dtype}")
            continue
        if num_pages is not None:
            problem = replace(problem, num_pages=num_pages)
        case = row.key.family.rpartition("-")[2]
        pair = calls.setdefault(row.key.chip + json.dumps(call_spec(problem)), {})
        if case in pair:
            export.leave_out(row, "its call in the public table is that of a row before it")
        else:
            pair[case] = row
    entries, export.exported = {}, []
    for call, pair in calls.items():
        if timed := _agreed(export, pair):
            export.exported += [pair[case] for case in CASES]
            entries[call[len(pair["decode"].key.chip) :]] = _entry(pair, timed)
    chips = sorted({row.key.chip for row in export.exported})
    if len(chips) > 1:
        raise UsageError(
            f"a table of tokamax is for one device, the rows are for {', '.join(chips)}",
            hint="choose one: --chip",
        )
    export.text = json.dumps(entries, indent=1) + "\n"
    return export


def _agreed(export: Export, pair: dict[str, TableRow]) -> dict[str, tuple[_Config, float]] | None:
    """(config, time in us) of each case; None, and its rows left out, if there is none of both.

    Of all that agree, those of the least sum of times, each as a share of its row's best: a step's
    mix of both kernels is not known.
    """
    if len(pair) < len(CASES):
        (other,) = set(CASES) - set(pair)
        why = f"no {other} row for the same call, which would run with this row's KV blocks"
    else:
        both = [
            timed for timed in product(*(_timed(pair[case]) for case in CASES))
            if _shared(timed[0][0]) == _shared(timed[1][0])
        ]  # fmt: skip
        if both:
            best = [pair[case].evidence.time_us for case in CASES]
            decode, mixed = min(both, key=lambda t: t[0][1] / best[0] + t[1][1] / best[1])
            return {"decode": decode, "mixed": mixed}
        said = [_shared(pair[case].configs[0]) for case in CASES]
        apart = ", ".join(
            f"{name} {a} and {b}" for name, a, b in zip(_SHARED, *said, strict=True) if a != b
        )
        why = (
            f"decode and mixed share one {' and '.join(_SHARED)} there; the rows say {apart}, and "
            "no other configs that have times agree"
        )
    for row in pair.values():
        export.leave_out(row, why)
    return None


def _shared(config: _Config) -> tuple[int, ...]:
    return tuple(config[name] for name in _SHARED)


def _timed(row: TableRow) -> Iterator[tuple[_Config, float]]:
    """Configs whose time a row says, with it: the winner, those after it, the default."""
    evidence = row.evidence
    yield row.configs[0], evidence.time_us
    for other in evidence.runners_up:
        yield other["config"], other["time_us"]
    if evidence.heuristic is not None and evidence.heuristic_us is not None:
        yield evidence.heuristic, evidence.heuristic_us


def _entry(pair: dict[str, TableRow], timed: dict[str, tuple[_Config, float]]) -> dict[str, Any]:
    """{config: what is known of it}; the time is what the rows say, by their evaluator."""
    small, large = timed["decode"][0], timed["mixed"][0]
    config = {
        "prefill_bq_sz": large["bq_sz"],
        "prefill_bq_c_sz": large["bq_c_sz"],
        "bkv_sz": large["bkv_sz"],
        "n_buffer": large["n_buffer"],
        "decode_batch_size": small["batch_size"],
        "prefill_batch_size": large["batch_size"],
        "kv_layout": "HEAD_ALONG_SUBLANE",
    }
    evidence = {case: _words(row, *timed[case]) for case, row in pair.items()}
    data = {
        "compile_time_ms": 0.0,
        "lower_time_ms": 0.0,
        "evaluation_times_ms": [sum(time_us for _, time_us in timed.values()) / 1e3],
        "metadata": {"rpa_tune": evidence},
    }
    return {json.dumps(config): data}


def _words(row: TableRow, config: _Config, time_us: float) -> str:
    """What is known of a row's config in an entry."""
    said = f"{row.evidence.fidelity} {time_us:.1f} us, {row.evidence.workload}"
    if config == row.configs[0]:
        return said
    best = ", ".join(f"{name} {row.configs[0][name]}" for name in _SHARED)
    return f"{said}; by itself {row.evidence.time_us:.1f} us with {best}"
