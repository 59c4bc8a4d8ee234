"""Tasks on a local Ray cluster of several nodes, one of which dies."""

import os
import threading
import time
from pathlib import Path

import pytest

ray = pytest.importorskip("ray", reason="needs the extra rpa-tune[ray]")

from rpa_tune.compile.failure import FailureKind  # noqa: E402
from rpa_tune.compile.ray_pool import RayPool  # noqa: E402

pytestmark = [
    pytest.mark.scale,
    pytest.mark.filterwarnings("ignore"),  # Ray's own
]
TASKS = "pure.compile.pool_tasks"
TESTS = Path(__file__).resolve().parents[1]


@pytest.fixture
def cluster(monkeypatch):
    from ray.cluster_utils import Cluster

    paths = f"{TESTS}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    monkeypatch.setenv("PYTHONPATH", paths)
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    made.victims = [made.add_node(num_cpus=1) for _ in range(2)]
    made.with_tpu = made.add_node(num_cpus=1, resources={"TPU": 1})
    ray.init(address=made.address, log_to_driver=False)
    yield made
    ray.shutdown()
    made.shutdown()


def test_tasks_run_on_the_cluster_and_failures_are_what_they_were(cluster):
    pool = RayPool()
    replies = {r.index: r for r in pool.map_unordered(f"{TASKS}:behave", [1, "abort", 3])}
    assert [replies[i].value for i in range(3)] == [2, None, 6]
    assert replies[1].failure.kind is FailureKind.DIED
    assert "SIGABRT" in replies[1].failure.detail
    (late,) = pool.map_unordered(f"{TASKS}:behave", ["hang"], deadline_s=1.0)
    assert late.failure.kind is FailureKind.DEADLINE
    assert pool.num_cpus == 3
    # What needs a TPU runs on the one node that has one.
    measuring = RayPool(resources={"TPU": 1})
    (reply,) = measuring.map_unordered(f"{TASKS}:environment", ["LIBTPU_INIT_ARGS"])
    assert reply.failure is None
    assert "final_bundles" not in (reply.value or "")


def test_a_lost_node_costs_nothing_but_time(cluster, tmp_path):
    pool = RayPool()
    started = threading.Event()

    def kill_a_node():
        started.wait(60)
        time.sleep(1.0)
        cluster.remove_node(cluster.victims[0], allow_graceful=False)

    thread = threading.Thread(target=kill_a_node)
    thread.start()
    values = []
    for reply in pool.map_unordered(f"{TASKS}:double_slowly", range(18)):
        assert reply.failure is None, reply.failure
        values.append(reply.value)
        started.set()
    thread.join()
    assert sorted(values) == [2 * i for i in range(18)]
    end = time.monotonic() + 30
    while is_alive(cluster.victims[0]) and time.monotonic() < end:
        time.sleep(0.5)
    assert not is_alive(cluster.victims[0])
    assert is_alive(cluster.victims[1])


def is_alive(node):
    return any(known["Alive"] for known in ray.nodes() if known["NodeID"] == node.node_id)


def test_a_sweep_on_a_cluster_writes_the_same_table(cluster, tmp_path, monkeypatch):
    """The command, with a stand-in for the compiler that the nodes run."""
    from click.testing import CliRunner
    from pure.cli.test_sweep import PLAN

    from rpa_tune.cli.main import cli
    from rpa_tune.evaluate import simulated
    from rpa_tune.tables.reader import load_tables

    monkeypatch.setattr(simulated, "TASK", "pure.evaluate.builders:answer")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "plan.yaml").write_text(PLAN)
    rows = {}
    for executor in ("ray", "local"):
        command = ["sweep", "plan.yaml", "--no-verify", "--executor", executor,
                   "--tables", executor, "--store", f"{executor}.jsonl",
                   "--workers", "2"]  # fmt: skip
        result = CliRunner().invoke(cli, command)
        assert result.exit_code == 0, result.output
        rows[executor] = [(r.key, r.configs, r.rule) for r in load_tables([tmp_path / executor])]
    assert rows["ray"] == rows["local"] != []


def test_a_sweep_on_a_cluster_measures_where_the_tpus_are(cluster, tmp_path, monkeypatch):
    """Everything but the chip: finalists go to the one node that has a TPU, and to no other."""
    from click.testing import CliRunner
    from pure.cli.test_sweep import PLAN

    from rpa_tune.candidate import Fidelity
    from rpa_tune.cli.main import cli
    from rpa_tune.evaluate import measured, simulated
    from rpa_tune.store import journal

    monkeypatch.setattr(simulated, "TASK", "pure.evaluate.builders:answer")
    monkeypatch.setattr(measured, "FIND", "scale.ray_tasks:find_v6e")
    monkeypatch.setattr(measured, "TASK", "scale.ray_tasks:measure")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "plan.yaml").write_text(PLAN)
    command = ["sweep", "plan.yaml", "--no-verify", "--executor", "ray", "--store", "s.jsonl"]
    result = CliRunner().invoke(cli, command)
    assert result.exit_code == 0, result.output
    assert "Measured for v6e on a made up" in result.stdout
    found = [e for e in journal.read(tmp_path / "s.jsonl").evaluations
             if e.fidelity is Fidelity.MEASURED]  # fmt: skip
    assert 4 <= len(found) <= 5
    (raylet,) = cluster.with_tpu.all_processes["raylet"]
    assert {e.provenance["device"]["raylet"] for e in found} == {raylet.process.pid}


def test_a_cluster_without_a_tpu_says_so(cluster):
    assert RayPool(resources={"TPU": 1}).has_room
    assert not RayPool(resources={"TPU": 2}).has_room
