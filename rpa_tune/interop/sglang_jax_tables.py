"""Rows as entries of `TUNED_BLOCK_SIZES_V3` of sglang-jax. No jax.

Its v3 kernel is a fork of tpu-inference's, with blocks of the same meaning, but not the same
source: rows that were tuned on `public-v3-*` are a start for it, not a measurement of it. The
module says so where the entries go.

Source: sglang-jax 068a449, kernels/ragged_paged_attention/tuned_block_sizes_v3.py (the table and
`get_tuned_block_sizes_v3`) and tuned_block_sizes.py (`get_simplified_key`); 02e8030,
ragged_paged_attention_v3.py `_prepare_block_sizes` looks up on TPU v7 alone in some versions, on
v6e and v7 in others.
"""

from collections.abc import Iterable

from rpa_kernels import layout
from rpa_tune.interop.export_rows import Export, comment, family_of, sort_out, v3_tuple
from rpa_tune.tables.key import TuningKey
from rpa_tune.tables.row import TableRow

_MODULE = "sgl_jax.srt.kernels.ragged_paged_attention.tuned_block_sizes_v3"
# Names of devices in the table; no version of it looks up on v5e or v5p.
DEVICE_NAMES = {"v6e": "TPU v6e", "v7x": "TPU v7"}
_NO_TABLE = "sglang-jax has no kernel of this kind"


def export_tables(rows: Iterable[TableRow]) -> Export:
    """A Python module that adds the rows to the table when it is imported."""
    export = sort_out(rows, ("v3",), _NO_TABLE)
    kept: dict[tuple[str, str], TableRow] = {}
    for row in export.exported:
        place = (row.key.chip, repr(table_key(row)))
        if row.key.chip not in DEVICE_NAMES:
            export.leave_out(row, f"sglang-jax looks nothing up on {row.key.chip}")
        elif place in kept:
            why = "the public key has no sequences and no context: another row has the same"
            export.leave_out(row, why)
        else:
            kept[place] = row
    export.exported = list(kept.values())
    lines = [line for row in kept.values() for line in (comment(row), entry(row))]
    export.text = "\n".join(_heading() + lines) + "\n"
    return export


def entry(row: TableRow) -> str:
    """`TABLE[device][key] = (bq_sz, bkv_sz, bq_csz, bkv_csz)`."""
    device = DEVICE_NAMES[row.key.chip]
    table = f"TUNED_BLOCK_SIZES_V3.setdefault({device!r}, {{}})"
    return f"{table}[{table_key(row)!r}] = {v3_tuple(row.configs[0])}"


def table_key(row: TableRow) -> tuple[str | int | None, ...]:
    """(stage, window, q dtype, KV dtype, q heads, KV heads, head size, page, tokens).

    A decode step of sglang-jax has one token a sequence and no others, so its token bucket is our
    bucket of sequences.
    """
    key: TuningKey = row.key
    is_decode = family_of(row).case == "decode"
    return (
        "d" if is_decode else "m",
        key.sliding_window_tokens or None,
        key.q_dtype,
        key.kv_dtype,
        layout.next_power_of_2(key.num_q_heads),
        layout.next_power_of_2(key.num_kv_heads),
        layout.align(key.head_dim, layout.LANES),
        layout.next_power_of_2(key.page_size),
        key.max_num_seqs if is_decode else key.max_num_tokens,
    )


def _heading() -> list[str]:
    return [
        '"""Block sizes for the v3 kernel of sglang-jax, exported by rpa-tune.',
        "",
        "Import this module before the engine compiles. The rows were tuned on the v3 kernel of",
        "tpu-inference, which this one was forked from: check them before you rely on them.",
        '"""',
        "",
        f"from {_MODULE} import TUNED_BLOCK_SIZES_V3",
        "",
    ]
