"""A caller's whole program gets into jax's cache with no TPU, under a key that no path changes."""

import os
import shutil
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


def fill(program, cache, scratch, topology="v6e:2x2", mode="ahead", **environment):
    """Compiles the program into a cache; the entries that are there then."""
    run = subprocess.run(
        [sys.executable, program, cache, topology, mode],
        env=build_environment(scratch) | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    return {path.name for path in cache.iterdir() if path.name.endswith("-cache")}


@pytest.fixture(scope="module")
def filled(tmp_path_factory):
    """A folder with the program's entry, and the entry's name."""
    folder = tmp_path_factory.mktemp("filled")
    (entry,) = fill(PROGRAM, folder / "cache", folder)
    assert entry.startswith("jit_step-")
    return folder / "cache", entry


def test_an_entry_is_found_again_wherever_the_code_and_the_folder_lie(filled, tmp_path):
    cache, entry = filled
    # As on a TPU host: another folder, options from the shell, and what `import jax` does there.
    shutil.copytree(cache, tmp_path / "on the host")
    moved = tmp_path / "elsewhere" / "program.py"
    moved.parent.mkdir()
    moved.write_text("# a line more\n" + PROGRAM.read_text())
    for name, source in (("rpa_tune", "rpa_tune"), ("rpa_kernels", "kernels")):
        os.symlink(ROOT / source, moved.parent / name)
    shell = {
        "PYTHONPATH": str(moved.parent),
        "JAX_FORCE_TPU_INIT": "1",
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path / "on the host"),
        "JAX_TRACEBACK_IN_LOCATIONS_LIMIT": "0",
        "JAX_PERSISTENT_CACHE_ENABLE_XLA_CACHES": "none",
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    assert fill(moved, tmp_path / "on the host", tmp_path, "v6e:2x2", "host", **shell) == {entry}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("topology", "flags"), [("v6e:2x4", ""), ("v6e:2x2", "--xla_tpu_scoped_vmem_limit_kib=65536")]
)
def test_a_host_of_another_shape_or_other_flags_has_an_entry_of_its_own(
    filled, tmp_path, topology, flags
):
    _, entry = filled
    (other,) = fill(PROGRAM, tmp_path / "cache", tmp_path, topology, LIBTPU_INIT_ARGS=flags)
    assert other != entry


def test_a_process_that_is_no_host_to_jax_is_refused(monkeypatch, tmp_path):
    monkeypatch.delenv("LIBTPU_INIT_ARGS", raising=False)
    with (
        pytest.raises(UsageError, match="as a TPU host would") as refused,
        jax_cache.jax_cache(tmp_path),
    ):
        pass
    assert "JAX_FORCE_TPU_INIT=1" in refused.value.hint


def test_an_unknown_topology_is_refused_by_name():
    with pytest.raises(UsageError, match="no topology 'v6e:3x5'"):
        jax_cache.devices("v6e", "v6e:3x5")
