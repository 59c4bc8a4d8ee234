"""A TPU target with no TPU: the environment of a worker, and the device it compiles for.

Neighbours: `pool.py` starts workers with this environment; `lower.py` compiles for the device.
This is one of the two places in the project that may touch environment variables. jax is imported
inside functions, because the parent process uses the rest without it.
"""

import fnmatch
import functools
import gc
import os
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

from rpa_tune.hw.chip import Chip
from rpa_tune.libtpu_args import HOST_FLAG, VARIABLE, args_here
from rpa_tune.llo.sources import SOURCES_FLAG

# What the compiler writes down. The pass is chosen by a regular expression on its label; the
# VMEM report comes along whatever the label says.
# Source: observed with libtpu 0.0.42.1 and 0.0.50.1.
DUMP_FLAGS = (
    "--xla_jf_dump_llo_text=true",
    "--xla_jf_dump_llo_pass_label_regex=final_bundles",
)
_DUMP_TO = "--xla_jf_dump_to="

# Objects between two looks for garbage of a worker, and looks between those of older generations.
_GC_THRESHOLDS = (100_000, 50, 100)

# Keeps libtpu from asking a cloud metadata server which TPU it is on.
_NO_METADATA_SERVER = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
}

# jax asks for libtpu's version only where it believes it is on a TPU host, and elsewhere writes
# programs for the newest one: jax 0.12.0.1 with libtpu 0.0.48 then fails with `no such field:
# 'debug_locations'`, and with this compiles what a host would run.
# Source: jax 0.10.2 and 0.12.0.1, jax/_src/cloud_tpu_init.py (`is_libtpu_at_least`).
_AS_ON_A_HOST = {"JAX_FORCE_TPU_INIT": "1"}

# What a worker that compiles is given of its parent's environment. Nothing here decides what a
# compiler makes, so that one key in a cache means one program, whatever shell a run was started
# from: no JAX_*, XLA_*, LIBTPU_* or TPU_* (TPU_LIBRARY_PATH would even load another compiler than
# the one whose version is part of the key). Names that end in `*` stand for all that begin so.
_INHERITED = (
    # Programs, and libraries that Python's packages load.
    "PATH", "LD_LIBRARY_PATH",
    # The same Python, and the same packages in it.
    "PYTHONPATH", "PYTHONHOME", "PYTHONNOUSERSITE", "PYTHONDONTWRITEBYTECODE",
    "PYTHONPYCACHEPREFIX", "VIRTUAL_ENV", "CONDA_PREFIX",
    # Who is working, where temporary files and caches go. Numba keeps the simulator's machine code.
    "HOME", "USER", "LOGNAME", "TMPDIR", "TMP", "TEMP", "XDG_*", "NUMBA_CACHE_DIR",
    # How text and times are read and written.
    "LANG", "LANGUAGE", "LC_*", "PYTHONUTF8", "TZ",
    # Hosts that allow few threads: a linear algebra library starts one for each core.
    "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS",
    # A node of a cluster gets the wheel of the public kernels by itself.
    "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "no_proxy",
    "all_proxy", "PIP_*", "SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "NETRC",
)  # fmt: skip
# What decides the program or the compiler's flags, and says nothing about the host.
_DECIDES_PROGRAMS = ("JAX_*", "XLA_*", "LIBTPU_INIT_ARGS")
# Of these, what does not: where to compile and where to keep it.
_DECIDES_NOTHING = (
    "JAX_PLATFORMS", "JAX_COMPILATION_CACHE_DIR", "JAX_ENABLE_COMPILATION_CACHE",
    *_AS_ON_A_HOST,
)  # fmt: skip


def worker_environment(folder: Path, libtpu_args: str = "") -> dict[str, str]:
    """The environment of a worker process that compiles without a TPU and dumps schedules.

    Args:
      folder: The worker's private folder; dumps go to `dump_folder(folder)`.
      libtpu_args: Flags of the deployment; see `libtpu_args.py`.
    """
    flags = f"{libtpu_args} {_dump_flags(folder)}".strip()
    return build_environment(folder) | {VARIABLE: flags}


