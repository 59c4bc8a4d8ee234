"""tokamax's own table of `PallasTpuBatchedRpa`: the form of its JSON, and what is in one. No jax.

The table's key is a whole call: every shape, dtype and argument, the softmax scale among them; so
an entry serves the call that was timed, and no other. Its config is one record for both kernels of
the call, which share `bkv_sz` and `n_buffer`.

Source: tokamax 0.0.17, _src/autotuning/cache.py (the file's form, and the folder of a device),
_src/ops/batched_rpa/pallas_mosaic_tpu.py (`Config` and the arguments). Its shipped v7x rows say
`num_buffers`, which `Config` ignores: its field is `n_buffer`. Here both are read.
"""

import json
import re
import statistics
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from rpa_kernels import layout
from rpa_kernels.problem import Problem
from rpa_tune.errors import UsageError
from rpa_tune.interop.public.batched import BatchedConfig
from rpa_tune.interop.public.tokamax.package import WHEEL

FILE = "pallas_tpu_batched_rpa.json"
# Folder of a chip's tables: its device kind, as jax says it, in lower case without blanks.
FOLDERS = {"v5e": "tpu_v5_lite", "v5p": "tpu_v5", "v6e": "tpu_v6_lite", "v7x": "tpu7x"}
CASES = ("decode", "mixed")
DTYPES = {
    "bfloat16": "bf16", "float32": "f32", "float8_e4m3fn": "f8_e4m3fn", "float8_e5m2": "f8_e5m2",
}  # fmt: skip
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


def call_spec(problem: Problem) -> dict[str, Any]:
    """The call as the table's key says it: the operator's arguments in order, with defaults."""
    tokens, seqs = problem.max_num_tokens, problem.max_num_seqs
    q_dtype, kv_dtype = DTYPES[problem.q_dtype], DTYPES[problem.kv_dtype]
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
    cases = {
        "decode": {"bq_sz": 1, "bq_c_sz": 1, "batch_size": blocks["decode_batch_size"]},
        "mixed": {
            "bq_sz": blocks["prefill_bq_sz"], "bq_c_sz": blocks["prefill_bq_c_sz"],
            "batch_size": blocks["prefill_batch_size"],
        },
    }  # fmt: skip
    sizes = [*shared.values(), *(size for case in cases.values() for size in case.values())]
    if any(type(size) is not int for size in sizes):
        raise ValueError(f"a size that is no whole number in {config}")
    configs = {case: BatchedConfig(**own, **shared) for case, own in cases.items()}
    return TunedCall(chip=chip, problem=problem, configs=configs)


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
    names = {short: name for name, short in DTYPES.items()} | {"i32": "int32"}
    if found is None:
        raise ValueError(f"{text!r} is no array")
    shape = tuple(int(size) for size in found[2].split(","))
    return (names[found[1]], shape) if found[1] in names else None
