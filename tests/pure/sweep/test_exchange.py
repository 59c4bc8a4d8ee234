"""Runs that share a sweep through an Optuna storage: a journal file, and a real PostgreSQL."""

import contextlib
import importlib.metadata
import os
import pwd
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
import time
from dataclasses import asdict, replace
from pathlib import Path

import optuna
import pytest
from fake_sweep import FakeInterpreter, FormulaEvaluator, make_study
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from rpa_tune.candidate import Correctness, Fidelity, Status
from rpa_tune.errors import RpaTuneError, StoreError
from rpa_tune.store import journal
from rpa_tune.sweep.exchange import Exchange, hide_password

COMPLETE, FAIL = TrialState.COMPLETE, TrialState.FAIL
TESTS = Path(__file__).resolve().parents[2]
# One of several runs of the same two studies. Takes questions one at a time, as workers do.
PROGRAM = textwrap.dedent("""
    import sys, time
    from dataclasses import replace
    from pathlib import Path
    from fake_sweep import FormulaEvaluator, make_evaluators, make_study
    from rpa_tune.candidate import Fidelity
    from rpa_tune.store.journal import Journal
    from rpa_tune.sweep.exchange import Exchange
    from rpa_tune.sweep.sweep import Sweep
    from rpa_tune.sweep.watch import Watch
    from rpa_tune.tables.writer import merge_into

    folder, storage, delay_s = Path(sys.argv[1]), sys.argv[2], float(sys.argv[3])

    class OneByOne(FormulaEvaluator):
        def evaluate_all(self, candidates, workload):
            for candidate in candidates:
                time.sleep(delay_s)
                answer = self.answer(candidate, len(workload.batches))
                yield replace(answer, metrics={**answer.metrics, "run": folder.name})

    studies = [make_study(simulate=20), make_study(simulate=20, chip="v5e", name="second")]
    evaluators = {**make_evaluators(), Fidelity.SIMULATED: OneByOne(Fidelity.SIMULATED)}
    with (Exchange(storage, beat_s=0.1, grace_s=2.0) as exchange,
          Journal(folder / "store.jsonl") as store):
        sweep = Sweep(evaluators=evaluators, journal=store, watch=Watch(), exchange=exchange,
                      num_together=2)
        print("ready", flush=True)
        sys.stdin.readline()
        for result in sweep.run(studies):
            merge_into(folder / "tables", [result.row()])
""")


def free_port():
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


@pytest.fixture(scope="module")
def postgres():
    """The URL of a database server of our own, on a folder and a port of its own."""
    pytest.importorskip("psycopg", reason="needs the extra rpa-tune[postgres]")
    installed = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    found = shutil.which("initdb") or (installed and str(installed[-1]))
    if not found:
        pytest.skip("PostgreSQL is not installed: no initdb")
    user = None
    if os.getuid() == 0:  # the server refuses to run as root
        try:
            user = pwd.getpwnam("postgres")
        except KeyError:
            pytest.skip("PostgreSQL does not run as root, and there is no user postgres")
    as_user = {} if user is None else {"user": user.pw_uid, "group": user.pw_gid}
    # Not pytest's folder, which nobody else may enter; sockets need a short path anyway.
    folder = Path(tempfile.mkdtemp(prefix="pg"))
    if user is not None:
        os.chown(folder, user.pw_uid, user.pw_gid)
    programs, port = Path(found).parent, free_port()
    data = folder / "data"
    init = [programs / "initdb", "-D", data, "-U", "tuner", "--auth=trust", "--no-sync"]
    subprocess.run(init, check=True, capture_output=True, cwd=folder, **as_user)
    control = [programs / "pg_ctl", "-D", data, "-w", "-l", folder / "log"]
    options = f"-p {port} -k {folder} -c listen_addresses=127.0.0.1 -c fsync=off"
    subprocess.run([*control, "-o", options, "start"], check=True, capture_output=True,
                   cwd=folder, **as_user)  # fmt: skip
    try:
        yield f"postgresql://tuner@127.0.0.1:{port}/postgres"
    finally:
        subprocess.run([*control, "-m", "immediate", "stop"], capture_output=True, cwd=folder,
                       **as_user)  # fmt: skip
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(params=["journal file", "postgresql"])
def storage(request, tmp_path):
    if request.param == "postgresql":
        url = request.getfixturevalue("postgres")
        with contextlib.suppress(Exception):
            empty(url)
        return url
    return str(tmp_path / "storage.log")


