"""tokamax's own table of `PallasTpuBatchedRpa`, its JSON, written and read. No jax.

The table's key is a whole call: every shape, dtype and argument, the softmax scale among them; so
an entry serves the call that was timed, and no other. Its config is one record for both kernels of
the call, which share `bkv_sz` and `n_buffer`: rows of `public-tokamax-decode` and `-mixed` make an
entry together, if they agree on these.

Source: tokamax 0.0.17, _src/autotuning/cache.py (the file's form, and the folder of a device),
_src/ops/batched_rpa/pallas_mosaic_tpu.py (`Config` and the arguments). Its shipped v7x rows say
`num_buffers`, which `Config` ignores: its field is `n_buffer`. Here both are read.
"""

import json
import re
import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from rpa_kernels import layout
from rpa_kernels.problem import Problem
from rpa_tune.errors import UsageError
from rpa_tune.interop.export_rows import Export, asked, sort_out
from rpa_tune.interop.public.batched import BatchedConfig
from rpa_tune.interop.public.tokamax.families import TOKAMAX
from rpa_tune.interop.public.tokamax.package import WHEEL
from rpa_tune.tables.row import TableRow

FILE = "pallas_tpu_batched_rpa.json"
# Folder of a chip's tables: its device kind, as jax says it, in lower case without blanks.
FOLDERS = {"v5e": "tpu_v5_lite", "v5p": "tpu_v5", "v6e": "tpu_v6_lite", "v7x": "tpu7x"}
_DTYPES = {
    "bfloat16": "bf16", "float32": "f32", "float8_e4m3fn": "f8_e4m3fn", "float8_e5m2": "f8_e5m2",
}  # fmt: skip
_CASES = ("decode", "mixed")
_SHARED = ("bkv_sz", "n_buffer")
_DEFAULT_BUFFERS = 3  # of its `Config`
_TABLES = "tokamax/data/autotuning"  # of the wheel
# What a key says of the problem: numbers, and arrays whose shapes have the rest.
_SAID = ("sm_scale", "sliding_window", "soft_cap", "q_scale", "k_scale", "v_scale")
_SHAPED = ("queries", "keys", "kv_cache", "kv_lens", "page_indices")
_ARRAY = re.compile(r"(\w+)\[(\d+(?:,\d+)*)\]")


@dataclass(frozen=True, kw_only=True, slots=True)
class TunedCall:
    """An entry of a table: a call that was tuned, and the blocks that were best.

    Attributes:
      chip: Name in the chip table.
      problem: Of the call.
      configs: Blocks of its two kernels, `decode` and `mixed`.
    """

    chip: str
    problem: Problem
    configs: dict[str, BatchedConfig]


def export_tables(rows: Iterable[TableRow]) -> Export:
    """The JSON of one chip's file.

    Raises:
      UsageError: Rows of several chips: each has a file of its own.
    """
    export = sort_out(rows, ("tokamax",), "tokamax has no kernel of this kind")
    calls: dict[str, dict[str, TableRow]] = {}
    for row, problem in asked(export, export.exported):
        if problem.kv_dtype not in _DTYPES or problem.q_dtype not in _DTYPES:
            export.leave_out(row, f"tokamax's tables have no {problem.kv_dtype}")
            continue
        case = row.key.family.rpartition("-")[2]
        pair = calls.setdefault(row.key.chip + json.dumps(call_spec(problem)), {})
        if case in pair:
            export.leave_out(row, "its call in the public table is that of a row before it")
        else:
            pair[case] = row
    pairs = {call: pair for call, pair in calls.items() if _is_entry(export, pair)}
    export.exported = [pair[case] for pair in pairs.values() for case in _CASES]
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
    if len(pair) < len(_CASES):
        (other,) = set(_CASES) - set(pair)
        why = f"no {other} row for the same call, which would run with this row's KV blocks"
    else:
        decode, mixed = (pair[case].configs[0] for case in _CASES)
        apart = [name for name in _SHARED if decode[name] != mixed[name]]
        if apart:
            said = ", ".join(f"{name} {decode[name]} and {mixed[name]}" for name in apart)
            why = f"decode and mixed share one {' and '.join(_SHARED)} there; the rows say {said}"
    if why:
        for row in pair.values():
            export.leave_out(row, why)
    return not why


def call_spec(problem: Problem) -> dict[str, Any]:
    """The call as the table's key says it: the operator's arguments in order, with defaults."""
    tokens, seqs = problem.max_num_tokens, problem.max_num_seqs
    q_dtype, kv_dtype = _DTYPES[problem.q_dtype], _DTYPES[problem.kv_dtype]
    new = f"{kv_dtype}[{tokens},{problem.num_kv_heads},{problem.head_dim}]"
    pack = layout.packing(problem.kv_dtype)
    rows = layout.align(2 * problem.num_kv_heads, pack) // pack
    lanes = layout.align(problem.head_dim, layout.LANES)
    cache = (problem.num_pages, problem.page_size, rows, pack, lanes)
    return {
        "queries": f"{q_dtype}[{tokens},{problem.num_q_heads},{problem.head_dim}]",
        "keys": new,
        "values": new,
        "kv_cache": f"{kv_dtype}[{','.join(map(str, cache))}]",
        "kv_lens": f"i32[{seqs}]",
        "page_indices": f"i32[{seqs * problem.pages_per_seq}]",
        "cu_q_lens": f"i32[{seqs + 1}]",
        "distribution": "i32[3]",
        "sm_scale": problem.sm_scale,
        "sliding_window": problem.sliding_window,
        "soft_cap": problem.soft_cap,
        "mask_value": None,
        "q_scale": problem.q_scale,
        "k_scale": problem.k_scale,
        "v_scale": problem.v_scale,
        **dict.fromkeys(
            ("chunk_prefill_size", "decode_block_sizes", "prefill_block_sizes", "vmem_limit_bytes")
        ),
        "debug_mode": False,
        "out_dtype": None,
        "use_causal_mask": True,
        "skip_kv_update": False,
        "kv_layout": "HEAD_ALONG_SUBLANE",
        "decode_query_size": 1,
        "cp_group_size": None,
        "cp_rank": None,
        "attention_scope": "FULL",
        "return_lse": False,
        "return_residuals": False,
    }


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


