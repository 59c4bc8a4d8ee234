"""Rows as entries of the tables that tpu-inference 0.32.0 looks up. No jax.

| kernel | table | read in 0.32.0 |
|---|---|---|
| hd64 | `v3/tuned_block_sizes_hd64.py: TUNED_BLOCK_SIZES` | yes |
| batched | `batched_rpa/tuned_params.py: tuned_params_mapping` | yes; ships empty |
| v3 | `v3/tuned_block_sizes.py: TUNED_BLOCK_SIZES` | **no**: nothing imports it |
| mla | `mla/v2/tuned_params.py: tuned_params_mapping` | yes; its key names no device |
| stacked | none | |

So v3 rows go through keyword arguments or environment variables.
"""

from collections.abc import Callable, Iterable

from rpa_kernels import layout
from rpa_kernels.problem import Problem
from rpa_tune.hw.chip import load_chip
from rpa_tune.interop.export_rows import Export, asked, comment, family_of, sort_out
from rpa_tune.interop.public.tpu_inference.package import DEVICE_NAMES, PACKAGE
from rpa_tune.tables.row import TableRow

_KERNELS = "tpu_inference.kernels"
_HD64 = f"{_KERNELS}.ragged_paged_attention.v3.tuned_block_sizes_hd64"
_BATCHED = f"{_KERNELS}.experimental.batched_rpa.tuned_params"
_MLA = f"{_KERNELS}.mla.v2.tuned_params"
_NO_TABLE = f"{PACKAGE.title} reads no table for it; use --format kwargs, or env for v3"


def export_tables(rows: Iterable[TableRow]) -> Export:
    """A Python module that adds the rows to the tables when it is imported."""
    export = sort_out(rows, tuple(_ENTRIES), _NO_TABLE)
    lines: dict[str, list[str]] = {kernel: [] for kernel in _ENTRIES}
    kept, seen = [], set()
    for row, problem in asked(export, export.exported):
        kernel = family_of(row).kernel
        entry = _ENTRIES[kernel](row, problem)
        place = entry.split(" = ")[0]
        if why := _unsayable(row):
            export.leave_out(row, why)
        elif place in seen:
            export.leave_out(row, "its key in the public table is that of a row before it")
        else:
            seen.add(place)
            kept.append(row)
            lines[kernel] += [comment(row), entry]
    export.exported = kept
    export.text = _module(lines)
    return export


def _unsayable(row: TableRow) -> str:
    """Why the engine would not find a row's entry; empty if it would."""
    key, kernel = row.key, family_of(row).kernel
    if kernel == "batched" and key.has_scales:
        return "the public key holds the values of the scales, the row only that there are some"
    if kernel == "mla" and (key.sliding_window_tokens or key.has_soft_cap):
        return "the engine looks the kernel up without a window or soft cap"
    return ""


