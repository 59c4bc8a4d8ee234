"""What a worker is told of its parent's environment: what it needs, nothing that compilers read."""

import os

import pytest
from pure.compile.pool_tasks import settings

from rpa_tune.compile import process, target
from rpa_tune.compile.pool import WorkerPool

# What a bitcast view of some shape is asked: packing words, taking them apart, the same width.
VIEWS = [
    ((16, 2, 128), "bfloat16", "uint32"),
    ((8, 128), "int32", "int8"),
    ((8, 128), "int32", "float32"),
]  # fmt: skip
# Each changes or breaks a compile, or would bring in another compiler than the key of a cache says.
HOSTILE = {
    "JAX_DEFAULT_MATMUL_PRECISION": "highest",
    "JAX_ENABLE_X64": "1",
    "JAX_DISABLE_JIT": "1",
    "JAX_NUMPY_RANK_PROMOTION": "raise",
    "JAX_COMPILATION_CACHE_DIR": "/nowhere",
    "JAX_A_SETTING_OF_TOMORROW": "1",
    "XLA_FLAGS": "--xla_no_such_flag",
    "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
    "LIBTPU_INIT_ARGS": "--xla_no_such_flag --xla_jf_dump_to=/elsewhere",
    "TPU_LIBRARY_PATH": "/another/libtpu.so",
    "TPU_SKIP_MDS_QUERY": "0",
    "PYTHONOPTIMIZE": "2",
    "PYTHONWARNINGS": "error",
    "LD_PRELOAD": "",
}
NEEDED = {
    "PATH": "/bin", "HOME": "/home/me", "TMPDIR": "/scratch", "LD_LIBRARY_PATH": "/lib",
    "PYTHONPATH": "/src", "XDG_CACHE_HOME": "/cache", "NUMBA_CACHE_DIR": "/numba",
    "HTTPS_PROXY": "http://proxy", "https_proxy": "http://proxy", "no_proxy": "localhost",
    "PIP_INDEX_URL": "https://index", "SSL_CERT_FILE": "/certs", "LC_ALL": "C.UTF-8",
    "OMP_NUM_THREADS": "1",
}  # fmt: skip


@pytest.fixture
def hostile(monkeypatch):
    for name, value in {**HOSTILE, **NEEDED}.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize("make", [target.worker_environment, target.build_environment])
def test_workers_that_compile_get_an_allow_list(hostile, tmp_path, make):
    made = make(tmp_path)
    assert made.items() >= NEEDED.items()
    ours = {"JAX_PLATFORMS": "cpu", "TPU_SKIP_MDS_QUERY": "1"}
    assert made.items() >= ours.items()
    assert not {name for name in HOSTILE if name in made} - {"LIBTPU_INIT_ARGS", *ours}
    flags = made.get("LIBTPU_INIT_ARGS", "").split()
    dumps = [f"--xla_jf_dump_to={target.dump_folder(tmp_path)}", *target.DUMP_FLAGS]
    assert flags == (dumps if make is target.worker_environment else [])


def test_workers_on_a_device_have_the_hosts_environment_but_for_what_decides_programs(
    hostile, monkeypatch, tmp_path
):
    host = {"TPU_WORKER_ID": "3", "JAX_PLATFORMS": "tpu", "TPU_LIBRARY_PATH": "/lib/libtpu.so"}
    for name, value in {**host, "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}.items():
        monkeypatch.setenv(name, value)
    made = target.device_environment(tmp_path)
    assert made.items() >= {**host, **NEEDED}.items()
    left_out = os.environ.keys() - made.keys()
    assert left_out == {
        "ALLOW_MULTIPLE_LIBTPU_LOAD", "JAX_DEFAULT_MATMUL_PRECISION", "JAX_ENABLE_X64",
        "JAX_DISABLE_JIT", "JAX_NUMPY_RANK_PROMOTION", "JAX_A_SETTING_OF_TOMORROW", "XLA_FLAGS",
        "XLA_PYTHON_CLIENT_PREALLOCATE", "LIBTPU_INIT_ARGS",
    }  # fmt: skip


def test_settings_of_this_process_are_named_without_what_only_dumps(hostile, monkeypatch):
    found = target.program_settings()
    assert found["LIBTPU_INIT_ARGS"] == "--xla_no_such_flag"
    assert found["JAX_ENABLE_X64"] == "1"
    assert "JAX_COMPILATION_CACHE_DIR" not in found
    monkeypatch.setenv("LIBTPU_INIT_ARGS", " ".join(target.DUMP_FLAGS))
    assert "LIBTPU_INIT_ARGS" not in target.program_settings()


def test_a_worker_has_no_settings_and_jax_its_defaults(hostile, monkeypatch):
    monkeypatch.delenv("PYTHONPATH")  # the real one is needed to find the package
    monkeypatch.setenv("TMPDIR", "/tmp")
    monkeypatch.setattr(process, "SETUP", "pure.sweep.fault_tasks:no_setup")
    with WorkerPool(num_workers=1) as pool:
        (reply,) = pool.map_unordered(f"{settings.__module__}:settings", [None])
    assert reply.failure is None, reply.failure
    assert reply.value == ({}, False, None, False)


def test_the_users_environment_is_all_of_it_or_some_on_top_of_a_workers(hostile, tmp_path):
    everything = target.users_environment(tmp_path)
    assert everything["JAX_ENABLE_X64"] == "1"
    assert everything["TPU_LIBRARY_PATH"] == "/another/libtpu.so"
    assert everything["LIBTPU_INIT_ARGS"].startswith("--xla_no_such_flag ")
    assert everything["LIBTPU_INIT_ARGS"].endswith(target.DUMP_FLAGS[-1])
    # A TPU that is not there needs these, whatever the shell says.
    assert everything["TPU_SKIP_MDS_QUERY"] == "1"
    one = target.users_environment(tmp_path, only=["JAX_ENABLE_X64"])
    assert one == target.worker_environment(tmp_path) | {"JAX_ENABLE_X64": "1"}
    assert {"JAX_ENABLE_X64", "XLA_FLAGS", "TPU_LIBRARY_PATH", "LD_PRELOAD"} <= set(
        target.suspects()
    )
    assert not {"JAX_PLATFORMS", "PATH", "LD_LIBRARY_PATH"} & set(target.suspects())


def test_a_worker_asks_jax_once_what_a_bitcast_view_is(monkeypatch):
    import jax
    from jax._src.state import utils

    if not hasattr(utils, "eval_bitcast_shape"):
        pytest.skip("this jax has no such function")
    asked = []
    ask = utils.eval_bitcast_shape
    monkeypatch.setattr(
        utils, "eval_bitcast_shape", lambda x, dtype: asked.append(x) or ask(x, dtype)
    )
    target._remember_bitcasts()
    for _ in range(2):
        for shape, before, after in VIEWS:
            x = jax.ShapeDtypeStruct(shape, jax.numpy.dtype(before))
            to = jax.numpy.dtype(after)
            assert utils.eval_bitcast_shape(x, to) == ask(x, to)
    assert len(asked) == len(VIEWS)
