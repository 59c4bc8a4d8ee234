"""Every command that a document shows is run, and its output is what the document says.

`documented.py` has the rule by which output is compared. Quick scenarios run by default, those that
compile for a TPU or sweep are slow tests. A new one is slow unless it is listed as quick; what it
finds in its folder is made by `SETUPS`.
"""

import json
import os
import shlex
import subprocess
import sys
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import click
import numpy as np
import pytest
from documented import ROOT, Scenario, difference, plain, scenarios
from fake_sweep import FormulaEvaluator, make_evaluators

from rpa_tune.candidate import Fidelity
from rpa_tune.capture import Capture
from rpa_tune.cli.main import COMMANDS, cli
from rpa_tune.store.journal import Journal
from rpa_tune.sweep.plan import load_plan
from rpa_tune.sweep.study import build_studies
from rpa_tune.sweep.sweep import Sweep
from rpa_tune.sweep.watch import Watch

CHAT = """\
chip: [v5e, v6e]
model: llama3-8b
families: [decode]
page_size: 128
workload: {requests: {count: 8, prompt_tokens: 100, output_tokens: 20}, compress: {batches: 2}}
space: {decode: {bkv_sz: [256, 512], bkv_csz: [256, 512], seqs_per_step: [1], bq_sz: [8]}}
search: {simulate: 6, wave: 3}
"""
PAGED = "jax.experimental.pallas.ops.tpu.paged_attention.paged_attention_kernel:paged_attention"
MY_KERNELS = """\
import jax
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu


def _kernel(lens, q, k, out, *, causal):
    out[...] = q[...] + k[...] if causal else q[...]


def attention(q, k, lens, *, causal=False, block_q=128):
    spec = pl.BlockSpec((1, block_q, q.shape[2]), lambda i, j, lens: (i, j, 0))
    grid = pltpu.PrefetchScalarGridSpec(
        num_scalar_prefetch=1, grid=(q.shape[0], q.shape[1] // block_q), in_specs=[spec, spec],
        out_specs=spec,
    )
    shape = jax.ShapeDtypeStruct(q.shape, q.dtype)
    kernel = lambda *refs: _kernel(*refs, causal=causal)
    return pl.pallas_call(kernel, grid_spec=grid, out_shape=shape, name="mine")(lens, q, k)


def paged():
    array = lambda *shape: jax.ShapeDtypeStruct(shape, "bfloat16")
    pages = np.random.default_rng(0).permutation(256).astype(np.int32).reshape(8, 32)
    cache = array(8, 256, 16, 128)
    arguments = array(8, 32, 128), cache, cache, np.full(8, 300, np.int32), pages
    return arguments, {"pages_per_compute_block": 4}
"""
QUICK = {
    "docs/report.md: rpa-tune report .rpa-tune/quickstart.jsonl",
    "docs/serving.md: rpa-tune audit --model",
    "docs/workloads.md: rpa-tune workloads show azure-conv",
    "docs/workloads.md: rpa-tune workloads show mine.jsonl",
    "sweeps/README.md: rpa-tune status .rpa-tune/chat.jsonl",
}
# Scenarios that cannot be run here, and what else holds them.
NOT_RUN = {
    "docs/interop.md: rpa-tune sweep public_tokamax": (
        "needs Python 3.12 and jax 0.11.1, and copies into a package; "
        "tests/aot/test_public_tokamax.py and tests/engines/test_tokamax.py"
    ),
    "docs/tables.md: rpa-tune tables check tables": (
        "shows a change from one jax to another, of which one is installed; "
        "tests/pure/sweep/test_recheck.py"
    ),
    "docs/tables.md: rpa-tune tables lint tables": (
        "shows tables made before a rename in this checkout; tests/pure/sweep/test_restamp.py, and "
        "tests/aot/test_restamp.py with the compiler"
    ),
}
# Whose output depends on the machine's speed: only the exit code is compared.
NOT_COMPARED = {
    "docs/interop.md: rpa-tune sweep sweeps/public_v3.yaml",
    "docs/interop.md: rpa-tune sweep sweeps/public_hd64.yaml",
    "docs/interop.md: rpa-tune tables export public_tables",
}
# Those that show a problem being found.
EXIT_CODES = {"docs/serving.md: rpa-tune doctor --chip": 1}
SCENARIOS = {scenario.name: scenario for scenario in scenarios()}


