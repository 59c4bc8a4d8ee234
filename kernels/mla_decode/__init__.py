"""Decode of latent attention: one query token a sequence, in the decode kernel."""

from rpa_kernels.decode.family import make_family

FAMILY = make_family("mla-decode")

__all__ = ["FAMILY"]
