"""A sweep killed anywhere and started again ends with the table of one that ran undisturbed."""

import os
import random
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from rpa_tune.store import journal

TESTS = Path(__file__).resolve().parents[2]
# Sweeps two studies and writes their rows; `delay` makes time to be killed in.
PROGRAM = textwrap.dedent("""
    import sys
    from pathlib import Path
    from fake_sweep import make_evaluators, make_study
    from rpa_tune.store.journal import Journal
    from rpa_tune.sweep import sampler_optuna
    from rpa_tune.sweep.sweep import Sweep
    from rpa_tune.sweep.watch import Watch
    from rpa_tune.tables.writer import merge_into

    folder, delay_s = Path(sys.argv[1]), float(sys.argv[2])
    studies = [make_study(simulate=20), make_study(simulate=20, chip="v5e", name="second")]
    with Journal(folder / "store.jsonl") as store:
        evaluators = make_evaluators(delay_s=delay_s)
        print("ready", flush=True)
        for result in Sweep(evaluators=evaluators, journal=store, watch=Watch()).run(studies):
            merge_into(folder / "tables", [result.row()])
""")


def start(folder, delay_s):
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(folder), str(delay_s)],
        env={**os.environ, "PYTHONPATH": str(TESTS)},
        stdout=subprocess.PIPE,
    )


def finish(folder):
    with start(folder, 0.0) as process:
        process.communicate()
    assert process.returncode == 0


def table_bytes(folder):
    return {p.relative_to(folder): p.read_bytes() for p in (folder / "tables").rglob("*.jsonl")}


@pytest.fixture(scope="module")
def calm(tmp_path_factory):
    folder = tmp_path_factory.mktemp("calm")
    finish(folder)
    assert len(table_bytes(folder)) == 2
    return folder


def num_answers(folder):
    return len(journal.read(folder / "store.jsonl").evaluations)


@pytest.mark.parametrize("seed", [0, *(pytest.param(s, marks=pytest.mark.slow) for s in (1, 2))])
def test_killed_at_random_again_and_again(tmp_path, calm, seed):
    rng = random.Random(seed)
    kills = 0
    for attempt in range(1, 60):  # each gets a little longer, so that one gets to the end
        with start(tmp_path, 0.03) as process:
            assert process.stdout.readline() == b"ready\n"
            time.sleep(rng.uniform(0.0, 0.2 * attempt))
            process.send_signal(signal.SIGKILL)
        if process.returncode == 0:
            break
        kills += 1
    assert process.returncode == 0, "never got to the end"
    assert kills >= 1
    assert table_bytes(tmp_path) == table_bytes(calm)
    # Nothing was evaluated twice: the store holds as many answers as an undisturbed one.
    assert num_answers(tmp_path) == num_answers(calm)
    assert not list((tmp_path / "tables").rglob("*.tmp"))


def test_resumed_from_every_kind_of_torn_end(tmp_path, calm):
    """Cut in the last records of a half-done store: at both ends, and inside each."""
    data = (calm / "store.jsonl").read_bytes()
    ends = [i + 1 for i, byte in enumerate(data) if byte == ord("\n")]
    rng = random.Random(0)
    cuts = [ends[-1] - 1, ends[-2], ends[-2] - 1, *(rng.randrange(ends[2]) for _ in range(2))]
    for number, cut in enumerate(cuts):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "store.jsonl").write_bytes(data[:cut])
        finish(folder)
        assert table_bytes(folder) == table_bytes(calm), cut
        assert num_answers(folder) == num_answers(calm), cut
