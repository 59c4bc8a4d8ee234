"""tpu-inference: the version that is supported, and what its kernels run on. No jax."""

import importlib.metadata
import importlib.util
import logging
from collections.abc import Mapping

from rpa_tune.interop.public.package import PublicPackage, release
from rpa_tune.interop.public.wheel import Wheel


def _no_device_name(*_: object) -> str:
    raise RuntimeError("block sizes must be given: there is no device to look them up for")


def _divisors(number: int) -> list[int]:
    """Sorted."""
    return [n for n in range(1, number + 1) if number % n == 0]


# What the turning over of the latent kernel's queries takes of sympy, where there is none.
# Source: mla/v2/transpose.py.
_SYMPY: Mapping[str, Mapping[str, object]] = (
    {} if importlib.util.find_spec("sympy") else {"sympy": {"divisors": _divisors}}
)
# The package's logger and device look-up need vllm and torch.
WHEEL = Wheel(
    project="tpu-inference",
    name="tpu_inference",
    version="0.32.0",
    package="tpu_inference",
    stand_ins={
        "tpu_inference.logger": {"init_logger": logging.getLogger},
        "tpu_inference.utils": {"get_device_name": _no_device_name},
        **_SYMPY,
    },
)
PACKAGE = PublicPackage(name="tpu-inference", wheel=WHEEL, revision=3)
# The chips that the public kernels take, and what `get_device_name` of the wheel calls them.
# Source: tpu-inference 0.32.0, `get_default_block_sizes` (no version 4) and utils.py; v5p announces
# itself as `TPU v5`.
DEVICE_NAMES = {"v5e": "TPU v5e", "v5p": "TPU v5", "v6e": "TPU v6e", "v7x": "TPU v7"}
# From this jax on the stacked kernel does not trace: `wait_in_slot` of jax's own pipeline is None.
# Source: observed with jax 0.12.0.1; it traces with 0.10.2.
_STACKED_ENDS_WITH_JAX = (0, 12)


def why_untraceable(kernel: str) -> str:
    """Why a kernel cannot be traced with the jax that is installed; empty if it can.

    Args:
      kernel: `v3`, `hd64`, `batched` or `stacked`.
    """
    version = importlib.metadata.version("jax")
    if kernel == "stacked" and release(version)[:2] >= _STACKED_ENDS_WITH_JAX:
        return f"the stacked kernel of {PACKAGE.title} does not trace under jax {version}"
    return ""
