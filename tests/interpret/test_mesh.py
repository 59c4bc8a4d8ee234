"""More than one device: `shard_map` over heads, and executables on any device of a host."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from interpret.mesh_calls import SMALL

TESTS = Path(__file__).parents[1]


def run(*arguments):
    """Calls a function of mesh_calls.py in a process that has four CPU devices."""
    environment = {
        **os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(TESTS),
        "XLA_FLAGS": "--xla_force_host_platform_device_count=4",
    }  # fmt: skip
    command = [sys.executable, "-m", "interpret.mesh_calls", *map(str, arguments)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_shard_map_over_heads_equals_one_device():
    found = run("sharded")
    assert found["configs"] == SMALL
    assert found["plans_are_equal"]
    assert found["num_devices"] == 2
    assert found["largest"] > 0.1
    assert found["output_is_equal"]
    assert found["cache_is_equal"]
    assert found["donated"] == [False, False, False, True]


@pytest.mark.slow
def test_the_example_of_context_parallel_merges_what_devices_have():
    example = TESTS.parent / "examples" / "context_parallel.py"
    done = subprocess.run(
        [sys.executable, example], capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "tokens of the contexts on each device: 170, 144" in done.stdout


def test_an_executable_runs_on_the_device_of_its_arrays(tmp_path):
    found = run("artifact", tmp_path)
    assert found["devices"] == [0, 1, 2]
    assert found["right"] == [True, True, True]
    assert found["compiled"] == 2
    (said,) = found["said"]
    assert "arrays are on 2 devices, not one; compiling instead" in said
