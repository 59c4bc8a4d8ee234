"""Accidents during a whole sweep with real worker processes: same table, and a record of each.

The sweep's own death is in test_faults.py; what the pool and the store do by themselves is tested
with them.
"""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import textwrap
import threading
from collections import Counter
from pathlib import Path

import pytest
from fake_sweep import FakeInterpreter, FormulaEvaluator, make_evaluators, make_study

from rpa_tune.candidate import Correctness, Fidelity, Status
from rpa_tune.compile import process
from rpa_tune.compile.pool import WorkerPool
from rpa_tune.evaluate import simulated
from rpa_tune.evaluate.simulated import SimulatedEvaluator
from rpa_tune.store import journal
from rpa_tune.sweep.sweep import Sweep
from rpa_tune.sweep.watch import Watch
from rpa_tune.tables.writer import merge_into

TESTS = Path(__file__).resolve().parents[2]
# `fault_tasks` makes times of bkv_sz: 128 wins, and the heuristic has one of its own.
STUDY = make_study(simulate=60, bkv_sz=(128, 256, 512), bkv_csz=(128, 256), seqs_per_step=(1, 2))
VICTIM = "512 256 2 3"


@pytest.fixture(autouse=True)
def quick_workers(monkeypatch):
    monkeypatch.setattr(process, "SETUP", "pure.sweep.fault_tasks:no_setup")
    monkeypatch.setattr(simulated, "TASK", "pure.sweep.fault_tasks:simulate")


def sweep(folder, *, accidents=None, deadline_s=30.0, disturb=None):
    """One whole sweep; `disturb(pool, done)` runs beside it."""
    folder.mkdir(exist_ok=True)
    (folder / "accidents.json").write_text(json.dumps(accidents or {}))
    pool = WorkerPool(num_workers=2, memory_bytes=400 << 20)
    evaluators = {
        Fidelity.ANALYTICAL: FormulaEvaluator(Fidelity.ANALYTICAL, scale=1e-3),
        Fidelity.SIMULATED: SimulatedEvaluator(pool=pool, cache_dir=folder, deadline_s=deadline_s),
        Correctness.INTERPRETED: FakeInterpreter(),
    }
    done = threading.Event()
    thread = threading.Thread(target=disturb or (lambda *_: None), args=(pool, done))
    thread.start()
    try:
        with journal.Journal(folder / "store.jsonl") as store:
            run = Sweep(evaluators=evaluators, journal=store, watch=Watch())
            (result,) = run.run([STUDY])
    finally:
        done.set()
        thread.join()
        pool.close()
    merge_into(folder / "tables", [result.row()])
    return result


def table(result):
    row = result.row()
    return row.key, row.configs, row.rule, row.evidence.verdict, row.evidence.time_us


@pytest.fixture(scope="module")
def calm(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(process, "SETUP", "pure.sweep.fault_tasks:no_setup")
        patch.setattr(simulated, "TASK", "pure.sweep.fault_tasks:simulate")
        result = sweep(tmp_path_factory.mktemp("calm"))
    assert {answer.status for answer in result.answers} == {Status.OK}
    assert len(result.answers) > 10
    assert result.decision.chosen.candidate.config.bkv_sz == 128
    return result


def tasks_at_hand(folder):
    """The task that each worker has begun and not ended, by process id."""
    asked = folder / "asked"
    lines = asked.read_text().splitlines() if asked.exists() else []
    last = dict(line.split(" ", 1) for line in lines)
    return {int(pid): task for pid, task in last.items() if task != "done"}


@pytest.mark.parametrize("seed", range(2))
def test_workers_killed_at_random_cost_nothing(tmp_path, calm, seed):
    rng, killed = random.Random(seed), set()

    def kill_now_and_then(pool, done):
        """Kills workers at their tasks, no task twice: a second time is the task's own fault."""
        while not done.wait(rng.uniform(0.0, 0.02)) and len(killed) < 5:
            at_work = sorted(pool.pids)
            rng.shuffle(at_work)
            for pid in at_work:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGSTOP)  # while stopped it stays at what it is at
                    task = tasks_at_hand(tmp_path).get(pid)
                    is_new = task is not None and task not in killed
                    killed.update({task} if is_new else ())
                    os.kill(pid, signal.SIGKILL if is_new else signal.SIGCONT)

    result = sweep(tmp_path, disturb=kill_now_and_then)
    assert len(killed) >= 3
    assert table(result) == table(calm)


# What happens to the victim once or always, and what it is recorded as.
ACCIDENTS = {
    "aborts": ("compile", "abort", 9, Status.CRASHED, "SIGABRT"),
    "aborts once": ("compile", "abort", 1, Status.OK, ""),
    "hangs in the compiler": ("compile", "hang", 9, Status.COMPILE_TIMEOUT, "'compile' after 1 s"),
    "hangs in the simulator": ("simulate", "hang", 9, Status.RUN_TIMEOUT, "'simulate' after 1 s"),
    "is killed as if memory had run out": ("compile", "killed", 9, Status.CRASHED, "SIGKILL"),
    "is killed once": ("compile", "killed", 1, Status.OK, ""),
    "grows beyond its cap": ("compile", "grow", 9, Status.CRASHED, "GiB of memory, the cap is"),
    "raises": ("compile", "raise", 9, Status.COMPILE_FAILED, "MemoryError: no more of it"),
}


