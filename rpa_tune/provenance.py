"""Where an answer comes from: versions, source digests, host and time.

Versions are read from package metadata: nothing here imports jax or libtpu.
"""

import ast
import datetime
import functools
import hashlib
import platform
from collections.abc import Iterable, Iterator
from importlib import metadata, resources
from importlib.resources.abc import Traversable
from typing import Any

_PACKAGES = {"rpa_tune": "rpa-tune", "jax": "jax", "jaxlib": "jaxlib", "libtpu": "libtpu"}
DIGEST_LENGTH = 16  # hex digits kept of a SHA-256
_SPACE = "space"  # the module of a family whose text decides no program


@functools.cache
def versions() -> dict[str, str | None]:
    """Version of each package that an answer depends on, and of Python; None if not installed."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for name, distribution in _PACKAGES.items():
        try:
            found[name] = metadata.version(distribution)
        except metadata.PackageNotFoundError:
            found[name] = None
    return found


@functools.cache
def kernel_digest(family: str) -> str:
    """Digest of the sources that the kernel of a family of ours is made of.

    Covers the modules that the family's record and its launch import, and those that they import
    in turn: a change to another family, to the verifier or to the reference leaves a family's
    answers valid. So does a change of which configs are tried or is the default (`space.py`, and
    what only it imports): a row, an answer and a launch plan have their config in them, and the
    program is made of that config. Read once a process.
    """
    # `inputs` lays out what a launch is given, in the same program.
    folder = family.replace("-", "_")
    return _digest(_import_closure([f"rpa_kernels.{folder}", "rpa_kernels.inputs"]))


@functools.cache
def verifier_digest() -> str:
    """Digest of what compares a kernel with the float32 reference, the reference included."""
    return _digest(_import_closure(["rpa_kernels.verify"]))


@functools.cache
def launch_digest() -> str:
    """Digest of what turns a launch plan into a program: the launching code and the chip table."""
    package = resources.files("rpa_tune")
    launching = _files(package / "dispatch", ("runtime.py", "plan.py"))
    return _digest([*launching, *_files(package / "hw", (".py", ".yaml"))])


@functools.cache
def simulator_digest() -> str:
    """Digest of the simulator and of the chip table: what a simulated time depends on."""
    package, suffixes = resources.files("rpa_tune"), (".py", ".yaml")
    return _digest([*_files(package / "llo", suffixes), *_files(package / "hw", suffixes)])


def provenance(kernel: str | None = None) -> dict[str, Any]:
    """What to stamp on a record.

    Args:
      kernel: `Family.digest` of the kernel that it is about; None for a record about none.

    Returns:
      Plain JSON values: the versions, `kernel`, `verifier` and `simulator` digests, `host`, and
      `time` in UTC.
    """
    stamp: dict[str, Any] = {
        **versions(),
        "simulator": simulator_digest(),
        "verifier": verifier_digest(),
        "host": platform.node(),
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
    return stamp if kernel is None else {**stamp, "kernel": kernel}


def _files(folder: Traversable, suffixes: tuple[str, ...]) -> Iterator[tuple[str, bytes]]:
    """(path below `folder`, content) of files with one of the suffixes, in a fixed order."""
    for entry in sorted(folder.iterdir(), key=lambda entry: entry.name):
        if entry.is_file() and entry.name.endswith(suffixes):
            yield entry.name, entry.read_bytes()
        elif entry.is_dir():
            for path, content in _files(entry, suffixes):
                yield f"{entry.name}/{path}", content


def _import_closure(roots: Iterable[str]) -> list[tuple[str, bytes]]:
    """(path, content) of the modules of `rpa_kernels` that importing and using `roots` loads.

    Imports are read off the sources, those inside functions too; nothing is imported. Left out are
    what only a type checker imports, and every `space.py`.

    Args:
      roots: Full names of modules.
    """
    package = resources.files("rpa_kernels")
    found: dict[str, bytes] = {}
    todo = list(roots)
    while todo:
        name = todo.pop()
        parent, _, last = name.rpartition(".")
        if last == _SPACE:
            continue
        path = _source_path(package, name)
        if path is None or path in found:
            todo += [parent] if path is None and parent else []  # a name in a module
            continue
        found[path] = package.joinpath(path).read_bytes()
        todo += [parent] if parent else []
        todo += [n for n in _imports(ast.parse(found[path])) if n.startswith("rpa_kernels")]
    return sorted(found.items())


def _source_path(package: Traversable, name: str) -> str | None:
    """Where the module of a name lies below `rpa_kernels`; None when it is no module there."""
    stem = "/".join(name.split(".")[1:])
    paths = (f"{stem}/__init__.py", f"{stem}.py") if stem else ("__init__.py",)
    return next((path for path in paths if package.joinpath(path).is_file()), None)


def _imports(node: ast.AST) -> Iterator[str]:
    """Full names that a piece of source imports: modules, and names in them."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        yield from (f"{node.module}.{alias.name}" for alias in node.names)
    children: Iterable[ast.AST] = ast.iter_child_nodes(node)
    if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
        children = node.orelse
    for child in children:
        yield from _imports(child)


def _digest(files: Iterable[tuple[str, bytes]]) -> str:
    sha = hashlib.sha256()
    for path, content in files:
        sha.update(f"{path}:{len(content)}:".encode())
        sha.update(content)
    return sha.hexdigest()[:DIGEST_LENGTH]
