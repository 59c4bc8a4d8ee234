"""A TPU target with no TPU: the environment of a worker, and the device it compiles for.

Neighbours: `pool.py` starts workers with this environment; `lower.py` compiles for the device.
This is one of the two places in the project that may touch environment variables. jax is imported
inside functions, because the parent process uses the rest without it.
"""

import functools
import os
from pathlib import Path
from typing import Any

from rpa_tune.hw.chip import Chip, load_chip

# What the compiler writes down. The pass is chosen by a regular expression on its label; the
# VMEM report comes along whatever the label says.
# Source: observed with libtpu 0.0.42.1 and 0.0.50.1.
DUMP_FLAGS = (
    "--xla_jf_dump_llo_text=true",
    "--xla_jf_dump_llo_pass_label_regex=final_bundles",
)

# Keeps libtpu from asking a cloud metadata server which TPU it is on.
_NO_METADATA_SERVER = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
}


def worker_environment(folder: Path) -> dict[str, str]:
    """The environment of a worker process that compiles without a TPU and dumps schedules.

    Args:
      folder: The worker's private folder; dumps go to `dump_folder(folder)`.
    """
    flags = (f"--xla_jf_dump_to={dump_folder(folder)}", *DUMP_FLAGS)
    return build_environment(folder) | {"LIBTPU_INIT_ARGS": " ".join(flags)}


def build_environment(folder: Path) -> dict[str, str]:
    """The environment of a worker process that compiles without a TPU, and dumps nothing.

    Everything the parent has, except what would change the compiler's answer. `LIBTPU_INIT_ARGS`
    and `XLA_FLAGS` of the parent are dropped on purpose: a stray flag would change what caches
    keep under the same key.

    Args:
      folder: The worker's private folder.
    """
    dropped = (
        "LIBTPU_INIT_ARGS", "XLA_FLAGS", "JAX_COMPILATION_CACHE_DIR",
        "JAX_ENABLE_COMPILATION_CACHE",
    )  # fmt: skip
    inherited = {key: value for key, value in os.environ.items() if key not in dropped}
    return inherited | {
        "JAX_PLATFORMS": "cpu",
        **_NO_METADATA_SERVER,
        "PJRT_NPROC": num_xla_threads(),
        # Device-free compiles never touch a chip, so several may run side by side.
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
        "TPU_LOG_DIR": str(folder / "log"),
        "TPU_STDERR_LOG_LEVEL": "2",
        "TPU_MIN_LOG_LEVEL": "2",
    }


def device_environment(folder: Path) -> dict[str, str]:
    """The environment of a worker that runs on the device that is there: the parent's own.

    Args:
      folder: The worker's private folder; nothing in this environment depends on it.
    """
    del folder
    return {k: v for k, v in os.environ.items() if k != "ALLOW_MULTIPLE_LIBTPU_LOAD"}


def num_xla_threads() -> str:
    """`PJRT_NPROC`: the threads of XLA on the CPU, no fewer than the interpreter needs.

    It runs two TensorCores as two calls inside a third. XLA by itself has as many threads as the
    host has CPUs, and on one CPU they would wait for each other forever.
    """
    return str(max(4, os.cpu_count() or 1))


def compiler_flags() -> dict[str, str]:
    """The flags of this process that change what the compiler makes; for provenance."""
    names = ("LIBTPU_INIT_ARGS", "XLA_FLAGS", "JAX_PLATFORMS")
    return {name: os.environ[name] for name in names if name in os.environ}


def dump_folder(folder: Path) -> Path:
    """Where the worker that owns `folder` finds its compiler dumps."""
    return folder / "dumps"


@functools.cache
def device_free_devices(chip_name: str, topology: str | None = None) -> tuple[Any, ...]:
    """`jax.Device`s that need not be there, good for lowering and compiling only.

    Args:
      chip_name: Name in the chip table.
      topology: Such as `v6e:2x4`; what the chip table says if None.

    Raises:
      JaxRuntimeError: libtpu does not know the topology.
    """
    from jax.experimental import topologies

    chip: Chip = load_chip(chip_name)
    found = topologies.get_topology_desc(
        platform="tpu",
        topology_name=topology or chip.topology,
        **dict(chip.topology_options),
    )
    return tuple(found.devices)


def device_free_device(chip_name: str) -> Any:
    """The first of a chip's `device_free_devices`: what a kernel is compiled for."""
    return device_free_devices(chip_name)[0]


def set_up_worker(_: None = None) -> None:
    """Imports jax, so that the first task's deadline does not pay for it."""
    import jax

    # The cache on disk is ours; jax's would hide what a compile costs and write no dumps.
    jax.config.update("jax_enable_compilation_cache", False)
