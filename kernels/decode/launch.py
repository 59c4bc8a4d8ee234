"""Launches the decode kernel."""

from rpa_kernels import calls
from rpa_kernels.decode.account import kernel_name
from rpa_kernels.decode.kernel import decode_kernel
from rpa_kernels.decode.partition import partition
from rpa_kernels.decode.scratch import scratch_shapes

launch = calls.KernelLaunch(
    kernel=decode_kernel,
    kernel_name=kernel_name,
    scratch_shapes=scratch_shapes,
    partition=partition,
)
