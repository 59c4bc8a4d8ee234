"""Workers that crash, hang, abort, grow or are killed cost their own task only."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from rpa_tune.compile import process
from rpa_tune.compile.pool import FailureKind, WorkerPool
from rpa_tune.errors import RpaTuneError

TASKS = "pure.compile.pool_tasks"


def run(pool, name, arguments):
    """Replies in the order of their arguments."""
    return sorted(pool.map_unordered(f"{TASKS}:{name}", arguments), key=lambda reply: reply.index)


def is_alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_until_dead(pid, seconds=10):
    end = time.monotonic() + seconds
    while is_alive(pid) and time.monotonic() < end:
        time.sleep(0.05)
    return not is_alive(pid)


@pytest.fixture(scope="module")
def good_pool():
    with WorkerPool(num_workers=2, deadline_s=60) as pool:
        yield pool


def test_values_come_back_with_their_index(good_pool):
    replies = run(good_pool, "double", range(20))
    assert [reply.value for reply in replies] == [2 * i for i in range(20)]
    assert all(reply.failure is None for reply in replies)


def test_an_exception_is_one_line_and_a_traceback_and_the_worker_lives_on(good_pool):
    run(good_pool, "double", range(4))
    before = set(good_pool.pids)
    (reply,) = run(good_pool, "fail", ["this"])
    assert reply.failure.kind is FailureKind.EXCEPTION
    assert reply.failure.detail == "ValueError: cannot do this"
    assert "pool_tasks.py" in reply.failure.log
    assert set(good_pool.pids) == before


def test_a_message_that_carries_a_traceback_is_told_by_its_end(good_pool):
    (reply,) = run(good_pool, "fail_inside", [0])
    assert reply.failure.detail == "RuntimeError: IndexError: far off"


def test_an_answer_that_cannot_travel_is_an_exception(good_pool):
    (reply,) = run(good_pool, "unpicklable", [0])
    assert reply.failure.kind is FailureKind.EXCEPTION


def test_prints_do_not_disturb_the_protocol(good_pool, capfd):
    assert [reply.value for reply in run(good_pool, "noisy", [1, 2, 3])] == [1, 2, 3]
    assert "noise" not in capfd.readouterr().out


def test_arguments_are_taken_as_workers_become_free():
    taken = []

    def arguments():
        for how in (1, *["hang"] * 100):
            taken.append(how)
            yield how

    with WorkerPool(num_workers=2, deadline_s=60) as pool:
        replies = pool.map_unordered(f"{TASKS}:behave", arguments())
        assert next(replies).value == 2
        replies.close()
    assert len(taken) <= 3


def test_workers_are_told_what_libtpu_reads_at_start(good_pool):
    (flags,) = run(good_pool, "environment", ["LIBTPU_INIT_ARGS"])
    (platform,) = run(good_pool, "environment", ["JAX_PLATFORMS"])
    (num_threads,) = run(good_pool, "environment", ["PJRT_NPROC"])
    assert int(num_threads.value) >= 4  # two interpreted cores need three
    assert "final_bundles" in flags.value
    assert platform.value == "cpu"


@pytest.mark.parametrize(
    ("how", "said"),
    [("abort", "SIGABRT"), ("check", "Check failed: a == b"), ("exit", "exit code 7")],
)
def test_a_worker_that_dies_costs_its_task_only(how, said):
    with WorkerPool(num_workers=1, deadline_s=60) as pool:
        replies = run(pool, "behave", [1, how, 3])
        assert [reply.value for reply in replies] == [2, None, 6]
        assert replies[1].failure.kind is FailureKind.DIED
        assert said in replies[1].failure.detail
        assert "\n" not in replies[1].failure.detail


def test_a_hang_ends_at_the_deadline_with_its_phase_and_its_process():
    with WorkerPool(num_workers=1, deadline_s=1.0) as pool:
        (first,) = run(pool, "pid", [0])
        replies = run(pool, "behave", ["hang", 5])
        assert replies[0].failure.kind is FailureKind.DEADLINE
        assert replies[0].failure.phase == "hanging"
        assert replies[1].value == 10
        assert wait_until_dead(first.value)


def test_every_phase_has_the_whole_deadline_and_is_told_when_it_begins():
    told = []
    with WorkerPool(num_workers=1, deadline_s=2.0, on_phase=told.append) as pool:
        (reply,) = run(pool, "phases", [1.0])
        assert reply.value == "done"
        assert reply.seconds > 2.5
    assert told == ["one", "two", "three"]


def test_a_worker_over_its_memory_cap_is_killed():
    with WorkerPool(num_workers=1, deadline_s=60, memory_bytes=768 << 20) as pool:
        replies = run(pool, "behave", ["grow", 4])
        assert replies[0].failure.kind is FailureKind.MEMORY
        assert "cap is 0.8 GiB" in replies[0].failure.detail
        assert replies[1].value == 8


def test_a_task_whose_worker_was_killed_is_tried_once_more(tmp_path):
    with WorkerPool(num_workers=1, deadline_s=60) as pool:
        (reply,) = run(pool, "killed_the_first_time", [str(tmp_path / "marker")])
        assert reply.value == "survived"


def test_a_task_that_is_killed_twice_is_reported():
    with WorkerPool(num_workers=1, deadline_s=60) as pool:
        (reply,) = run(pool, "killed_every_time", [0])
        assert reply.failure.kind is FailureKind.DIED
        assert "SIGKILL" in reply.failure.detail


def test_killing_workers_at_random_loses_nothing():
    with WorkerPool(num_workers=2, deadline_s=60) as pool:
        replies = []
        for reply in pool.map_unordered(f"{TASKS}:double", range(30)):
            replies.append(reply)
            if len(replies) in (5, 15, 25):
                os.kill(pool.pids[0], signal.SIGKILL)
    assert sorted(reply.index for reply in replies) == list(range(30))
    lost = [reply for reply in replies if reply.failure]
    # Three kills can hit one task twice, which is reported, and no second task.
    assert len(lost) <= 1
    assert all(reply.failure.kind is FailureKind.DIED for reply in lost)
    assert all(reply.value == 2 * reply.index for reply in replies if not reply.failure)


def test_the_whole_process_group_goes(tmp_path):
    pid_file = tmp_path / "pid"
    with WorkerPool(num_workers=1, deadline_s=1.5) as pool:
        (reply,) = run(pool, "start_child_and_hang", [str(pid_file)])
        assert reply.failure.kind is FailureKind.DEADLINE
    assert wait_until_dead(int(pid_file.read_text()))


def test_closing_removes_processes_and_folders(tmp_path):
    pool = WorkerPool(num_workers=2, deadline_s=60, scratch_dir=tmp_path)
    run(pool, "double", range(4))
    pids = pool.pids
    assert pids
    assert list(tmp_path.iterdir())
    pool.close()
    assert all(wait_until_dead(pid) for pid in pids)
    assert not list(tmp_path.iterdir())


def test_workers_die_with_a_parent_that_is_killed(tmp_path):
    script = (
        "import sys, os\n"
        "from rpa_tune.compile.pool import WorkerPool\n"
        f"pool = WorkerPool(num_workers=1, deadline_s=600)\n"
        f"next(iter(pool.map_unordered('{TASKS}:pid', [0])))\n"
        "print(pool.pids[0], flush=True)\n"
        f"list(pool.map_unordered('{TASKS}:behave', ['hang']))\n"
    )
    path = os.pathsep.join(sys.path)
    parent = subprocess.Popen(
        [sys.executable, "-c", script],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": path, "TMPDIR": str(tmp_path)},
    )
    child = int(parent.stdout.readline())
    time.sleep(0.5)
    assert is_alive(child)
    parent.kill()
    parent.communicate()
    assert wait_until_dead(child)


def test_workers_that_cannot_start_are_an_error_with_a_hint(monkeypatch):
    monkeypatch.setattr(process, "SETUP", "no_such_module:function")
    with WorkerPool(num_workers=1) as pool, pytest.raises(RpaTuneError, match="do not start") as e:
        run(pool, "double", [1])
    assert "no_such_module" in str(e.value)
    assert "doctor" in e.value.hint


def test_the_parent_imports_neither_jax_nor_libtpu():
    script = (
        "import sys, rpa_tune.compile.pool, rpa_tune.compile.dumps\n"
        "print([m for m in ('jax', 'libtpu') if m in sys.modules])"
    )
    out = subprocess.run(
        [sys.executable, "-c", script], check=True, stdout=subprocess.PIPE, text=True
    )
    assert out.stdout.strip() == "[]"


def test_several_threads_share_the_workers_and_get_their_own_replies():
    found = {}

    def ask(name, arguments):
        found[name] = [reply.value for reply in run(pool, "double", arguments)]

    with WorkerPool(num_workers=2, deadline_s=60) as pool:
        threads = [
            threading.Thread(target=ask, args=(n, range(100 * n, 100 * n + 10))) for n in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert len(pool.pids) == 2
    assert found == {n: [2 * i for i in range(100 * n, 100 * n + 10)] for n in range(4)}


def test_leaving_one_call_does_not_disturb_the_others():
    with WorkerPool(num_workers=2, deadline_s=60) as pool:
        hanging = pool.map_unordered(f"{TASKS}:behave", [1, "hang"])
        assert next(hanging).value == 2
        others = pool.map_unordered(f"{TASKS}:double", range(6))
        first = next(others).value
        hanging.close()
        assert sorted([first, *(reply.value for reply in others)]) == [0, 2, 4, 6, 8, 10]


def test_closing_ends_the_wait_of_other_threads():
    errors = []

    def ask():
        try:
            run(pool, "behave", ["hang"])
        except RpaTuneError as error:
            errors.append(str(error))

    pool = WorkerPool(num_workers=1, deadline_s=600)
    thread = threading.Thread(target=ask)
    thread.start()
    end = time.monotonic() + 30
    while not pool.pids and time.monotonic() < end:
        time.sleep(0.05)
    pool.close()
    thread.join(30)
    assert errors == ["the worker pool was closed"]
    with pytest.raises(RpaTuneError, match="closed"):
        run(pool, "double", [1])


def test_a_call_has_its_own_deadline_and_its_own_errors():
    def arguments():
        yield 1
        raise LookupError("no second one")

    with WorkerPool(num_workers=1, deadline_s=600) as pool:
        replies = pool.map_unordered(f"{TASKS}:behave", ["hang"], deadline_s=0.5)
        assert next(replies).failure.kind is FailureKind.DEADLINE
        with pytest.raises(LookupError, match="no second one"):
            list(pool.map_unordered(f"{TASKS}:double", arguments()))
        assert [reply.value for reply in run(pool, "double", [4])] == [8]
