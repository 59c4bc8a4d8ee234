"""The family record of a decode family. Imports jax only at launch."""

from typing import Any

from rpa_kernels import limits
from rpa_kernels.decode import account, fits, space
from rpa_kernels.decode.config import DecodeConfig
from rpa_kernels.decode.partition import partition
from rpa_kernels.family import KernelFamily


def _launch(*args: Any, **kwargs: Any) -> Any:
    """Imports jax only when a kernel is launched."""
    from rpa_kernels.decode.launch import launch

    return launch(*args, **kwargs)


def make_family(name: str) -> KernelFamily:
    """The record of family `name`: `decode` or `mla-decode`."""
    return KernelFamily(
        name=name,
        config_type=DecodeConfig,
        check=limits.for_kind(fits.check, name),
        default_config=limits.for_kind(space.default_config, name),
        search_axes=space.search_axes,
        scratch_bytes=account.scratch_bytes,
        smem_bytes=account.smem_bytes,
        traffic=account.traffic,
        useful_bytes=account.useful_bytes,
        mxu_flops=account.mxu_flops,
        useful_flops=account.useful_flops,
        num_steps=account.num_steps,
        partition=partition,
        launch=_launch,
        kernel_name=account.kernel_name,
    )
