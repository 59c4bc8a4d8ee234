"""tokamax's own look-up finds what was exported to its table."""

import importlib
import sys
from dataclasses import replace

import jax
import pytest
from engine_wheels import fetched
from table_rows import PROBLEM, timed_row

from rpa_tune.interop.public.tokamax.package import WHEEL
from rpa_tune.interop.public.tokamax.table import FILE, FOLDERS
from rpa_tune.interop.tokamax_tables import export_tables

DECODE = {"bq_sz": 1, "bq_c_sz": 1, "bkv_sz": 256, "batch_size": 4, "n_buffer": 2}
MIXED = {"bq_sz": 64, "bq_c_sz": 32, "bkv_sz": 256, "batch_size": 1, "n_buffer": 2}
CHANGES = {
    "plain": {}, "window": {"sliding_window": 1000, "pages_per_seq": 128, "sm_scale": 0.125},
    "float8": {"kv_dtype": "float8_e4m3fn", "k_scale": 0.5, "v_scale": 2.0},
    "sizes": {"max_num_tokens": 48, "max_num_seqs": 6, "num_q_heads": 6, "head_dim": 80},
}  # fmt: skip


@pytest.fixture
def tokamax(monkeypatch):
    """Modules of 0.0.17: tpu-inference has a version beside it that is without this operator."""
    root = fetched(WHEEL)
    for name in [name for name in sys.modules if name.partition(".")[0] == "tokamax"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(str(root))
    return lambda name: importlib.import_module(f"tokamax._src.{name}")


@pytest.mark.parametrize("change", CHANGES)
def test_the_exported_entry_is_the_one_that_is_found(tokamax, tmp_path, change):
    problem = replace(PROBLEM, **CHANGES[change])
    p = replace(problem, num_pages=4096)  # of the caller; the sweep had fewer
    export = export_tables(
        [timed_row("public-tokamax-decode", problem, configs=[DECODE]),
         timed_row("public-tokamax-mixed", problem, configs=[MIXED])],
        p.num_pages,
    )  # fmt: skip
    assert len(export.exported) == 2
    folder = tmp_path / FOLDERS["v6e"]
    folder.mkdir()
    (folder / FILE).write_text(export.text)
    operator = tokamax("ops.batched_rpa.pallas_mosaic_tpu").PallasTpuBatchedRpa()
    found = tokamax("autotuning.cache").AutotuningCache(operator, paths=[str(tmp_path)])[
        "TPU v6 lite"
    ]
    # As a caller binds it: arrays in order, and what differs from the defaults.
    new = jax.ShapeDtypeStruct((p.max_num_tokens, p.num_kv_heads, p.head_dim), p.kv_dtype)
    int32 = lambda *shape: jax.ShapeDtypeStruct(shape, "int32")  # noqa: E731
    cache = jax.ShapeDtypeStruct(p.kv_cache_shape, p.kv_dtype)
    q = jax.ShapeDtypeStruct((p.max_num_tokens, p.num_q_heads, p.head_dim), p.q_dtype)
    bound = operator.bind(
        q, new, new, cache, int32(p.max_num_seqs), int32(p.max_num_seqs * p.pages_per_seq),
        int32(p.max_num_seqs + 1), int32(3), sm_scale=p.sm_scale,
        sliding_window=p.sliding_window, k_scale=p.k_scale, v_scale=p.v_scale,
    )  # fmt: skip
    config = found[bound.autotuning_cache_key].fastest_config
    assert (config.n_buffer, config.bkv_sz, config.decode_batch_size) == (2, 256, 4)
    assert (config.prefill_bq_sz, config.prefill_bq_c_sz, config.prefill_batch_size) == (64, 32, 1)
