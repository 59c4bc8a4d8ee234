"""Loads kernel modules out of a public wheel without importing the package around them.

The tpu-inference wheel's package `__init__` imports a whole serving engine. Its kernel modules
need only jax, so they are loaded under empty parent packages, from a folder the wheel was
unpacked into. Nothing of the wheel is copied into this project.
"""

import importlib
import logging
import os
import shutil
import subprocess
import sys
import types
import zipfile
from pathlib import Path

from rpa_tune.errors import UsageError
from rpa_tune.public_configs import VERSION as VERSION

PACKAGE = "tpu_inference"
_root: Path | None = None


def use_wheel(folder: Path) -> Path:
    """Fetches the wheel into `folder` unless it is there; `current_root` answers with it then on.

    Raises:
      UsageError: pip could not get the wheel.
    """
    global _root
    _root = fetch_wheel(folder)
    return _root


def current_root() -> Path:
    """The unpacked wheel that this process uses.

    Raises:
      UsageError: `use_wheel` was not called.
    """
    if _root is None:
        raise UsageError(
            "no tpu-inference wheel in this process", hint="call rpa_tune.interop.wheel.use_wheel"
        )
    return _root


def fetch_wheel(
    folder: Path, *, name: str = PACKAGE, version: str = VERSION, package: str = PACKAGE
) -> Path:
    """Downloads a wheel with pip and unpacks it, unless that was done before.

    Args:
      folder: Where the unpacked package goes; made if missing.
      name: Of the project, as its wheel spells it.
      version: Of the project.
      package: Top folder in the wheel.

    Returns:
      `folder / "<name>-<version>"`, which holds the package folder.

    Raises:
      UsageError: pip could not get the wheel.
    """
    root = folder / f"{name}-{version}"
    if (root / package).is_dir():
        return root
    folder.mkdir(parents=True, exist_ok=True)
    # The wheel declares Python 3.12; its kernel modules run on 3.11 too.
    command = [
        sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check",
        "--no-deps", "--only-binary=:all:", "--python-version", "3.12",
        "--dest", str(folder), f"{name}=={version}",
    ]  # fmt: skip
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = list(folder.glob(f"{name}-{version}-*.whl"))
    if run.returncode or not wheels:
        reason = (run.stderr.strip().splitlines() or ["no wheel"])[-1]
        raise UsageError(
            f"could not download {name} {version}: {reason}",
            hint="it is a public wheel on PyPI; check the network and pip's index settings",
        )
    partial = folder / f".{root.name}.{os.getpid()}.partial"
    with zipfile.ZipFile(wheels[0]) as archive:
        archive.extractall(partial)
    try:
        partial.rename(root)
    except OSError:
        if not root.is_dir():
            raise
        shutil.rmtree(partial)  # another process was faster; its folder is the same
    return root


def load_module(root: Path, name: str) -> types.ModuleType:
    """Imports one module of the unpacked wheel.

    Every parent package is an empty one with the right `__path__`; the package's logger and
    device look-up, which need vllm and torch, are replaced by stand-ins.

    Args:
      root: What `fetch_wheel` returned.
      name: Dotted name, for example
        `"tpu_inference.kernels.ragged_paged_attention.v3.kernel"`.

    Raises:
      UsageError: The wheel has no such module or it does not import.
    """
    parts = name.split(".")
    for depth in range(1, len(parts)):
        _ensure_empty_package(root, parts[:depth])
    _stand_in(f"{PACKAGE}.logger", init_logger=logging.getLogger)
    _stand_in(f"{PACKAGE}.utils", get_device_name=_no_device_name)
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UsageError(
            f"{name} does not import: {error}",
            where=str(root),
            hint=f"rpa-tune supports tpu-inference {VERSION}",
        ) from error


def _stand_in(name: str, **members: object) -> None:
    if name not in sys.modules:
        module = types.ModuleType(name)
        module.__dict__.update(members)
        sys.modules[name] = module


def _no_device_name(*_: object) -> str:
    raise RuntimeError("block sizes must be given: there is no device to look them up for")


def _ensure_empty_package(root: Path, parts: list[str]) -> None:
    name = ".".join(parts)
    if name not in sys.modules:
        package = types.ModuleType(name)
        package.__path__ = [str(root.joinpath(*parts))]
        sys.modules[name] = package