class FlatEvaluator(FormulaEvaluator):
    """Every config takes as long."""

    def answer(self, candidate, num_batches=2):
        answer = super().answer(candidate, num_batches)
        return replace(answer, time_us=31.2, batch_us=(31.2,) * num_batches)


def chat_sweep(folder, stack):
    """A sweep of two studies that is under way: one has ended, the other one has one answer."""
    (folder / "chat.yaml").write_text(CHAT)
    studies = build_studies(load_plan(folder / "chat.yaml"))
    flat, below = (
        FlatEvaluator(Fidelity.SIMULATED),
        FormulaEvaluator(Fidelity.ANALYTICAL, scale=0.01),
    )
    store = stack.enter_context(Journal(folder / ".rpa-tune" / "chat.jsonl"))
    sweep = Sweep(
        evaluators={
            **make_evaluators(), Fidelity.SIMULATED: flat, Fidelity.ANALYTICAL: below
        }, journal=store, watch=Watch(),
    )  # fmt: skip
    for _ in sweep.run(studies):
        break
    later = flat.answer(studies[1].candidate(studies[1].heuristic()))
    store.append(
        replace(later, provenance={**later.provenance, "time": "2026-01-02T03:05:00+00:00"})
    )


def stores_to_report(folder, stack):
    """The store of a sweep of two studies by formula, under the names that documents give it."""
    (folder / "chat.yaml").write_text(CHAT)
    studies = build_studies(load_plan(folder / "chat.yaml"))
    for name in (".rpa-tune/quickstart.jsonl", "before.jsonl", "after.jsonl"):
        with Journal(folder / name) as store:
            list(Sweep(evaluators=make_evaluators(), journal=store, watch=Watch()).run(studies))


def chat_plan(folder, stack):
    """The plan of the two runs that share a storage."""
    (folder / "chat.yaml").write_text(CHAT)


def captured(folder, stack):
    """What a server recorded, and a plan that takes it."""
    with Capture(str(folder / "steps.jsonl")) as capture:
        for step in range(40):
            lens = np.array([200 + step, 300 + step], np.int32)
            capture.record(kv_lens=lens, cu_q_lens=np.array([0, 1, 2]), distribution=[2, 2, 2])
    plan = CHAT[: CHAT.index("workload:")] + "workload: mine.json\n" + CHAT[CHAT.index("space:") :]
    (folder / "sweeps" / "mine.yaml").write_text(plan)


def bailian_trace(folder, stack):
    """A trace of Qwen-Bailian's form: one conversation of two turns, and a request by itself."""
    rows = [
        {"chat_id": 1, "parent_chat_id": -1, "timestamp": 0.0, "input_length": 521, "turn": 1,
         "hash_ids": list(range(33))},
        {"chat_id": 2, "parent_chat_id": 1, "timestamp": 61.5, "input_length": 700, "turn": 2,
         "hash_ids": [*range(32), *range(100, 112)]},
        {"chat_id": 7, "parent_chat_id": -1, "timestamp": 62.0, "input_length": 40, "turn": 1,
         "hash_ids": [0, 1, 2]},
    ]  # fmt: skip
    lines = [json.dumps({**row, "output_length": 132, "type": "text"}) for row in rows]
    (folder / "mine.jsonl").write_text("\n".join(lines) + "\n")


def one_batch(folder, stack):
    """A batch of two decodes."""
    (folder / "batch.json").write_text('{"q_lens": [1, 1], "kv_lens": [700, 90], "num_decode": 2}')


def my_kernels(folder, stack):
    """A user's module: a kernel, and the arguments of jax's paged attention."""
    (folder / "my_kernels.py").write_text(MY_KERNELS)


def fresh_cache(folder, stack):
    """A cache without compiles, because the output tells what was compiled from what was kept."""
    (folder / "cache").mkdir()