def empty(url):
    import psycopg

    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("DROP SCHEMA IF EXISTS public CASCADE")
        connection.execute("CREATE SCHEMA public")


def prepare(folder, storage, delay_s=0.03):
    """A run that waits for `go`."""
    folder.mkdir(exist_ok=True)
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(folder), storage, str(delay_s)],
        env={**os.environ, "PYTHONPATH": str(TESTS)}, stdin=subprocess.PIPE,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def go(process):
    process.stdin.write("\n")
    process.stdin.flush()


def start(folder, storage, delay_s=0.03):
    process = prepare(folder, storage, delay_s)
    go(process)
    return process


def finish(process):
    _, err = process.communicate(timeout=400)
    assert process.returncode == 0, err


def table_bytes(folder):
    return {p.relative_to(folder): p.read_bytes() for p in (folder / "tables").rglob("*.jsonl")}


def simulated(folder):
    found = journal.read(folder / "store.jsonl").evaluations
    return {e.candidate.digest: e for e in found if e.fidelity is Fidelity.SIMULATED}


@pytest.fixture(scope="module")
def calm(tmp_path_factory):
    folder = tmp_path_factory.mktemp("exchange") / "calm"
    finish(start(folder, str(folder.parent / "storage.log"), 0.0))
    assert len(table_bytes(folder)) == 2
    return folder


def test_several_runs_share_the_work_and_end_with_the_same_table(tmp_path, storage, calm):
    runs = [prepare(tmp_path / name, storage) for name in "abc"]
    for run in runs:
        assert run.stdout.readline() == "ready\n", run.stderr.read()
    for run in runs:
        go(run)
    for run in runs:
        finish(run)
    who = {}
    for name in "abc":
        assert table_bytes(tmp_path / name) == table_bytes(calm)
        found = simulated(tmp_path / name)
        assert found.keys() == simulated(calm).keys()
        who[name] = {digest: e.metrics["run"] for digest, e in found.items()}
    assert who["a"] == who["b"] == who["c"]  # one answer each, and nobody asked twice
    assert set(who["a"].values()) == set("abc")  # and everybody had some to give


@pytest.mark.parametrize(
    "storage", [pytest.param("journal file", marks=pytest.mark.slow), "postgresql"], indirect=True
)
def test_a_run_that_is_killed_is_not_waited_for(tmp_path, storage, calm):
    dead = start(tmp_path / "dead", storage)
    assert dead.stdout.readline() == "ready\n"
    time.sleep(random.Random(0).uniform(0.2, 0.6))
    dead.send_signal(signal.SIGKILL)
    dead.communicate()
    kept = simulated(tmp_path / "dead")
    assert len(kept) < len(simulated(calm))
    finish(start(tmp_path / "other", storage))
    assert table_bytes(tmp_path / "other") == table_bytes(calm)
    found = simulated(tmp_path / "other")
    assert all(found[digest].metrics["run"] == "dead" for digest in kept)


def share(
    exchange, candidates, evaluator, fidelity=Fidelity.SIMULATED, *, study=None, stamp=("1",)
):
    study = study or make_study()
    return list(exchange.share(
        candidates, lambda mine: evaluator.evaluate_all(mine, study.workload),
        study=study, fidelity=fidelity, stamp=stamp, check=lambda: None,
    ))  # fmt: skip


def test_answers_of_other_versions_are_not_taken(tmp_path):
    study = make_study()
    candidates = [study.candidate(config) for config in study.space().configs[:3]]
    with Exchange(str(tmp_path / "s")) as one, Exchange(str(tmp_path / "s")) as other:
        first = share(one, candidates, FormulaEvaluator(Fidelity.SIMULATED))
        assert [is_new for _, is_new in first] == [True] * 3
        again = share(other, candidates, FormulaEvaluator(Fidelity.SIMULATED))
        assert [(e, False) for e, _ in first] == again
        newer = share(other, candidates, FormulaEvaluator(Fidelity.SIMULATED), stamp=("2",))
        assert [is_new for _, is_new in newer] == [True] * 3


