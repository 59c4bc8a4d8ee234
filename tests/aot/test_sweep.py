"""The main job with the real compiler: sweep, die, go on, look up, explain."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rpa_tune.provenance import kernel_digest
from rpa_tune.store import journal
from rpa_tune.tables.lint import lint_folder
from rpa_tune.tables.reader import load_tables

pytestmark = pytest.mark.aot

PLAN = """\
about: A sweep small enough for a test.
chip: v5e
model: llama3-8b
families: [decode]
page_size: 128
workload:
  requests: {count: 24, prompt_tokens: {uniform: {low: 100, high: 900}}, output_tokens: 40}
  engine: {max_num_seqs: 8, max_num_batched_tokens: 512, max_model_len: 1024}
  compress: {batches: 3}
space:
  decode:
    {bkv_sz: [256, 512], bkv_csz: [256], seqs_per_step: [1, 2], num_buffers: [2, 3], bq_sz: [8]}
search: {simulate: 5, wave: 2}
"""


def start(folder: Path, name: str) -> subprocess.Popen[str]:
    command = [
        sys.executable, "-m", "rpa_tune", "sweep", "plan.yaml", "--workers", "1", "--json",
        "--store", f"{name}.jsonl", "--tables", name,
    ]  # fmt: skip
    return subprocess.Popen(
        command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True, env={**os.environ, "XDG_CACHE_HOME": str(folder / name / "cache")},
    )  # fmt: skip


def finish(process: subprocess.Popen[str], timeout_s: float = 300) -> dict:
    out, err = process.communicate(timeout=timeout_s)
    assert process.returncode == 0, err
    return json.loads(out)


def answers(path: Path) -> int:
    return len(journal.read(path).evaluations) if path.exists() else 0


def rows(folder: Path) -> list[tuple]:
    return [(row.key, row.configs, row.rule) for row in load_tables([folder])]


@pytest.mark.slow
def test_a_sweep_killed_half_way_ends_with_the_same_table(tmp_path):
    (tmp_path / "plan.yaml").write_text(PLAN)
    finish(start(tmp_path, "undisturbed"))

    killed = start(tmp_path, "killed")
    store = tmp_path / "killed.jsonl"
    deadline = time.monotonic() + 120
    while answers(store) < answers(tmp_path / "undisturbed.jsonl") - 3:
        assert killed.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.wait()
    killed.communicate()
    kept = answers(store)
    finish(start(tmp_path, "killed"))

    assert answers(store) > kept
    assert answers(store) == answers(tmp_path / "undisturbed.jsonl")
    assert rows(tmp_path / "killed") == rows(tmp_path / "undisturbed")
    digests = {"decode": kernel_digest("decode")}
    assert not lint_folder(tmp_path / "undisturbed", digests)
