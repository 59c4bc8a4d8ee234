"""The engines' wheels, for tests: a CI that cannot fetch one fails, anybody else skips."""

import os
from pathlib import Path

import pytest

from rpa_tune.compile.paths import default_cache_dir
from rpa_tune.errors import UsageError
from rpa_tune.interop import sglang_jax
from rpa_tune.interop.public.wheel import Wheel

SGLANG_JAX = Wheel(
    project="sglang-jax", name="sglang_jax", version=sglang_jax.VERSION, package="sgl_jax"
)


def fetched(wheel: Wheel) -> Path:
    """Folder of the unpacked wheel."""
    try:
        return wheel.use(default_cache_dir())
    except UsageError as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(f"no {wheel.project} wheel: {error}")
