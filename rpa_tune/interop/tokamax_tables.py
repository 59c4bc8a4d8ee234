"""Rows as entries of tokamax's own table of `PallasTpuBatchedRpa`, its JSON. No jax.

An entry is a call with a config for both of its kernels: rows of `public-tokamax-decode` and
`-mixed` make one together, if they agree on what these share. The form is in
`public/tokamax/table.py`.
"""

import json
from collections.abc import Iterable
from typing import Any

from rpa_tune.errors import UsageError
from rpa_tune.interop.export_rows import Export, asked, sort_out
from rpa_tune.interop.public.tokamax.table import CASES, DTYPES, call_spec
from rpa_tune.tables.row import TableRow

_SHARED = ("bkv_sz", "n_buffer")


def export_tables(rows: Iterable[TableRow]) -> Export:
    """The JSON of one chip's file.

    Raises:
      UsageError: Rows of several chips: each has a file of its own.
    """
    export = sort_out(rows, ("tokamax",), "tokamax has no kernel of this kind")
    calls: dict[str, dict[str, TableRow]] = {}
    for row, problem in asked(export, export.exported):
        if problem.kv_dtype not in DTYPES or problem.q_dtype not in DTYPES:
            export.leave_out(row, f"tokamax's tables have no {problem.kv_dtype}")
            continue
        case = row.key.family.rpartition("-")[2]
        pair = calls.setdefault(row.key.chip + json.dumps(call_spec(problem)), {})
        if case in pair:
            export.leave_out(row, "its call in the public table is that of a row before it")
        else:
            pair[case] = row
    pairs = {call: pair for call, pair in calls.items() if _is_entry(export, pair)}
    export.exported = [pair[case] for pair in pairs.values() for case in CASES]
    chips = sorted({row.key.chip for row in export.exported})
    if len(chips) > 1:
        raise UsageError(
            f"a table of tokamax is for one device, the rows are for {', '.join(chips)}",
            hint="choose one: --chip",
        )
    entries = {call[len(pair["decode"].key.chip) :]: _entry(**pair) for call, pair in pairs.items()}
    export.text = json.dumps(entries, indent=1) + "\n"
    return export


def _is_entry(export: Export, pair: dict[str, TableRow]) -> bool:
    """Whether a call has all that its config says; leaves its rows out if not."""
    why = ""
    if len(pair) < len(CASES):
        (other,) = set(CASES) - set(pair)
        why = f"no {other} row for the same call, which would run with this row's KV blocks"
    else:
        decode, mixed = (pair[case].configs[0] for case in CASES)
        apart = [name for name in _SHARED if decode[name] != mixed[name]]
        if apart:
            said = ", ".join(f"{name} {decode[name]} and {mixed[name]}" for name in apart)
            why = f"decode and mixed share one {' and '.join(_SHARED)} there; the rows say {said}"
    if why:
        for row in pair.values():
            export.leave_out(row, why)
    return not why


def _entry(decode: TableRow, mixed: TableRow) -> dict[str, Any]:
    """{config: what is known of it}; the time is what the rows say, by their evaluator."""
    small, large = decode.configs[0], mixed.configs[0]
    config = {
        "prefill_bq_sz": large["bq_sz"],
        "prefill_bq_c_sz": large["bq_c_sz"],
        "bkv_sz": large["bkv_sz"],
        "n_buffer": large["n_buffer"],
        "decode_batch_size": small["batch_size"],
        "prefill_batch_size": large["batch_size"],
        "kv_layout": "HEAD_ALONG_SUBLANE",
    }
    evidence = {
        case: f"{row.evidence.fidelity} {row.evidence.time_us:.1f} us, {row.evidence.workload}"
        for case, row in (("decode", decode), ("mixed", mixed))
    }
    data = {
        "compile_time_ms": 0.0,
        "lower_time_ms": 0.0,
        "evaluation_times_ms": [(decode.evidence.time_us + mixed.evidence.time_us) / 1e3],
        "metadata": {"rpa_tune": evidence},
    }
    return {json.dumps(config): data}