def test_a_crash_is_tried_once_more_by_whoever_comes_next(tmp_path):
    study = make_study()
    (candidate,) = [study.candidate(config) for config in study.space().configs[:1]]
    crashing = FormulaEvaluator(Fidelity.SIMULATED, statuses=lambda c: Status.CRASHED)
    with Exchange(str(tmp_path / "s")) as one, Exchange(str(tmp_path / "s")) as other:
        assert share(one, [candidate], crashing)[0][1]
        assert share(other, [candidate], crashing)[0][1]
        assert not share(one, [candidate], FormulaEvaluator(Fidelity.SIMULATED))[0][1]


BLAMES_THE_MOMENT = [Status.COMPILE_TIMEOUT, Status.RUN_TIMEOUT, Status.CRASHED]


@pytest.mark.parametrize("status", [*BLAMES_THE_MOMENT, Status.COMPILE_FAILED])
def test_what_blames_the_moment_counts_in_its_own_sweep_and_is_asked_again_by_the_next(
    tmp_path, status
):
    """So do failures of a study in which nothing else is known; as in a store."""
    study = make_study()
    candidates = [study.candidate(config) for config in study.space().configs[:2]]
    failing = FormulaEvaluator(Fidelity.SIMULATED, statuses=lambda c: status)
    fine = FormulaEvaluator(Fidelity.SIMULATED)
    with Exchange(str(tmp_path / "s"), beat_s=0.05) as one:
        for _ in range(2 if status is Status.CRASHED else 1):
            assert [is_new for _, is_new in share(one, candidates, failing)] == [True] * 2
        with Exchange(str(tmp_path / "s")) as joined_late:
            assert [is_new for _, is_new in share(joined_late, candidates, fine)] == [False] * 2
        with Exchange(str(tmp_path / "s")) as joined_late:  # though one of the others has ended
            assert [is_new for _, is_new in share(joined_late, candidates, fine)] == [False] * 2
    with Exchange(str(tmp_path / "s")) as later:
        again = share(later, candidates, fine)
        assert [(e.status, is_new) for e, is_new in again] == [(Status.OK, True)] * 2
    with Exchange(str(tmp_path / "s")) as last:
        assert share(last, candidates, failing) == [(e, False) for e, _ in again]


def test_a_timeout_of_a_run_that_was_killed_is_asked_again_once_that_is_known(tmp_path):
    study = make_study()
    (candidate,) = [study.candidate(config) for config in study.space().configs[:1]]
    late = FormulaEvaluator(Fidelity.SIMULATED, statuses=lambda c: Status.COMPILE_TIMEOUT)
    killed = Exchange(str(tmp_path / "s"), beat_s=600.0)
    assert share(killed, [candidate], late)[0][1]
    try:
        with Exchange(str(tmp_path / "s"), grace_s=0.5) as later:
            began = time.monotonic()
            ((answer, is_new),) = share(later, [candidate], FormulaEvaluator(Fidelity.SIMULATED))
            assert time.monotonic() - began > 0.2
            assert (answer.status, is_new) == (Status.OK, True)
    finally:
        killed.close()


def test_what_was_begun_is_given_back_at_the_end(tmp_path):
    study = make_study()
    candidates = [study.candidate(config) for config in study.space().configs[:2]]
    one = Exchange(str(tmp_path / "s"), grace_s=600.0)
    begun = one.share(
        candidates, lambda mine: (FormulaEvaluator(Fidelity.SIMULATED).answer(c) for c in mine),
        study=study, fidelity=Fidelity.SIMULATED, stamp=("1",), check=lambda: None,
    )  # fmt: skip
    next(begun)
    one.close()
    with Exchange(str(tmp_path / "s")) as other:
        answers = share(other, candidates, FormulaEvaluator(Fidelity.SIMULATED))
    assert sorted(is_new for _, is_new in answers) == [False, True]


