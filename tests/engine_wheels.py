"""The engines' wheels, for tests: a CI that cannot fetch one fails, anybody else skips."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from rpa_tune.compile.paths import default_cache_dir
from rpa_tune.errors import UsageError
from rpa_tune.interop import sglang_jax
from rpa_tune.interop.public.wheel import Wheel

SGLANG_JAX = Wheel(
    project="sglang-jax", name="sglang_jax", version=sglang_jax.VERSION, package="sgl_jax"
)


_MAIN = "cddbf6f1cc33cbdd453bd8f36ff7051cf46ca176"
_REPOSITORY = "https://github.com/sgl-project/sglang-jax"


def sglang_jax_main() -> Path:
    """Folder with `sgl_jax` of the main branch, at the commit whose function is known."""
    assert _MAIN.startswith(sglang_jax.MAIN)
    root = default_cache_dir() / "sources" / f"sglang-jax-{sglang_jax.MAIN}"
    if not (root / "python" / "sgl_jax").is_dir():
        git = ["git", "-C", str(root)]
        root.mkdir(parents=True, exist_ok=True)
        try:
            for command in (
                ["init", "-q"], ["fetch", "-q", "--depth", "1", _REPOSITORY, _MAIN],
                ["checkout", "-q", "FETCH_HEAD", "--", "python/sgl_jax"],
            ):  # fmt: skip
                subprocess.run([*git, *command], check=True, capture_output=True, timeout=300)
        except (OSError, subprocess.SubprocessError) as error:
            shutil.rmtree(root, ignore_errors=True)
            if os.environ.get("CI"):
                raise
            pytest.skip(f"no sources of sglang-jax: {error}")
    return root / "python"


def fetched(wheel: Wheel) -> Path:
    """Folder of the unpacked wheel."""
    try:
        return wheel.use(default_cache_dir())
    except UsageError as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(f"no {wheel.project} wheel: {error}")
