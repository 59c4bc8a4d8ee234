"""The crew's bookkeeping with workers that a test plays; `test_pool.py` has real processes."""

import signal
import time
from multiprocessing import Pipe
from types import SimpleNamespace

import pytest

from rpa_tune.compile import crew as module
from rpa_tune.compile.crew import Crew
from rpa_tune.compile.failure import FailureKind
from rpa_tune.compile.process import Task
from rpa_tune.errors import RpaTuneError


class Played:
    """A worker whose other end of the pipe is in the test's hands."""

    made: "list[Played]"

    def __init__(self, folder, environment):
        self.connection, self.child = Pipe()
        self.folder, self.task, self.phase = folder, None, "start"
        self.is_ready, self.end, self.resident = False, "", 0
        self.deadline = time.monotonic() + 600
        self.process = SimpleNamespace(wait=lambda: None, returncode=1)
        self.made.append(self)

    def start(self, task, seconds):
        self.task, self.deadline = task, time.monotonic() + seconds

    def resident_bytes(self):
        return self.resident

    def output(self):
        return "first line\nlast line\n"

    def kill(self):
        self.end = "killed"

    def dismiss(self):
        self.end = "dismissed"

    def die(self, code):
        self.process.returncode = code
        self.child.close()


@pytest.fixture
def crew(monkeypatch, tmp_path):
    Played.made = []
    monkeypatch.setattr(module, "WorkerProcess", Played)
    crew = Crew(num_workers=2, memory_bytes=1000, scratch_dir=tmp_path, environment=lambda f: {},
                on_phase=PHASES.append)  # fmt: skip
    yield crew
    crew.close()
    assert list(tmp_path.iterdir()) == []


BELL, RINGER = Pipe()
PHASES: list[str] = []


def task(index, owner=None, deadline_s=600.0):
    return Task(index=index, function="m:f", argument=None, deadline_s=deadline_s, owner=owner)


def begin(crew, *tasks):
    """Workers that are ready and at the tasks."""
    crew.fill(iter(tasks))
    for worker in Played.made:
        if worker.task is not None and not worker.is_ready:
            worker.child.send(("ready",))
    while any(w.task is not None and not w.is_ready for w in crew.workers):
        assert crew.wait(BELL) == []
    return crew.workers


def only(outcomes):
    (outcome,) = outcomes
    return outcome


def test_workers_start_for_tasks_and_are_used_again(crew) -> None:
    tasks = iter([task(0), task(1), task(2)])
    crew.fill(tasks)
    assert [w.task.index for w in crew.workers] == [0, 1]
    one, _ = begin(crew)
    one.child.send(("value", 7))
    outcome = only(crew.wait(BELL))
    assert (outcome.task.index, outcome.value, outcome.failure) == (0, 7, None)
    crew.fill(tasks)
    assert one.task.index == 2
    assert len(Played.made) == 2


def test_no_worker_starts_without_a_task(crew) -> None:
    crew.fill(iter([]))
    assert crew.workers == []


def test_an_error_of_a_task_is_its_failure_with_the_phase(crew) -> None:
    (worker,) = begin(crew, task(0))
    worker.child.send(("phase", "compile"))
    assert crew.wait(BELL) == []
    worker.child.send(("error", "ValueError: x", "traceback"))
    failure = only(crew.wait(BELL)).failure
    assert (failure.kind, failure.phase, failure.detail, failure.log) == (
        FailureKind.EXCEPTION, "compile", "ValueError: x", "traceback",
    )  # fmt: skip
    assert crew.workers == [worker]


def test_each_phase_has_the_whole_deadline(crew) -> None:
    (worker,) = begin(crew, task(0, deadline_s=50.0))
    worker.deadline = time.monotonic() + 0.5
    worker.child.send(("phase", "two"))
    crew.wait(BELL)
    assert worker.deadline > time.monotonic() + 40
    assert PHASES[-1:] == ["two"]  # and whoever asked is told


def test_a_task_beyond_its_deadline_costs_its_worker(crew) -> None:
    (worker,) = begin(crew, task(0, deadline_s=5.0))
    worker.deadline = time.monotonic() - 1
    failure = only(crew.wait(BELL)).failure
    assert failure.kind is FailureKind.DEADLINE
    assert failure.detail == "still in phase 'start' after 5 s"
    assert (worker.end, crew.workers) == ("killed", [])


def test_memory_beyond_the_cap_costs_the_worker_and_half_of_it_a_new_one_later(crew) -> None:
    one, two = begin(crew, task(0), task(1))
    one.resident, two.resident = 1001, 501
    failure = only(crew.wait(BELL)).failure
    assert failure.kind is FailureKind.MEMORY
    assert (one.end, crew.workers) == ("killed", [two])
    two.child.send(("value", 1))
    assert only(crew.wait(BELL)).value == 1
    assert (two.end, crew.workers) == ("dismissed", [])


def test_a_death_is_said_with_its_signal_and_what_was_last_printed(crew) -> None:
    (worker,) = begin(crew, task(0))
    worker.die(-signal.SIGABRT)
    failure = only(crew.wait(BELL)).failure
    assert failure.kind is FailureKind.DIED
    assert failure.detail.startswith("worker died in phase 'start': ")
    assert "SIGABRT" in failure.detail


def test_a_task_whose_worker_was_killed_from_outside_goes_again_once(crew) -> None:
    (worker,) = begin(crew, task(0))
    worker.die(-signal.SIGKILL)
    assert crew.wait(BELL) == []
    (again,) = begin(crew)
    assert (again.task.index, again.task.was_killed) == (0, True)
    again.die(-signal.SIGKILL)
    assert only(crew.wait(BELL)).failure.kind is FailureKind.DIED


def test_tasks_go_again_while_workers_do_not_start_but_not_for_ever(crew) -> None:
    crew.fill(iter([task(0)]))
    for _ in range(2):
        (worker,) = crew.workers
        worker.die(1)
        assert crew.wait(BELL) == []
        crew.fill(iter([]))
        assert not crew.workers[0].task.was_killed  # it never had the task
    crew.workers[0].die(1)
    with pytest.raises(RpaTuneError, match="worker processes do not start: ") as caught:
        crew.wait(BELL)
    assert caught.value.where == "last line"
    assert "doctor" in caught.value.hint


def test_a_worker_that_says_why_it_cannot_start_is_an_error_at_once(crew) -> None:
    crew.fill(iter([task(0)]))
    crew.workers[0].child.send(("error", "ImportError: jax", "log"))
    with pytest.raises(RpaTuneError, match="do not start: ImportError: jax"):
        crew.wait(BELL)


def test_an_owner_that_leaves_takes_its_tasks_and_their_workers_only(crew) -> None:
    ours, theirs = object(), object()
    one, two = begin(crew, task(0, ours), task(1, theirs))
    two.die(-signal.SIGKILL)  # its task waits for a worker
    crew.wait(BELL)
    crew.drop(ours)
    assert (one.end, crew.workers) == ("killed", [])
    crew.drop(theirs)
    crew.fill(iter([]))
    assert crew.workers == []


def test_the_bell_ends_the_wait(crew) -> None:
    begin(crew, task(0))
    RINGER.send(b"")
    began = time.monotonic()
    assert crew.wait(BELL) == []
    assert time.monotonic() - began < 5
    BELL.recv()


def test_at_the_end_idle_workers_are_asked_to_go_and_others_killed(crew) -> None:
    one, two = begin(crew, task(0), task(1))
    one.child.send(("value", 0))
    crew.wait(BELL)
    crew.close()
    assert (one.end, two.end, crew.workers) == ("dismissed", "killed", [])