@pytest.mark.parametrize("accident", ACCIDENTS)
def test_an_accident_costs_its_candidate_only_and_is_recorded_as_what_it_was(
    tmp_path, calm, accident
):
    phase, what, times, status, detail = ACCIDENTS[accident]
    # Nothing but what hangs may run into its deadline, however busy the machine.
    deadline_s = 1.0 if what == "hang" else 60.0
    result = sweep(tmp_path, accidents={VICTIM: [phase, what, times]}, deadline_s=deadline_s)
    assert table(result) == table(calm)
    victim, others = [], []
    for answer in result.answers:
        config = answer.candidate.config
        name = f"{config.bkv_sz} {config.bkv_csz} {config.seqs_per_step} {config.num_buffers}"
        (victim if name == VICTIM else others).append(answer)
    assert {answer.status for answer in others} == {Status.OK}
    (answer,) = victim
    assert answer.status is status
    assert detail in answer.detail
    stops = [stop for stop in result.stops if stop.candidate == answer.candidate]
    assert [stop.reason for stop in stops] == ([] if status is Status.OK else [status.value])
    (note,) = journal.read(tmp_path / "store.jsonl").notes
    assert Counter(s.reason for s in note.stopped) == Counter(s.reason for s in result.stops)
    # A second run asks again about nothing but what blames the machine or the moment, once more.
    asked = len((tmp_path / "asked").read_text().splitlines())
    result = sweep(tmp_path, accidents={VICTIM: [phase, what, 99]}, deadline_s=deadline_s)
    assert table(result) == table(calm)
    again = len((tmp_path / "asked").read_text().splitlines()) - asked
    assert again == {"aborts": 1, "grows beyond its cap": 1, "hangs in the compiler": 1,
                     "hangs in the simulator": 1,
                     "is killed as if memory had run out": 2}.get(accident, 0)  # fmt: skip


@pytest.mark.parametrize("step", [pytest.param(1, marks=pytest.mark.slow), 37])
def test_a_store_cut_at_every_byte_of_its_last_records(tmp_path, step):
    """Whatever is left of the last lines, the next run ends with the same bytes of table."""
    study = make_study(simulate=2, bkv_sz=(256,), bkv_csz=(256,), seqs_per_step=(1,))

    def resume(folder):
        with journal.Journal(folder / "store.jsonl", sync_interval_s=60.0) as store:
            evaluators = make_evaluators()
            (result,) = Sweep(evaluators=evaluators, journal=store, watch=Watch()).run([study])
        merge_into(folder / "tables", [result.row()])
        (path,) = (folder / "tables").rglob("*.jsonl")
        return path.read_bytes(), (folder / "store.jsonl").read_bytes()

    rows, whole = resume(tmp_path)
    ends = [i + 1 for i, byte in enumerate(whole) if byte == ord("\n")]
    cuts = {*range(ends[-4], len(whole), step), *ends, *(end - 1 for end in ends)}
    for cut in sorted(cuts):
        (tmp_path / "store.jsonl").write_bytes(whole[:cut])
        assert resume(tmp_path) == (rows, whole), cut


FILLED = textwrap.dedent("""
    import sys
    from pathlib import Path
    from fake_sweep import make_evaluators
    from rpa_tune.cli import main
    from rpa_tune.sweep import run as sweep
    sweep.make_evaluators = lambda *_: make_evaluators()
    sweep.has_tpu = lambda: False
    sweep.shipped_folder = lambda: Path("shipped")
    main.main(["sweep", "plan.yaml", "--store", "disk/store.jsonl", "--tables", "disk/tables"])
""")


def run_on_disk(folder):
    return subprocess.run(
        [sys.executable, "-c", FILLED], cwd=folder, capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": str(TESTS)},
    )  # fmt: skip


def test_a_small_file_system_that_fills_up_during_a_sweep(tmp_path):
    from pure.cli.test_sweep import PLAN

    calm, full = tmp_path / "calm", tmp_path / "full"
    for folder in (calm, full):
        (folder / "disk").mkdir(parents=True)
        (folder / "plan.yaml").write_text(PLAN)
    assert run_on_disk(calm).returncode == 0
    room = (calm / "disk/store.jsonl").stat().st_size // 2
    mount = ["mount", "-t", "tmpfs", "-o", f"size={room}", "tmpfs", full / "disk"]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("cannot mount a small file system here (needs root)")
    try:
        stopped = run_on_disk(full)
        assert stopped.returncode == 1
        assert "cannot write to the store: No space left on device" in stopped.stderr
        assert "make room and run the same command" in stopped.stderr
        assert "Traceback" not in stopped.stderr
        kept = journal.read(full / "disk/store.jsonl")
        assert kept.evaluations
        assert not kept.damaged_lines
        subprocess.run(["mount", "-o", "remount,size=4m", full / "disk"], check=True)
        assert run_on_disk(full).returncode == 0
        tables = [folder / "disk/tables/v6e/decode.jsonl" for folder in (calm, full)]
        assert tables[0].read_bytes() == tables[1].read_bytes()
        after = journal.read(full / "disk/store.jsonl").evaluations
        assert after[: len(kept.evaluations)] == kept.evaluations
        assert len(after) == len(journal.read(calm / "disk/store.jsonl").evaluations)
    finally:
        subprocess.run(["umount", full / "disk"], check=True)
