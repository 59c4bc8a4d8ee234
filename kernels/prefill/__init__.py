"""Prefill: sequences whose query tokens are one static chunk, in the blockwise kernel.

The chunk length is the batch's, not the kernel's: any length is right, and a config whose `bq_sz`
divides it has no partly filled query block. What sets the family apart from mixed are its own
configs, tuned for such batches, and half the code: no paths for few queries. It takes the same
time; see "What prefill gains over mixed" in kernels/README.md.
"""

from rpa_kernels.blockwise.family import make_family

FAMILY = make_family("prefill")

__all__ = ["FAMILY"]
