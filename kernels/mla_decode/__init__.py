"""Decode of latent attention: the decode kernel, with blocks of many keys laid out at once."""

import dataclasses
from typing import Any

from rpa_kernels.decode.family import make_family


def _launch(*args: Any, **kwargs: Any) -> Any:
    """Imports jax only when a kernel is launched."""
    from rpa_kernels.mla_decode.launch import launch

    return launch(*args, **kwargs)


FAMILY = dataclasses.replace(make_family("mla-decode"), launch=_launch)

__all__ = ["FAMILY"]