def hd64_entry(row: TableRow, problem: Problem) -> str:
    """`TABLE[device][page][dtypes][heads][extra] = (pages, queries)`, levels made where missing."""
    config = row.configs[0]
    *levels, last = hd64_key(problem, row.key.chip)
    path = "".join(f".setdefault({level!r}, {{}})" for level in levels)
    value = (config["bkv_sz"] // problem.page_size, config["bq_sz"])
    return f"TUNED_BLOCK_SIZES{path}[{last!r}] = {value}"


def hd64_key(problem: Problem, chip: str) -> tuple[str, int, str, str, str]:
    """The look-up key of the hd64 table: sizes rounded up to powers of two, the window exact.

    Source: `get_lookup_keys` in tuned_block_sizes_hd64.py.
    """
    kv_heads = problem.num_kv_heads
    queries_per_kv = layout.align(problem.num_q_heads // kv_heads, layout.packing(problem.q_dtype))
    q_heads = layout.next_power_of_2(queries_per_kv * kv_heads)
    kv_heads = layout.next_power_of_2(layout.align(kv_heads, layout.packing(problem.kv_dtype)))
    context = layout.next_power_of_2(problem.max_context_tokens)
    return (
        DEVICE_NAMES[chip],
        layout.next_power_of_2(problem.page_size),
        f"q_{problem.q_dtype}_kv_{problem.kv_dtype}",
        f"q_head-{q_heads}_kv_head-{kv_heads}_head-{problem.head_dim}",
        f"max_model_len-{context}-sw-{problem.sliding_window}",
    )


def batched_entry(row: TableRow, problem: Problem) -> str:
    """`tuned_params_mapping[TuningKey(...)] = TunableParams(...)`, every field exact."""
    fields = {
        "case": "decode" if family_of(row).case == "decode" else "prefill",
        "num_q_heads": problem.num_q_heads,
        "num_kv_heads": problem.num_kv_heads,
        "head_dim": problem.head_dim,
        "num_seqs": problem.max_num_seqs,
        "page_size": problem.page_size,
        "total_q_tokens": problem.max_num_tokens,
        "num_page_indices": problem.max_num_seqs * problem.pages_per_seq,
        "dtype_q": problem.q_dtype,
        "dtype_kv": problem.kv_dtype,
        "dtype_out": problem.q_dtype,  # the function's default
        "sliding_window": problem.sliding_window,
    }
    sizes = ", ".join(f"{name}={value}" for name, value in row.configs[0].items())
    names = ", ".join(f"{name}={value!r}" for name, value in fields.items())
    return f"tuned_params_mapping[TuningKey({names})] = TunableParams({sizes})"


def mla_entry(row: TableRow, problem: Problem) -> str:
    """`mla_params[MlaKey(...)] = MlaParams(...)`, with the shapes that were timed.

    The engine hands no VMEM limit to the kernel, which takes all: what the row was compiled with.
    Source: `mla_attention` of layers/common/attention_interface.py.
    """
    config = row.configs[0]
    is_decode = family_of(row).case == "decode"
    _, rows, packing, _ = problem.kv_cache_shape
    fields = {
        "case": "batched_decode" if is_decode else "mixed",
        "max_num_tokens": problem.max_num_tokens,
        "actual_num_q_heads": problem.num_q_heads,
        "actual_lkv_dim": problem.head_dim,
        "actual_r_dim": problem.rope_dim,
        "kv_dtype": problem.kv_dtype,
        "q_dtype": problem.q_dtype,
        "page_size_per_kv_packing": rows,
        "kv_packing": packing,
        "max_num_seqs": problem.max_num_seqs,
        "pages_per_seq": problem.pages_per_seq,
    }
    sizes = {
        "num_kv_pages_per_block": config["bkv_sz"] // problem.page_size,
        "num_queries_per_block": config.get("bq_sz", 1),
        "vmem_limit_bytes": load_chip(row.key.chip).vmem_bytes,
        **({"decode_batch_size": config["batch_size"]} if is_decode
           else {"q_split": config["q_split"]}),
    }  # fmt: skip
    names = ", ".join(f"{name}={value!r}" for name, value in fields.items())
    params = ", ".join(f"{name}={value}" for name, value in sizes.items())
    return f"mla_params[MlaKey({names})] = MlaParams({params})"


_ENTRIES: dict[str, Callable[[TableRow, Problem], str]] = {
    "batched": batched_entry, "hd64": hd64_entry, "mla": mla_entry,
}  # fmt: skip


def _module(lines: dict[str, list[str]]) -> str:
    """The text: a heading that says what is approximate, imports, entries."""
    imports = {
        "hd64": f"from {_HD64} import TUNED_BLOCK_SIZES",
        "batched": f"from {_BATCHED} import TunableParams, TuningKey, tuned_params_mapping",
        "mla": f"from {_MLA} import TunableParams as MlaParams, TuningKey as MlaKey\n"
        f"from {_MLA} import tuned_params_mapping as mla_params",
    }
    kernels = [kernel for kernel in _ENTRIES if lines[kernel]]
    text = [
        f'"""Block sizes for {PACKAGE.title}, exported by rpa-tune.',
        "",
        "Import this module before the engine compiles. The table of hd64 has sizes and contexts",
        "rounded up to powers of two, and exact windows; that of the batched kernel is looked up",
        "with exact shapes: an entry serves the call with just these. So is that of the latent",
        "kernel (mla), whose entries have the shapes that were timed. It names no device: export",
        "one chip.",
        '"""',
        "",
        *(imports[kernel] for kernel in kernels),
    ]
    for kernel in kernels:
        text += ["", *lines[kernel]]
    return "\n".join(text) + "\n"