@pytest.mark.parametrize("failing", ["get_all_trials", "set_trial_state_values"])
def test_a_storage_that_is_lost_under_way_is_one_clear_error(tmp_path, monkeypatch, failing):
    study = make_study()
    candidates = [study.candidate(config) for config in study.space().configs[:2]]

    def fail(*_, **__):
        raise OSError(28, "No space left on device")

    with Exchange(str(tmp_path / "s")) as one:
        monkeypatch.setattr(one._storage, failing, fail)
        with pytest.raises(StoreError, match=r"the storage was lost: .*No space left") as lost:
            share(one, candidates, FormulaEvaluator(Fidelity.SIMULATED))
    assert "run the same command" in lost.value.hint


def test_a_database_that_goes_away_is_one_clear_error(tmp_path, postgres):
    import psycopg

    empty(postgres)
    study = make_study()
    candidates = [study.candidate(config) for config in study.space().configs[:2]]
    with Exchange(postgres) as one:
        with psycopg.connect(postgres, autocommit=True) as connection:
            connection.execute("DROP SCHEMA public CASCADE")
        with pytest.raises(StoreError, match="connection to the storage was lost"):
            share(one, candidates, FormulaEvaluator(Fidelity.SIMULATED))
    empty(postgres)  # the database is the module's: the next test finds its schema again


def test_storages_that_cannot_be_used_say_why():
    with pytest.raises(RpaTuneError) as refused:
        Exchange(f"postgresql://me:secret@127.0.0.1:{free_port()}/none")
    assert "secret" not in str(refused.value)
    assert "postgres" in str(refused.value)
    with pytest.raises(RpaTuneError, match="cannot use the storage"):
        Exchange("/proc/no/such/file")
    with pytest.raises(RpaTuneError, match="not a storage") as unknown:
        Exchange("mysql://me:secret@host/db")
    assert "secret" not in str(unknown.value)
    assert "postgresql://" in unknown.value.hint
    assert hide_password("postgresql://me:secret@host/db") == "postgresql://me:***@host/db"
    assert hide_password("some/file") == "some/file"


def as_optuna_shows(storage):
    """Name -> study, as the dashboard and `optuna studies` list them."""
    if "://" in storage:
        from sqlalchemy.pool import NullPool

        url = storage.replace("postgresql://", "postgresql+psycopg://")
        storage = optuna.storages.RDBStorage(url, engine_kwargs={"poolclass": NullPool})
    else:
        storage = JournalStorage(JournalFileBackend(storage))
    found = optuna.study.get_all_study_names(storage)
    return {name: optuna.load_study(study_name=name, storage=storage) for name in found}


def test_optuna_shows_what_a_person_can_read(storage):
    study = make_study()
    configs = study.space().configs[:3]
    candidates = [study.candidate(config) for config in configs]
    failing = FormulaEvaluator(
        Fidelity.SIMULATED,
        statuses=lambda c: Status.OUT_OF_MEMORY if c == configs[2] else Status.OK,
    )
    with Exchange(storage) as one:
        answers = [answer for answer, _ in share(one, candidates, failing)]
        checks = [
            answer
            for answer, _ in share(one, candidates[:1], FakeInterpreter(), Correctness.INTERPRETED)
        ]
    shown = as_optuna_shows(storage)
    (timed,) = (shown[name] for name in shown if "simulated" in name)
    (checked,) = (shown[name] for name in shown if "interpreted" in name)
    assert timed.study_name.startswith(
        f"v6e/decode, 8/2 heads of 128, bfloat16, page 128, simulated ({study.digest} "
    )
    assert timed.metric_names == ["time us"]
    assert timed.user_attrs[f"study {study.name}"] == "workload fake: made up"
    assert timed.user_attrs["search"]["seed"] == 0
    assert timed.user_attrs["problem"]["head_dim"] == 128
    trials = timed.trials
    assert [trial.params for trial in trials] == [asdict(config) for config in configs]
    assert [trial.value for trial in trials] == [answer.time_us for answer in answers]
    assert [trial.state for trial in trials] == [COMPLETE, COMPLETE, FAIL]
    assert timed.best_trial.value == min(answer.time_us for answer in answers[:2])
    ranges = {name: (range_.low, range_.high) for name, range_ in trials[0].distributions.items()}
    assert ranges == {axis.name: (axis.values[0], axis.values[-1]) for axis in study.axes()}
    assert trials[0].user_attrs["bound_by"] == "hbm"
    assert trials[2].user_attrs["failure"] == "out_of_memory: made up: out_of_memory"
    assert all("answer" not in trial.user_attrs for trial in trials)
    (trial,) = checked.trials
    assert checks[0].ok
    assert (trial.state, trial.user_attrs["how"]) == (COMPLETE, "made up")
    assert checked.metric_names == ["error, in parts of the tolerance"]


