"""The public kernels' modules, from the wheel they are published in; nothing of it is kept here."""

import functools
from pathlib import Path
from types import ModuleType

import pytest

from rpa_tune.errors import UsageError
from rpa_tune.interop.public.tpu_inference.functions import MODULES
from rpa_tune.interop.public.tpu_inference.package import WHEEL

FOLDER = Path(__file__).resolve().parents[2] / ".rpa-tune" / "wheels"


@functools.cache
def _load(kernel: str) -> ModuleType | str:
    try:
        return WHEEL.load(WHEEL.fetch(FOLDER), MODULES[kernel])
    except UsageError as error:
        return str(error)


def public_module(kernel: str) -> ModuleType:
    """The module of `v3` or `hd64`; skips the test when the wheel cannot be fetched."""
    found = _load(kernel)
    if isinstance(found, str):
        pytest.skip(found)
    return found
