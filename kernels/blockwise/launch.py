"""Launches the blockwise kernel for each of its families."""

from functools import partial

from rpa_kernels import calls
from rpa_kernels.blockwise.account import kernel_name
from rpa_kernels.blockwise.kernel import blockwise_kernel
from rpa_kernels.blockwise.partition import SEQS, partition
from rpa_kernels.blockwise.scratch import scratch_shapes

LAUNCHES = {
    family: calls.KernelLaunch(
        kernel=partial(blockwise_kernel, family=family),
        kernel_name=partial(kernel_name, family),
        scratch_shapes=scratch_shapes,
        partition=partial(partition, family),
    )
    for family in (*SEQS, "mla-mixed")
}
