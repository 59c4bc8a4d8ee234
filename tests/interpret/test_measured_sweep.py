"""`rpa-tune sweep` on a host with a TPU, in which the CPU stands in for the chip.

Everything but the chip is the real thing: worker processes, launches, the profiler, the reference
as every candidate's kernel. Schedules are made up; compiling them is tested with libtpu.
"""

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from rpa_tune.candidate import Fidelity
from rpa_tune.store import journal
from rpa_tune.tables.reader import load_tables

TESTS = Path(__file__).resolve().parents[1]
PLAN = """\
chip: [v6e, v5e]
model: config.json
families: [decode]
page_size: 16
workload:
  requests: {count: 6, prompt_tokens: 30, output_tokens: 10}
  engine: {max_num_seqs: 4, max_num_batched_tokens: 64, max_model_len: 64}
  compress: {batches: 2}
space: {decode: {bkv_sz: [16, 32, 64], bkv_csz: [16, 32], seqs_per_step: [1], num_buffers: [2],
                 bq_sz: [8]}}
search: {simulate: 6, measure: 2}
"""
MODEL = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "num_attention_heads": 4,
         "num_key_value_heads": 2, "hidden_size": 512, "head_dim": 128}  # fmt: skip
SAY_WHAT_IS_LOADED = """
import sys
maps = open("/proc/self/maps").read()
loaded = [n for n in ("libtpu", "jax") if n in sys.modules] + ["libtpu.so"] * ("libtpu.so" in maps)
print("loaded:", *loaded, file=sys.stderr)
"""
PROGRAM = """
import functools
from rpa_tune.cli import main
from rpa_tune.sweep import run as sweep
from rpa_tune.evaluate import measured, simulated

simulated.TASK = "pure.evaluate.builders:answer"
measured.FIND = "interpret.measure_tasks:find_v6e"
# Checking all hostile lengths takes the reference half a minute.
measured.fitting_batches = lambda candidate, real=measured.fitting_batches: real(candidate)[:1]
sweep.has_tpu = lambda: True
sweep.MeasuredEvaluator = functools.partial(
    measured.MeasuredEvaluator, launcher=measured.REFERENCE, platform="cpu", num_repeats=4
)
try:
    main.main(["sweep", "plan.yaml", "--json", "--no-verify", "--workers", "1", "--cache", "cache"])
finally:
"""


def run(program, folder):
    return subprocess.run(
        [sys.executable, "-c", program], cwd=folder, capture_output=True, text=True, timeout=300,
        env={**os.environ, "PYTHONPATH": str(TESTS), "JAX_PLATFORMS": "cpu"},
    )  # fmt: skip


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    folder = tmp_path_factory.mktemp("host")
    (folder / "plan.yaml").write_text(PLAN)
    (folder / "config.json").write_text(json.dumps(MODEL))
    done = run(PROGRAM + textwrap.indent(SAY_WHAT_IS_LOADED, "    "), folder)
    assert done.returncode == 0, done.stderr
    return folder, json.loads(done.stdout), done.stderr


def test_the_finalists_of_the_chip_that_is_there_are_measured(swept):
    folder, document, _ = swept
    how = {study["chip"]: study["fidelity"] for study in document["studies"]}
    assert how == {"v6e": "measured", "v5e": "simulated"}
    rows = {row.key.chip: row for row in load_tables([folder / "tuned_tables"])}
    assert rows["v6e"].evidence.fidelity == "measured"
    answers = journal.read(folder / ".rpa-tune/plan.jsonl").evaluations
    measured = [answer for answer in answers if answer.fidelity is Fidelity.MEASURED]
    assert 2 <= len(measured) <= 3
    assert {answer.candidate.chip.name for answer in measured} == {"v6e"}


def test_device_topology_and_flags_are_recorded_with_every_sample(swept):
    folder, document, _ = swept
    answers = journal.read(folder / ".rpa-tune/plan.jsonl").evaluations
    for answer in (a for a in answers if a.fidelity is Fidelity.MEASURED):
        device = answer.provenance["device"]
        assert {"device_kind", "num_devices", "num_hosts", "coords", "flags"} <= set(device)
        assert device["flags"] == {}  # of what decides a program the worker was given nothing
        assert len(answer.metrics["samples_ns"]) == len(answer.batch_us)
        assert all(len(last) == 4 for *_, last in answer.metrics["samples_ns"])
    assert document["measuring"]["chip"] == "v6e"


def test_predicted_against_measured_is_shown_and_stored(swept):
    folder, document, _ = swept
    (shown,) = [study["agreement"] for study in document["studies"] if study["agreement"]]
    assert shown["num_configs"] >= 2
    assert shown["regret_pct"] >= 0
    notes = journal.read(folder / ".rpa-tune/plan.jsonl").notes
    assert [note.agreement for note in notes if note.agreement] == [shown]


def test_the_parent_never_loads_libtpu(swept):
    pytest.importorskip("libtpu", reason="without libtpu nobody can load it")
    assert swept[2].splitlines()[-1] == "loaded:"
    control = run("import libtpu\n" + SAY_WHAT_IS_LOADED, swept[0])
    assert control.stderr.splitlines()[-1].startswith("loaded: libtpu")