def shipped_calls() -> list[TunedCall]:
    """What tokamax itself was shipped with, tuned on TPUs by its authors; empty without tokamax.

    Of the wheel that this process uses, or else of the package that is installed.

    Raises:
      UsageError: A table is damaged.
    """
    try:
        folder = WHEEL.root / _TABLES
    except UsageError:
        try:
            folder = Path(str(metadata.distribution(WHEEL.project).locate_file(_TABLES)))
        except metadata.PackageNotFoundError:
            return []
    files = {chip: folder / place / FILE for chip, place in FOLDERS.items()}
    return [one for chip, file in files.items() if file.is_file() for one in load_table(file, chip)]


def shipped_configs(case: str) -> list[tuple[str, Problem, BatchedConfig]]:
    """(chip, problem, blocks) of one kernel of the shipped calls; see `shipped_calls`."""
    return [(one.chip, one.problem, one.configs[case]) for one in shipped_calls()]


def load_table(file: Path, chip: str) -> list[TunedCall]:
    """Reads a table: a shipped one, a user's own, or an export.

    Calls of kinds that the families do not serve are left out.

    Args:
      file: JSON.
      chip: Whose table it is; the file itself does not say.

    Raises:
      UsageError: It cannot be read, or is no such table.
    """
    try:
        entries = json.loads(file.read_text(encoding="utf-8"))
        found = [_tuned_call(chip, json.loads(call), best) for call, best in entries.items()]
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise UsageError(
            f"no table of tokamax's {FILE}: {type(error).__name__}: {error}", where=str(file)
        ) from error
    return [one for one in found if one is not None]


def _tuned_call(chip: str, call: dict[str, Any], best: dict[str, Any]) -> TunedCall | None:
    """An entry; None for a call that no row of ours could say."""
    problem = _problem_of(call)
    if problem is None or not best:
        return None
    if any(call.get(name) != value for name, value in call_spec(problem).items()):
        return None
    # Of several configs the fastest: its look-up takes that one, too.
    config, _ = min(best.items(), key=lambda one: statistics.median(one[1]["evaluation_times_ms"]))
    blocks = json.loads(config)
    shared = {
        "bkv_sz": blocks["bkv_sz"],
        # Shipped rows say what they were timed with under a name of old, which its look-up drops.
        "n_buffer": blocks.get("n_buffer", blocks.get("num_buffers", _DEFAULT_BUFFERS)),
    }
    fields = {
        "decode": {"bq_sz": 1, "bq_c_sz": 1, "batch_size": blocks["decode_batch_size"]},
        "mixed": {
            "bq_sz": blocks["prefill_bq_sz"], "bq_c_sz": blocks["prefill_bq_c_sz"],
            "batch_size": blocks["prefill_batch_size"],
        },
    }  # fmt: skip
    made = {
        case: TOKAMAX[f"public-tokamax-{case}"].config_from_dict({**fields[case], **shared})
        for case in _CASES
    }
    return TunedCall(chip=chip, problem=problem, configs=made)


def _problem_of(call: dict[str, Any]) -> Problem | None:
    """The problem of a call, or None where an array is of a dtype or shape that we do not have."""
    arrays = {name: _array(call[name]) for name in _SHAPED}
    if None in arrays.values():
        return None
    (q_dtype, (tokens, q_heads, head_dim)) = arrays["queries"]
    (kv_dtype, (_, kv_heads, _)) = arrays["keys"]
    pages, page_size = arrays["kv_cache"][1][:2]
    (seqs,) = arrays["kv_lens"][1]
    return Problem(
        num_q_heads=q_heads, num_kv_heads=kv_heads, head_dim=head_dim, page_size=page_size,
        max_num_tokens=tokens, max_num_seqs=seqs,
        pages_per_seq=arrays["page_indices"][1][0] // seqs, num_pages=pages,
        q_dtype=q_dtype, kv_dtype=kv_dtype, **{name: call[name] for name in _SAID},
    )  # fmt: skip


def _array(text: str) -> Any:
    """(dtype, shape) of `bf16[4,32,256]`; None for a dtype that is none of ours."""
    found = _ARRAY.fullmatch(text)
    names = {short: name for name, short in _DTYPES.items()} | {"i32": "int32"}
    if found is None:
        raise ValueError(f"{text!r} is no array")
    shape = tuple(int(size) for size in found[2].split(","))
    return (names[found[1]], shape) if found[1] in names else None
