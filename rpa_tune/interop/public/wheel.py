"""Loads kernel modules out of a public wheel without importing the package around them.

A serving engine's package `__init__` imports all of the engine. Its kernel modules need only jax,
so they are loaded under empty parent packages, from a folder the wheel was unpacked into. Nothing
of a wheel is copied into this project.
"""

import importlib
import os
import shutil
import subprocess
import sys
import types
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from rpa_tune.errors import UsageError

_FOLDER = "wheels"  # of the compile cache: keeps the unpacked wheels


@dataclass(kw_only=True, eq=False)
class Wheel:
    """A wheel on PyPI, and where this process has it unpacked.

    Attributes:
      project: Its name on PyPI, for people.
      name: Of the project, as its wheel spells it.
      version: Of the project.
      package: Top folder in the wheel.
      stand_ins: Module -> members, in place of modules that the kernels' own import and that need
        more than jax.
    """

    project: str
    name: str
    version: str
    package: str
    stand_ins: Mapping[str, Mapping[str, object]] = field(default_factory=dict)
    _root: Path | None = field(default=None, init=False)

    def use(self, cache: Path) -> Path:
        """Fetches the wheel into the compile cache unless it is there; `root` is there then on.

        Raises:
          UsageError: pip could not get the wheel.
        """
        self._root = self.fetch(cache / _FOLDER)
        return self._root

    @property
    def root(self) -> Path:
        """The unpacked wheel that this process uses.

        Raises:
          UsageError: `use` was not called.
        """
        if self._root is None:
            raise UsageError(
                f"no {self.project} wheel in this process",
                hint="fetch its family first: rpa_tune.families.registry.load_family(...).fetch",
            )
        return self._root

    def fetch(self, folder: Path) -> Path:
        """Downloads the wheel with pip and unpacks it, unless that was done before.

        Args:
          folder: Where the unpacked package goes; made if missing.

        Returns:
          `folder / "<name>-<version>"`, which holds the package folder.

        Raises:
          UsageError: pip could not get the wheel.
        """
        root = folder / f"{self.name}-{self.version}"
        if (root / self.package).is_dir():
            return root
        folder.mkdir(parents=True, exist_ok=True)
        # A wheel may declare a later Python than its kernel modules need.
        command = [
            sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check",
            "--no-deps", "--only-binary=:all:", "--python-version", "3.12",
            "--dest", str(folder), f"{self.name}=={self.version}",
        ]  # fmt: skip
        run = subprocess.run(command, capture_output=True, text=True, check=False)
        wheels = list(folder.glob(f"{self.name}-{self.version}-*.whl"))
        if run.returncode or not wheels:
            reason = (run.stderr.strip().splitlines() or ["no wheel"])[-1]
            raise UsageError(
                f"could not download {self.name} {self.version}: {reason}",
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

    def load(self, root: Path, name: str) -> types.ModuleType:
        """Imports one module of the unpacked wheel.

        Every parent package is an empty one with the right `__path__`.

        Args:
          root: What `fetch` returned.
          name: Dotted name, for example
            `"tpu_inference.kernels.ragged_paged_attention.v3.kernel"`.

        Raises:
          UsageError: The wheel has no such module or it does not import.
        """
        parts = name.split(".")
        for depth in range(1, len(parts)):
            _ensure_empty_package(root, parts[:depth])
        for stand_in, members in self.stand_ins.items():
            if stand_in not in sys.modules:
                module = types.ModuleType(stand_in)
                module.__dict__.update(members)
                sys.modules[stand_in] = module
        try:
            return importlib.import_module(name)
        except ImportError as error:
            raise UsageError(
                f"{name} does not import: {error}",
                where=str(root),
                hint=f"rpa-tune supports {self.project} {self.version}",
            ) from error


def _ensure_empty_package(root: Path, parts: list[str]) -> None:
    name = ".".join(parts)
    if name not in sys.modules:
        package = types.ModuleType(name)
        package.__path__ = [str(root.joinpath(*parts))]
        sys.modules[name] = package