def two_steps(folder, stack):
    """The stored workload of docs/plan.md."""
    contexts = ([300, 700, 500, 900], [300, 700, 500, 400])
    steps = [
        {"q_lens": [1, 1, 1, last], "kv_lens": kv_lens, "num_decode": 3 + (last == 1)}
        for last, kv_lens in zip((1, 12), contexts, strict=True)
    ]
    batches = [{**step, "weight": weight} for step, weight in zip(steps, (0.8, 0.2), strict=True)]
    data = {"schema": "rpa-workload/1", "name": "mine", "source": "two steps, made up",
            "batches": batches}  # fmt: skip
    (folder / "mine.json").write_text(json.dumps(data))


def quickstart_store(folder, stack):
    """The answers of the quickstart, without its checks."""
    run_shell(folder, "rpa-tune sweep sweeps/quickstart.yaml --no-verify --tables made")


def public_tables(folder, stack):
    """The tables of a sweep of a public kernel."""
    run_shell(folder, "rpa-tune sweep sweeps/public_v3.yaml --tables public_tables --workers 1")


SETUPS = {
    "sweeps/README.md: rpa-tune status .rpa-tune/chat.jsonl": chat_sweep,
    "sweeps/README.md: rpa-tune sweep chat.yaml": chat_plan,
    "README.md: rpa-tune report .rpa-tune/quickstart.jsonl": stores_to_report,
    "docs/report.md: rpa-tune report .rpa-tune/quickstart.jsonl": stores_to_report,
    "docs/report.md: rpa-tune report before.jsonl after.jsonl": stores_to_report,
    "docs/workloads.md: rpa-tune workloads import steps.jsonl": captured,
    "docs/workloads.md: rpa-tune workloads show mine.jsonl": bailian_trace,
    "docs/trace.md: rpa-tune explain --chip": one_batch,
    "docs/explain.md: rpa-tune explain my_kernels:attention": my_kernels,
    f"docs/explain.md: rpa-tune explain {PAGED}": my_kernels,
    "docs/plan.md: rpa-tune plan --model": two_steps,
    "docs/serving.md: rpa-tune compile --model": fresh_cache,
    "docs/serving.md: rpa-tune portfolio sweeps/quickstart.yaml": quickstart_store,
    "docs/interop.md: rpa-tune tables export public_tables": public_tables,
}


@pytest.fixture
def folder(tmp_path):
    """A checkout to run commands in: its data, and the programs that documents call."""
    (tmp_path / "sweeps").mkdir()
    for plan in (ROOT / "sweeps").glob("*.yaml"):
        (tmp_path / "sweeps" / plan.name).write_bytes(plan.read_bytes())
    for name in ("examples", "tests"):
        (tmp_path / name).symlink_to(ROOT / name)
    programs = tmp_path / ".venv" / "bin"
    programs.mkdir(parents=True)
    for name, call in (("python", ""), ("rpa-tune", "-m rpa_tune")):
        script = f'#!/bin/sh\nexec {shlex.quote(sys.executable)} {call} "$@"\n'
        (programs / name).write_text(script)
        (programs / name).chmod(0o755)
    return tmp_path


def run_shell(folder, *commands):
    """Runs commands in one shell: (output of each, stderr among it; exit code of the last one)."""
    mark = "--- next command ---"
    script = "\n".join(
        f"{command}\nlast=$?; echo; echo '{mark}'; (exit $last)" for command in commands
    )
    cache = {"XDG_CACHE_HOME": str(folder / "cache")} if (folder / "cache").is_dir() else {}
    run = subprocess.run(
        ["bash", "-c", f"{script}\nlast=$?; wait; exit $last"], cwd=folder, check=False,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env={**os.environ, "PATH": f"{folder / '.venv' / 'bin'}:{os.environ['PATH']}",
             "COLUMNS": "160", **cache},
    )  # fmt: skip
    return [part.splitlines() for part in run.stdout.split(mark)], run.returncode


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=() if n in QUICK else (pytest.mark.slow, pytest.mark.aot))
     for n in SCENARIOS if n not in NOT_RUN],
)  # fmt: skip
def test_documented_commands_do_what_the_document_says(name, folder):
    scenario = SCENARIOS[name]
    with ExitStack() as stack:
        if name in SETUPS:
            SETUPS[name](folder, stack)
        outputs, code = run_shell(folder, *(step.command for step in scenario.steps))
    text = "\n".join(line for output in outputs for line in output)
    assert code == EXIT_CODES.get(name, 0), text  # of the last command
    assert "Traceback" not in text
    for step, real in zip(scenario.steps, outputs, strict=False):
        if step.output is not None and name not in NOT_COMPARED and not step.command.endswith("&"):
            found = difference(step.output, real)
            where = f"{scenario.document}:{scenario.line}"
            assert not found, f"{where}: {step.command}\n{found}\n\n" + "\n".join(real)


