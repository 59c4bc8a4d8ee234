"""Prefill: sequences whose query tokens are one static chunk, in the blockwise kernel.

The chunk length is the batch's, not the kernel's: a config whose `bq_sz` divides it has no
partly filled query block. What sets the family apart is its own configs, tuned for such batches.
"""

from rpa_kernels.blockwise.family import make_family

FAMILY = make_family("prefill")

__all__ = ["FAMILY"]
