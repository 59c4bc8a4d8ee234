"""Ragged paged attention kernels for TPUs; reading order in README.md.

Importing this package imports no kernel and no jax: families load when asked for.
"""

import importlib

from rpa_kernels.family import KernelFamily
from rpa_kernels.slots import FAMILIES


def load_family(name: str) -> KernelFamily:
    """Imports one family folder and returns its record.

    Args:
      name: One of `FAMILIES`.

    Raises:
      ValueError: `name` is not a family.
    """
    if name not in FAMILIES:
        raise ValueError(f"family {name!r} is not one of {FAMILIES}")
    folder = name.replace("-", "_")
    family: KernelFamily = importlib.import_module(f"rpa_kernels.{folder}").FAMILY
    return family


__all__ = ["FAMILIES", "KernelFamily", "load_family"]
