"""The wheel of tpu-inference, fetched once."""

import os

import pytest

from rpa_tune.compile.paths import default_cache_dir
from rpa_tune.errors import UsageError
from rpa_tune.interop.public.tpu_inference.package import WHEEL


@pytest.fixture(scope="module")
def tpu_inference_root():
    """Folder of the unpacked wheel; a CI that cannot fetch it fails, anybody else skips."""
    try:
        return WHEEL.use(default_cache_dir())
    except UsageError as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(f"no tpu-inference wheel: {error}")
