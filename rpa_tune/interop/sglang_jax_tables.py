"""Rows as entries of `TUNED_BLOCK_SIZES_V3` of sglang-jax. No jax.

Its v3 kernel is a fork of tpu-inference's, with blocks of the same meaning, but not the same
source: rows that were tuned on `public-v3-*` are a start for it, not a measurement of it. The
module says so where the entries go.

Source: sglang-jax cddbf6f, kernels/ragged_paged_attention/tuned_block_sizes_v3.py (the table and
`get_tuned_block_sizes_v3`), tuned_block_sizes.py (`get_simplified_key`) and
ragged_paged_attention_v3.py (`_prepare_block_sizes`: looked up on v6e and v7x alone). Its stages
`p` (a static query length) and `v` (verification of drafts) have no rows here.
"""

from collections.abc import Iterable

from rpa_kernels import layout
from rpa_kernels.problem import Problem
from rpa_tune.interop.export_rows import Export, asked, comment, family_of, sort_out, v3_tuple
from rpa_tune.tables.row import TableRow

_MODULE = "sgl_jax.srt.kernels.ragged_paged_attention.tuned_block_sizes_v3"
# Names of devices in the table; no version of it looks up on v5e or v5p.
DEVICE_NAMES = {"v6e": "TPU v6e", "v7x": "TPU v7"}
_NO_TABLE = "sglang-jax has no kernel of this kind"


def export_tables(rows: Iterable[TableRow]) -> Export:
    """A Python module that adds the rows to the table when it is imported."""
    export = sort_out(rows, ("v3",), _NO_TABLE)
    kept: dict[tuple[str, str], tuple[TableRow, Problem]] = {}
    for row, problem in asked(export, export.exported):
        chip, is_decode = row.key.chip, family_of(row).case == "decode"
        place = (chip, repr(table_key(problem, is_decode=is_decode)))
        if chip not in DEVICE_NAMES:
            export.leave_out(row, f"sglang-jax looks nothing up on {chip}")
        elif place in kept:
            why = "the public key has no sequences and no context: another row has the same"
            export.leave_out(row, why)
        else:
            kept[place] = (row, problem)
    export.exported = [row for row, _ in kept.values()]
    lines = [
        line
        for (chip, key), (row, _) in kept.items()
        for line in (comment(row), _entry(chip, key, v3_tuple(row.configs[0])))
    ]
    export.text = "\n".join(_heading() + lines) + "\n"
    return export


def _entry(chip: str, key: str, blocks: tuple[int, ...]) -> str:
    """`TABLE[device][key] = (bq_sz, bkv_sz, bq_csz, bkv_csz)`."""
    table = f"TUNED_BLOCK_SIZES_V3.setdefault({DEVICE_NAMES[chip]!r}, {{}})"
    return f"{table}[{key}] = {blocks}"


def table_key(problem: Problem, *, is_decode: bool) -> tuple[str | int | None, ...]:
    """(stage, window, q dtype, KV dtype, q heads, KV heads, head size, page, tokens).

    The window is exact; sizes are rounded up to powers of two. A decode step of sglang-jax has one
    token a sequence and no others, so its tokens are our sequences.
    """
    return (
        "d" if is_decode else "m",
        problem.sliding_window,
        problem.q_dtype,
        problem.kv_dtype,
        layout.next_power_of_2(problem.num_q_heads),
        layout.next_power_of_2(problem.num_kv_heads),
        layout.align(problem.head_dim, layout.LANES),
        layout.next_power_of_2(problem.page_size),
        layout.next_power_of_2(problem.max_num_seqs if is_decode else problem.max_num_tokens),
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
