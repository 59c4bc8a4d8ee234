"""Fills jax's own compilation cache for a TPU that is not there: programs of a caller's own `jit`.

An artefact's executables are whole programs, so they cannot become part of a caller's. A caller's
whole program can be compiled here instead, as jax would on the TPU host; jax looks it up there by a
key made of the program, versions, flags and topology. docs/serving.md says what has to be alike.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
from jax.experimental.compilation_cache import compilation_cache

from rpa_tune.compile import target
from rpa_tune.errors import UsageError
from rpa_tune.hw.chip import load_chip
from rpa_tune.libtpu_args import HOST_FLAG

_OPTIONS: dict[str, Any] = {
    # A kernel's source locations are inside its custom call, where jax does not strip them from the
    # key: with them a program that lies elsewhere, or a line further down, is another one.
    "jax_traceback_in_locations_limit": 0,
    # jax 0.10.2 hashes where the cache lies, as an option of GPUs; 0.12.0.1 does not.
    # Source: jax/_src/compiler.py, `xla_gpu_per_fusion_autotune_cache_dir`.
    "jax_persistent_cache_enable_xla_caches": "none",
    "jax_enable_compilation_cache": True,
    "jax_persistent_cache_min_compile_time_secs": 0.0,
    "jax_persistent_cache_min_entry_size_bytes": -1,
}


def devices(chip_name: str, topology: str | None = None) -> list[jax.Device]:
    """Devices to lower and compile for, in the order of the host's own.

    Args:
      chip_name: Name in the chip table.
      topology: That of the host, such as `v6e:2x4`; it is part of jax's key. What the chip table
        says if None.

    Raises:
      UsageError: libtpu does not know the topology.
    """
    chip = load_chip(chip_name)
    try:
        return list(target.device_free_devices(chip, topology))
    except jax.errors.JaxRuntimeError as error:
        *_, last = str(error).strip().splitlines()
        usual = chip.topology
        raise UsageError(
            f"no topology {topology or usual!r}: {last:.200}",
            hint=f"{usual!r} is one of {chip_name}",
        ) from error


@contextlib.contextmanager
def jax_cache(folder: Path | str) -> Iterator[None]:
    """Where programs are compiled into jax's cache in `folder`, under keys that no path changes.

    What was traced before has source locations: it is forgotten, here and at the end.

    Raises:
      UsageError: This process does not compile as a TPU host would.
    """
    if not target.is_as_on_a_host():
        raise UsageError(
            "this process does not compile as a TPU host would: there jax asks for libtpu's "
            f"version, and adds {HOST_FLAG} to LIBTPU_INIT_ARGS, which is in the cache's key",
            where="jax_cache",
            hint="start it with JAX_PLATFORMS=cpu JAX_FORCE_TPU_INIT=1, and with the server's own "
            "LIBTPU_INIT_ARGS",
        )
    options = {"jax_compilation_cache_dir": str(folder), **_OPTIONS}
    before = {name: getattr(jax.config, name) for name in options}
    try:
        _configure(options)
        yield
    finally:
        _configure(before)


def _configure(options: dict[str, Any]) -> None:
    for name, value in options.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()
    jax.clear_caches()
