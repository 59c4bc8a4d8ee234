"""A caller's whole program gets into jax's cache with no TPU, under a key that no path changes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from rpa_tune.artifact import jax_cache
from rpa_tune.compile.target import build_environment
from rpa_tune.errors import UsageError

pytestmark = pytest.mark.aot
ROOT = Path(__file__).parents[2]
PROGRAM = ROOT / "tests" / "aot" / "ahead_program.py"


def fill(program, cache, scratch, topology="v6e:2x2", **environment):
    """Compiles the program into a cache; the entries that are there then."""
    run = subprocess.run(
        [sys.executable, program, cache, topology],
        env=build_environment(scratch) | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    return {path.name for path in cache.iterdir() if path.name.endswith("-cache")}


def test_an_entry_is_found_again_wherever_the_code_lies(tmp_path):
    (entry,) = fill(PROGRAM, tmp_path / "cache", tmp_path)
    assert entry.startswith("jit_step-")
    moved = tmp_path / "elsewhere" / "program.py"
    moved.parent.mkdir()
    moved.write_text("# a line more\n" + PROGRAM.read_text())
    for name, source in (("rpa_tune", "rpa_tune"), ("rpa_kernels", "kernels")):
        os.symlink(ROOT / source, moved.parent / name)
    assert fill(moved, tmp_path / "cache", tmp_path, PYTHONPATH=str(moved.parent)) == {entry}


@pytest.mark.slow
def test_a_host_of_another_shape_has_an_entry_of_its_own(tmp_path):
    entries = fill(PROGRAM, tmp_path / "cache", tmp_path)
    assert len(fill(PROGRAM, tmp_path / "cache", tmp_path, "v6e:2x4") | entries) == 2


def test_an_unknown_topology_is_refused_by_name():
    with pytest.raises(UsageError, match="no topology 'v6e:3x5'"):
        jax_cache.devices("v6e", "v6e:3x5")
