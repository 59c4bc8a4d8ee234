"""Latent attention of any number of query tokens, in the blockwise kernel."""

from rpa_kernels.blockwise.family import make_family

FAMILY = make_family("mla-mixed")

__all__ = ["FAMILY"]
