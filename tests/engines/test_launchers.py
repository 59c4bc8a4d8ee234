"""The launchers of docs/interop.md: every process that an engine spawns has what they put there."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from engine_wheels import sglang_jax_main
from table_rows import PROBLEM, timed_row

from rpa_tune.interop.export import EXPORTERS

SGLANG, VLLM = "sgl_jax.launch_server", "vllm.entrypoints.cli.main"
SPAWNED = """
    import multiprocessing, check, sys
    child = multiprocessing.get_context("spawn").Process(target=check.check)
    child.start()
    child.join()
    sys.exit(child.exitcode)
"""
CHECK = """
def check():
    from jax._src import xla_bridge
    {}
    assert not xla_bridge.backends_are_initialized()
"""


def run(tmp_path, word, check, main=None):
    """Runs the launcher of the documents that has this word, up to the engine's `main`.

    Args:
      tmp_path: For the files.
      word: Of the code block.
      check: Run in a process that the launcher spawns.
      main: Module of another engine's `main`, or that of the document.
    """
    text = Path(__file__).parents[2].joinpath("docs", "interop.md").read_text()
    blocks = (block.split("```")[0] for block in text.split("```python\n")[1:])
    (script,) = (block for block in blocks if word in block and "__main__" in block)
    head, _, called = script.rstrip().rpartition("\n")
    assert called == "    main()"
    if main is not None:
        assert VLLM in head
        head = head.replace(VLLM, main)
    (tmp_path / "serve.py").write_text(head + SPAWNED)
    (tmp_path / "check.py").write_text(CHECK.format(check))
    path = os.pathsep.join([str(sglang_jax_main()), str(tmp_path)])
    subprocess.run(
        [sys.executable, tmp_path / "serve.py"], check=True, timeout=600,
        env=os.environ | {"PYTHONPATH": path, "JAX_PLATFORMS": "cpu"},
    )  # fmt: skip


def test_the_stand_in_of_sglang_jax(tmp_path):
    where = "sgl_jax.srt.layers.attention"
    run(tmp_path, "sglang_jax.install",
        f"from {where}.flashattention_backend import ragged_paged_attention_v3 as function; "
        "assert function.__wrapped__.__module__.endswith('_v3')")  # fmt: skip


BLOCKS = {"bq_sz": 32, "bkv_sz": 256, "bq_csz": 16, "bkv_csz": 128}
ENTRIES = {
    "sglang-jax": (
        timed_row("public-v3-mixed", configs=[BLOCKS]), SGLANG,
        "from sgl_jax.srt.kernels.ragged_paged_attention import tuned_block_sizes_v3 as table; "
        "assert (32, 256, 16, 128) in table.TUNED_BLOCK_SIZES_V3['TPU v6e'].values()",
    ),
    "tpu-inference": (
        timed_row("public-hd64", replace(PROBLEM, head_dim=64),
                  configs=[{"bq_sz": 8, "bkv_sz": 48}]), VLLM,
        "from tpu_inference.kernels.ragged_paged_attention.v3 import tuned_block_sizes_hd64 as t; "
        "assert '(3, 8)' in str(t.TUNED_BLOCK_SIZES['TPU v6e'][16])",
    ),
}  # fmt: skip


@pytest.mark.parametrize("form", ENTRIES)
def test_exported_entries(tmp_path, form):
    row, main, check = ENTRIES[form]
    export = EXPORTERS[form]([row])
    assert export.exported == [row]
    (tmp_path / "blocks.py").write_text(export.text)
    run(tmp_path, "import blocks", check, main)
