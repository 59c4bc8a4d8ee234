"""Prefill: sequences whose query tokens are one static chunk, in the blockwise kernel.

The chunk length is the batch's, not the kernel's: any length is right, and a config whose `bq_sz`
divides it has no partly filled query block. What sets the family apart from mixed are its own
configs, tuned for such batches, and a quarter less code: no second path for few queries. That
the length is no constant costs 0.1 to 0.3 % of the time; see benchmarks/kernel_log.md.
"""

from rpa_kernels.blockwise.family import make_family

FAMILY = make_family("prefill")

__all__ = ["FAMILY"]
