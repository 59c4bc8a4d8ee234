"""The family record of a blockwise family. Imports jax only at launch."""

from functools import partial
from typing import Any

from rpa_kernels import limits, useful
from rpa_kernels.blockwise import account, fits, space
from rpa_kernels.blockwise.config import BlockwiseConfig
from rpa_kernels.blockwise.partition import partition
from rpa_kernels.family import KernelFamily


def _launch(family: str, *args: Any, **kwargs: Any) -> Any:
    from rpa_kernels.blockwise.launch import LAUNCHES

    return LAUNCHES[family](*args, **kwargs)


def make_family(name: str) -> KernelFamily:
    """The record of family `name`: `prefill`, `mixed` or `mla-mixed`."""
    return KernelFamily(
        name=name,
        config_type=BlockwiseConfig,
        check=limits.for_kind(fits.check, name),
        default_config=limits.for_kind(space.default_config, name),
        search_axes=space.search_axes,
        scratch_bytes=account.scratch_bytes,
        smem_bytes=account.smem_bytes,
        traffic=partial(account.traffic, name),
        useful_bytes=partial(useful.useful_bytes, name),
        mxu_flops=partial(account.mxu_flops, name),
        useful_flops=partial(useful.useful_flops, name),
        num_steps=partial(account.num_steps, name),
        partition=partial(partition, name),
        launch=partial(_launch, name),
        kernel_name=partial(account.kernel_name, name),
    )
