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
from rpa_tune.hw.chip import load_chip
from rpa_tune.interop.export_rows import Export, comment, family_of, sort_out
from rpa_tune.interop.public.tpu_inference.package import DEVICE_NAMES, PACKAGE
from rpa_tune.tables.key import TuningKey, problem_of
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
    for row in export.exported:
        kernel = family_of(row).kernel
        entry = _ENTRIES[kernel](row)
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


def hd64_entry(row: TableRow) -> str:
    """`TABLE[device][page][dtypes][heads][extra] = (pages, queries)`, levels made where missing."""
    key, config = row.key, row.configs[0]
    *levels, last = hd64_key(key)
    path = "".join(f".setdefault({level!r}, {{}})" for level in levels)
    value = (config["bkv_sz"] // key.page_size, config["bq_sz"])
    return f"TUNED_BLOCK_SIZES{path}[{last!r}] = {value}"


def hd64_key(key: TuningKey) -> tuple[str, int, str, str, str]:
    """The look-up key of the hd64 table. Source: `get_lookup_keys` in tuned_block_sizes_hd64.py."""
    queries_per_kv = layout.align(key.num_q_heads // key.num_kv_heads, layout.packing(key.q_dtype))
    q_heads = layout.next_power_of_2(queries_per_kv * key.num_kv_heads)
    kv_heads = layout.next_power_of_2(layout.align(key.num_kv_heads, layout.packing(key.kv_dtype)))
    return (
        DEVICE_NAMES[key.chip],
        layout.next_power_of_2(key.page_size),
        f"q_{key.q_dtype}_kv_{key.kv_dtype}",
        f"q_head-{q_heads}_kv_head-{kv_heads}_head-{key.head_dim}",
        f"max_model_len-{key.max_context_tokens}-sw-{key.sliding_window_tokens or None}",
    )


def batched_entry(row: TableRow) -> str:
    """`tuned_params_mapping[TuningKey(...)] = TunableParams(...)`."""
    key = row.key
    pages_per_seq = key.max_context_tokens // key.page_size
    fields = {
        "case": "decode" if family_of(row).case == "decode" else "prefill",
        "num_q_heads": key.num_q_heads,
        "num_kv_heads": key.num_kv_heads,
        "head_dim": key.head_dim,
        "num_seqs": key.max_num_seqs,
        "page_size": key.page_size,
        "total_q_tokens": key.max_num_tokens,
        "num_page_indices": key.max_num_seqs * pages_per_seq,
        "dtype_q": key.q_dtype,
        "dtype_kv": key.kv_dtype,
        "dtype_out": key.q_dtype,  # the function's default
        "sliding_window": key.sliding_window_tokens or None,
    }
    sizes = ", ".join(f"{name}={value}" for name, value in row.configs[0].items())
    names = ", ".join(f"{name}={value!r}" for name, value in fields.items())
    return f"tuned_params_mapping[TuningKey({names})] = TunableParams({sizes})"


def mla_entry(row: TableRow) -> str:
    """`mla_params[MlaKey(...)] = MlaParams(...)`, with the shapes that were timed.

    The engine hands no VMEM limit to the kernel, which takes all: what the row was compiled with.
    Source: `mla_attention` of layers/common/attention_interface.py.
    """
    key, config = row.key, row.configs[0]
    problem = problem_of(key, row.evidence.problem or {})
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
        "vmem_limit_bytes": load_chip(key.chip).vmem_bytes,
        **({"decode_batch_size": config["batch_size"]} if is_decode
           else {"q_split": config["q_split"]}),
    }  # fmt: skip
    names = ", ".join(f"{name}={value!r}" for name, value in fields.items())
    params = ", ".join(f"{name}={value}" for name, value in sizes.items())
    return f"mla_params[MlaKey({names})] = MlaParams({params})"


_ENTRIES: dict[str, Callable[[TableRow], str]] = {
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
        "Import this module before the engine compiles. Sizes, contexts and windows of a row are",
        "rounded up to powers of two. The table of the batched kernel is looked up with exact",
        "shapes: an entry serves the call with just these. So is that of the latent kernel (mla),",
        "whose entries have the shapes that were timed. It names no device: export one chip.",
        '"""',
        "",
        *(imports[kernel] for kernel in kernels),
    ]
    for kernel in kernels:
        text += ["", *lines[kernel]]
    return "\n".join(text) + "\n"
