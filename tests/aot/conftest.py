"""The wheels of the engines, fetched once."""

import pytest
from engine_wheels import SGLANG_JAX, fetched

from rpa_tune.interop.public.tpu_inference.package import WHEEL


@pytest.fixture(scope="module")
def tpu_inference_root():
    """Folder of the unpacked wheel of tpu-inference."""
    return fetched(WHEEL)


@pytest.fixture(scope="module")
def sglang_jax_root():
    """Folder of the unpacked wheel of sglang-jax."""
    return fetched(SGLANG_JAX)
