"""What a kernel may know of the chip it is compiled for.

A kernel never asks what chip it is on: it is told, so that configs can be checked and kernels
compiled on machines with no TPU. `rpa_tune.hw` builds these records from its chip table.
"""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Target:
    """Limits and abilities of one TensorCore.

    Attributes:
      chip: Name in the chip table, for example `"v6e"`. For messages and kernel names only;
        code branches on the abilities below.
      vmem_bytes: VMEM of one TensorCore.
      smem_bytes: SMEM of one TensorCore.
      mxu_size: Rows and columns of one MXU (128 or 256).
      num_cores: TensorCores that one JAX device drives (2 with megacore); a launch uses all.
      has_bf16_vector_units: Whether the VPU and EUP compute in bfloat16.
      has_fp8_mxu: Whether the MXU takes float8 operands, at whatever rate.
      has_fast_fp8_mxu: Whether it multiplies float8 faster than bfloat16.
      has_result_buffers: Whether results of an MXU lie in buffers and are popped by address; else
        they are popped in the order of the products.
      has_faster_strided_copies: Whether copies with strided descriptors are believed to stream
        faster than linear ones; decides what is tried and chosen, never what a config means.
    """

    chip: str
    vmem_bytes: int
    smem_bytes: int
    mxu_size: int
    num_cores: int
    has_bf16_vector_units: bool
    has_fp8_mxu: bool
    has_fast_fp8_mxu: bool
    has_result_buffers: bool
    has_faster_strided_copies: bool = False