def test_scenarios_have_names_of_their_own_and_lists_name_them():
    assert len(SCENARIOS) == len(scenarios())
    assert len(SCENARIOS) >= 14
    assert QUICK | set(NOT_RUN) | NOT_COMPARED | set(SETUPS) | set(EXIT_CODES) <= set(SCENARIOS)


def parsed(words):
    """Has click read a command as typed, without running it."""
    context = click.Context(cli)
    command = cli
    words = list(words)
    while isinstance(command, click.Group):
        command = command.get_command(context, words.pop(0))
    try:
        command.make_context(command.name, words)
    except click.BadParameter as error:
        if "does not exist" not in error.message:  # the reader's own file
            raise


def documented_commands():
    commands = [
        step.command.split("#")[0].removesuffix("&").split("&&")[0].split(" > ")[0].strip()
        for scenario in SCENARIOS.values()
        for step in scenario.steps
    ]
    return [c.removeprefix(".venv/bin/") for c in commands if "rpa-tune " in c]


def examples():
    """What each command's help gives as its example."""
    found, context = [], click.Context(cli)
    for name in COMMANDS:
        command = cli.get_command(context, name)
        members = command.commands.values() if isinstance(command, click.Group) else [command]
        for each in members:
            found.append(" ".join(each.help.split("Example:")[1].split()))
    return found


@pytest.mark.parametrize("command", sorted({*documented_commands(), *examples()}))
def test_commands_that_are_shown_have_the_options_that_they_show(command):
    program, *words = (word for word in shlex.split(command) if not word.startswith("JAX_")
                       and not word.startswith("LIBTPU_"))  # fmt: skip
    assert program == "rpa-tune"
    parsed(words)


@pytest.mark.parametrize(
    ("documented", "real", "reason"),
    [
        (["a 1.5 us", "b"], ["a 17 us", "b"], ""),
        (["a", "...", "c"], ["a", "b", "b", "c"], ""),
        (["...", "a 9", "z"], ["a 1", "b", "a 9", "z"], ""),
        (["a (...), done"], ["a (b, 7), done"], ""),
        (["x ████ 3"], ["x ██ 4"], ""),
        (["sha 0ad02f712fb550f2"], ["sha 1bd02f712fb550f9"], ""),
        (["a", "c"], ["a", "b", "c"], "lacks a line like: b"),
        (["a"], ["a", "b"], "lacks a line like: b"),
        (["a", "b"], ["a"], "no line (any more) like: b"),
        (["b", "a"], ["a", "b"], "like: a"),
        (["14 look-ups"], ["14 lookups"], "like: # look-ups"),
    ],
)
def test_the_rule_of_comparison(documented, real, reason):
    found = difference(tuple(documented), real)
    assert reason in found
    assert bool(found) == bool(reason)


def test_a_scenario_is_read_as_it_is_shown():
    audit = SCENARIOS["docs/serving.md: rpa-tune audit --model"]
    assert isinstance(audit, Scenario)
    assert [step.command.split()[0] for step in audit.steps] == ["rpa-tune", "echo"]
    assert audit.steps[1].output == ("0",)
    assert plain("  14 look-ups: 2 exact") == "# look-ups: # exact"
    assert Path(ROOT / audit.document).read_text().splitlines()[audit.line - 1] == "```"