def test_two_models_with_one_problem_share_its_answers_under_both_names(tmp_path):
    one, other = make_study(name="v6e/one/decode"), make_study(name="v6e/other/decode")
    candidates = [one.candidate(config) for config in one.space().configs[:2]]
    evaluator = FormulaEvaluator(Fidelity.SIMULATED)
    with Exchange(str(tmp_path / "s")) as exchange:
        share(exchange, candidates, evaluator, study=one)
        again = share(exchange, candidates, evaluator, study=other)
    assert [is_new for _, is_new in again] == [False, False]
    (shown,) = (s for name, s in as_optuna_shows(str(tmp_path / "s")).items() if "decode" in name)
    assert {f"study {one.name}", f"study {other.name}"} <= shown.user_attrs.keys()


def test_a_config_from_outside_of_the_axes_is_shown_too(tmp_path):
    study = make_study()
    config = replace(study.space().configs[0], bkv_sz=4096)
    with Exchange(str(tmp_path / "s")) as exchange:
        share(exchange, [study.candidate(config)], FormulaEvaluator(Fidelity.SIMULATED))
    (shown,) = (s for name, s in as_optuna_shows(str(tmp_path / "s")).items() if "decode" in name)
    assert shown.trials[0].params["bkv_sz"] == 4096


@pytest.mark.parametrize(
    ("theirs", "ours", "versions", "reason"),
    [
        ({"seed": 1}, {}, ("5.0.0", "5.0.0"), "seed 0 here, 1 there"),
        ({"simulate": 5}, {}, ("5.0.0", "5.0.0"), "simulate 12 here, 5 there"),
        ({"sampler": "tpe"}, {"sampler": "tpe"}, ("4.9.0", "5.0.0"),
         "sampler tpe optuna 5.0.0 here, tpe optuna 4.9.0 there"),
    ],
)  # fmt: skip
def test_runs_that_would_ask_other_questions_are_refused(
    storage, monkeypatch, theirs, ours, versions, reason
):
    first, second = (
        replace(make_study(), search=replace(make_study().search, **fields))
        for fields in (theirs, ours)
    )
    candidates = [first.candidate(config) for config in first.space().configs[:2]]
    evaluator = FormulaEvaluator(Fidelity.SIMULATED)
    with Exchange(storage) as one, Exchange(storage) as other:
        monkeypatch.setattr(importlib.metadata, "version", lambda package: versions[0])
        share(one, candidates, evaluator, study=first)
        monkeypatch.setattr(importlib.metadata, "version", lambda package: versions[1])
        with pytest.raises(StoreError, match="differently") as refused:
            share(other, candidates, evaluator, study=second)
        assert reason in str(refused.value)
        assert "one plan and the same versions" in refused.value.hint
        assert len(share(one, candidates, evaluator, study=first)) == 2  # the first one goes on


def test_kriging_is_the_same_whatever_optuna_there_is(tmp_path, monkeypatch):
    study = make_study()
    assert study.sampler() == {"kind": "kriging"}
    candidates = [study.candidate(config) for config in study.space().configs[:2]]
    with Exchange(str(tmp_path / "s")) as one, Exchange(str(tmp_path / "s")) as other:
        share(one, candidates, FormulaEvaluator(Fidelity.SIMULATED))
        monkeypatch.setattr(importlib.metadata, "version", lambda package: "4.9.0")
        answers = share(other, candidates, FormulaEvaluator(Fidelity.SIMULATED))
    assert [is_new for _, is_new in answers] == [False, False]
