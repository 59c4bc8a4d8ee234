"""The wheel of tpu-inference, fetched once."""

import os

import pytest

from rpa_tune.compile.paths import default_cache_dir
from rpa_tune.errors import UsageError
from rpa_tune.interop import wheel
from rpa_tune.public_configs import WHEELS


@pytest.fixture(scope="module")
def tpu_inference_root():
    """Folder of the unpacked wheel; a CI that cannot fetch it fails, anybody else skips."""
    try:
        return wheel.use_wheel(default_cache_dir() / WHEELS)
    except UsageError as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(f"no tpu-inference wheel: {error}")