def sources_environment(folder: Path) -> dict[str, str]:
    """That of `worker_environment`; schedules say which source line an instruction comes from."""
    return worker_environment(folder, SOURCES_FLAG)


def build_environment(folder: Path, libtpu_args: str = "") -> dict[str, str]:
    """The environment of a worker process that compiles without a TPU, and dumps nothing.

    Made up but for an allow-list of the parent's; see `_INHERITED`.

    Args:
      folder: The worker's private folder.
      libtpu_args: Flags of the deployment; see `libtpu_args.py`.
    """
    inherited = {k: v for k, v in os.environ.items() if _is_among(k, _INHERITED)}
    flags = {VARIABLE: libtpu_args} if libtpu_args else {}
    return inherited | _without_a_tpu(folder) | flags


def users_environment(folder: Path, *, only: Collection[str] | None = None) -> dict[str, str]:
    """That of `worker_environment`, and what else the user's own shell has set.

    For `doctor`, which compares the two. What is compiled here is kept nowhere.

    Args:
      folder: The worker's private folder.
      only: Which of the user's variables; all if None.
    """
    theirs = {k: v for k, v in os.environ.items() if only is None or k in only}
    flags = f"{theirs.get('LIBTPU_INIT_ARGS', '')} {_dump_flags(folder)}".strip()
    always = _without_a_tpu(folder) | {"LIBTPU_INIT_ARGS": flags}
    return build_environment(folder) | theirs | always


def program_settings(libtpu_args: str = "") -> dict[str, str]:
    """Variables of this process's environment that may decide what a compiler makes.

    In a worker: what it was started with beside `worker_environment`, which is nothing.

    Args:
      libtpu_args: Flags that the candidate itself names; they are left out.
    """
    found = {}
    for name, value in sorted(os.environ.items()):
        if not _is_among(name, _DECIDES_PROGRAMS) or name in _DECIDES_NOTHING:
            continue
        if name == "LIBTPU_INIT_ARGS":
            value = " ".join(flag for flag in value.split() if not _decides_nothing(flag))
        if value and not (libtpu_args and name == VARIABLE and args_here() == libtpu_args):
            found[name] = value
    return found


def suspects() -> list[str]:
    """Variables of this process's environment that may change or break a compile.

    More than `program_settings`: also other libraries in the compiler's place, Python's switches.
    """
    known = (*_INHERITED, *_without_a_tpu(Path()))
    patterns = ("JAX_*", "XLA_*", "LIBTPU_*", "TPU_*", "PJRT_*", "TF_*", "LD_*", "PYTHON*")
    return sorted(n for n in os.environ if _is_among(n, patterns) and not _is_among(n, known))


def settings_named(names: Iterable[str]) -> dict[str, str]:
    """Values of variables of this process's environment, which are there."""
    return {name: os.environ[name] for name in names}


def is_as_on_a_host() -> bool:
    """Whether `import jax` took this process for one on a TPU host; see `_AS_ON_A_HOST`."""
    return HOST_FLAG.partition("=")[0] in os.environ.get(VARIABLE, "")


def device_environment(folder: Path, libtpu_args: str = "") -> dict[str, str]:
    """The environment of a worker that runs on the device that is there: the host's own.

    A TPU host says in `TPU_*` and other variables which chips it has, and how to reach them, so
    there is no list of what is needed. What decides programs is left out here too: a row is timed
    as it was compiled for the simulator, and the store has one answer to one question.

    Args:
      folder: The worker's private folder; nothing in this environment depends on it.
      libtpu_args: Flags of the deployment; see `libtpu_args.py`.
    """
    del folder
    left_out = (*program_settings(), "ALLOW_MULTIPLE_LIBTPU_LOAD")
    kept = {name: value for name, value in os.environ.items() if name not in left_out}
    return kept | ({VARIABLE: libtpu_args} if libtpu_args else {})


def _without_a_tpu(folder: Path) -> dict[str, str]:
    """What every worker is told that compiles for a TPU that is not there."""
    return {
        "JAX_PLATFORMS": "cpu",
        **_AS_ON_A_HOST,
        **_NO_METADATA_SERVER,
        "PJRT_NPROC": num_xla_threads(),
        # Device-free compiles never touch a chip, so several may run side by side.
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
        "TPU_LOG_DIR": str(folder / "log"),
        "TPU_STDERR_LOG_LEVEL": "2",
        "TPU_MIN_LOG_LEVEL": "2",
    }


def _dump_flags(folder: Path) -> str:
    return " ".join((f"{_DUMP_TO}{dump_folder(folder)}", *DUMP_FLAGS))


def _decides_nothing(flag: str) -> bool:
    return flag in (*DUMP_FLAGS, HOST_FLAG) or flag.startswith(_DUMP_TO)


def _is_among(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def num_xla_threads() -> str:
    """`PJRT_NPROC`: the threads of XLA on the CPU, no fewer than the interpreter needs.

    It runs two TensorCores as two calls inside a third. XLA by itself has as many threads as the
    host has CPUs, and on one CPU they would wait for each other forever.
    """
    return str(max(4, os.cpu_count() or 1))


def dump_folder(folder: Path) -> Path:
    """Where the worker that owns `folder` finds its compiler dumps."""
    return folder / "dumps"


@functools.cache
def device_free_devices(chip: Chip, topology: str | None = None) -> tuple[Any, ...]:
    """`jax.Device`s that need not be there, good for lowering and compiling only.

    Args:
      chip: Which.
      topology: Such as `v6e:2x4`; what the chip table says if None.

    Raises:
      JaxRuntimeError: libtpu does not know the topology.
    """
    from jax.experimental import topologies

    found = topologies.get_topology_desc(
        platform="tpu",
        topology_name=topology or chip.topology,
        **dict(chip.topology_options),
    )
    return tuple(found.devices)


def device_free_device(chip: Chip) -> Any:
    """The first of a chip's `device_free_devices`: what a kernel is compiled for."""
    return device_free_devices(chip)[0]


def set_up_worker(_: None = None) -> None:
    """Imports jax, so that the first task's deadline does not pay for it."""
    import jax

    # The cache on disk is ours; jax's would hide what a compile costs and write no dumps.
    jax.config.update("jax_enable_compilation_cache", False)
    if SOURCES_FLAG not in os.environ.get(VARIABLE, ""):
        # Lines of sources decide no instruction, and with them a comment above a kernel would make
        # another program of it: see `cache.program_key`.
        jax.config.update("jax_traceback_in_locations_limit", 0)
    _remember_bitcasts()
    # Tracing makes millions of small objects that live until a kernel is lowered. What is imported
    # is never garbage, and looking through the rest less often halves what looking costs.
    gc.freeze()
    gc.set_threshold(*_GC_THRESHOLDS)


def _remember_bitcasts() -> None:
    """Has jax ask once what shape a bitcast view of some shape has, instead of at each use.

    Where a kernel makes such a view at a load, jax traces a function anew to find out: 40 % of
    what it takes to trace a kernel. The answer depends on shape and types alone.
    Source: jax 0.10.2, jax/_src/state/types.py, `BitcastTransform.transform_type`. A jax with no
    such function is left as it is.
    """
    import jax

    try:
        from jax._src.state import utils
    except ImportError:
        return
    ask = getattr(utils, "eval_bitcast_shape", None)
    if ask is None:
        return

    @functools.lru_cache(maxsize=4096)
    def known(shape: tuple[int, ...], dtype: Any, to: Any) -> Any:
        return ask(jax.ShapeDtypeStruct(shape, dtype), to)

    def shape_of(x: Any, dtype: Any) -> Any:
        return known(x.shape, x.dtype, dtype)

    utils.eval_bitcast_shape = shape_of
